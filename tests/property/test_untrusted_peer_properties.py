"""Data of an untrusted peer, changed at random: read correctly or refused, in bounded memory, never a crash."""

from __future__ import annotations

import copy
import itertools
import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from model_factory.client import fetch, retry
from model_factory.client.connection import Connection
from model_factory.config import parse_config
from model_factory.describe.describe import describe, named_tensors
from model_factory.descriptor.codec import decode_descriptor, decode_programs, encode_descriptor, encode_programs
from model_factory.descriptor.rebuild import rebuild
from model_factory.descriptor.weights import map_weights, write_weights
from model_factory.errors import ConfigError, FormatError, ModelFactoryError, ServerError
from model_factory.program.example_call import decode_call, encode_call
from model_factory.store import Blob, Store
from model_factory.v1 import wire
from model_factory_server import PolicyConstructorModelFactory
from model_factory_server.access.tokens import read_tokens
from model_factory_server.command import OPTIONS
from model_factory_server.export.exporter import record_model
from model_factory_server.settings.options import gather
from property.amount import EXAMPLES

quick = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
ROOM_BYTES = 512 << 20
SECONDS = 20.0

HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2, 7, 2**31, 2**63 - 1, 2**63, 2**200, -(2**63)]),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(
        ["__class__", "os.system", "nn.Linear", "torch.load", "../../x", "\x00", "forward", "op:torch.load"]
    ),
    st.lists(st.integers(0, 3), max_size=4),
    st.dictionaries(st.text(max_size=4), st.integers(0, 3), max_size=3),
)


@contextmanager
def bounded() -> Iterator[None]:
    """Neither much more memory nor much time."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    used = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + ROOM_BYTES, before[1]))
    started = time.monotonic()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    assert time.monotonic() - started < SECONDS


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place inside plain data."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """The document with up to three values replaced, removed, doubled or moved."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        every = list(places(document))
        if not every:
            break
        *way, last = draw(st.sampled_from(every))
        holder = document
        for key in way:
            holder = holder[key]
        match draw(st.sampled_from(["replace", "remove", "double", "move"])):
            case "replace":
                holder[last] = draw(HOSTILE)
            case "remove":
                del holder[last]
            case "double" if isinstance(holder, list):
                holder.insert(last, copy.deepcopy(holder[last]))
            case _:
                other = document
                for key in draw(st.sampled_from(every)):
                    other = other[key] if isinstance(other, dict | list) and _has(other, key) else other
                holder[last] = copy.deepcopy(other)
    return document


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else isinstance(key, int) and key < len(holder)


def model() -> nn.Module:
    config = {"schema_version": 1, "model": {"graph": {
        "inputs": ["x"],
        "modules": {"a": {"_type_": "mlp", "dims": [4, 5, 3]}, "b": {"_type_": "nn.BatchNorm1d", "num_features": 3}},
        "steps": [{"call": "module:a", "args": ["$x"], "out": "h"}, {"call": "module:b", "args": ["$h"], "out": "y"},
                  {"call": "op:torch.relu", "args": ["$y"], "out": "z"}],
        "outputs": ["z"],
    }}}  # fmt: skip
    built = PolicyConstructorModelFactory(seed=1).build({"config": config})
    assert isinstance(built, nn.Module)
    return built


MODEL = model()
DESCRIBED = describe(MODEL)
TENSORS = {name: tensor.detach() for name, tensor in named_tensors(MODEL, DESCRIBED).items()}
DESCRIPTOR = json.loads(encode_descriptor(DESCRIBED))
PROGRAMS = json.loads(encode_programs(record_model(MODEL)))
CALL = json.loads(encode_call({"x": torch.zeros(2, 3), "mask": None, "sizes": [1, 2]}, None))


@quick
@given(changed(DESCRIPTOR))
def test_a_descriptor_is_rebuilt_or_refused(document: Any) -> None:
    """And what is rebuilt are modules of torch's and ours, nothing else."""
    data = json.dumps(document).encode()
    with bounded():
        try:
            module = rebuild(decode_descriptor(data), dict(TENSORS))
        except ModelFactoryError:
            return
    assert all(type(item).__module__.startswith(("torch.nn.", "model_factory.")) for item in module.modules())


@quick
@given(changed(PROGRAMS))
def test_programs_are_read_or_refused(document: Any) -> None:
    with bounded():
        try:
            programs = decode_programs(json.dumps(document).encode())
        except FormatError:
            return
    assert decode_programs(encode_programs(programs)) == programs


def test_equal_programs_of_one_module_are_refused() -> None:
    document = copy.deepcopy(PROGRAMS)
    document["programs"] += document["programs"]
    with pytest.raises(FormatError, match="a module has the same program twice"):
        decode_programs(json.dumps(document).encode())


@quick
@given(changed(CALL))
def test_a_call_is_read_or_refused(document: Any) -> None:
    with bounded():
        try:
            decode_call(json.dumps(document).encode())
        except FormatError:
            return


@quick
@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_refused_by_every_reader(data: bytes) -> None:
    for read, error in (
        (decode_descriptor, FormatError),
        (decode_programs, FormatError),
        (decode_call, FormatError),
        (parse_config, ConfigError),
    ):
        with pytest.raises(error):
            read(data)


@quick
@given(st.binary(max_size=3000))
def test_a_chunk_reads_back(data: bytes) -> None:
    assert bytes(wire.chunk_of(wire.chunk_prefix(len(data)) + data)) == data


@quick
@given(st.binary(max_size=40) | st.binary(max_size=12).map(lambda data: b"\x0a" + data))
def test_any_message_is_a_chunk_or_refused(message: bytes) -> None:
    try:
        data = wire.chunk_of(message)
    except FormatError:
        return
    assert wire.chunk_prefix(len(data)) + data == message or not data or len(message) - len(data) <= 6


CONTENT = bytes(range(256)) * 8
EVENTS = st.one_of(
    st.tuples(st.just("data"), st.integers(1, 900)),
    st.tuples(st.just("wrong"), st.integers(1, 900)),
    st.tuples(st.just("empty"), st.just(0)),
    st.tuples(st.just("break"), st.sampled_from(["UNAVAILABLE", "CANCELLED", "INTERNAL", "NOT_FOUND", "DATA_LOSS"])),
    st.tuples(st.just("end"), st.just(0)),
)


class Break(grpc.RpcError):
    """A stream that broke."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._code = grpc.StatusCode[name]

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "broken"

    def trailing_metadata(self) -> tuple[()]:
        return ()


class Stream(Connection):
    """A connection whose streams do what was drawn; then they break for ever."""

    def __init__(self, events: list[tuple[str, Any]]) -> None:
        super().__init__("untrusted:1")
        self._events = iter(events)
        self.good = 0
        self.lied = False

    def shared_stores(self) -> tuple[()]:
        return ()

    def read_blob(self, request: Any) -> Iterator[memoryview]:
        if not self.lied:
            assert request.offset_bytes == self.good, "resumed at another place than where it broke"
        for kind, what in itertools.chain(self._events, itertools.repeat(("break", "UNAVAILABLE"))):
            if kind == "break":
                raise Break(what)
            if kind == "end":
                return
            if kind == "data":
                data = CONTENT[self.good : self.good + what] if not self.lied else b"?" * what
                if not data:
                    return
                self.good += len(data)
                yield memoryview(data)
            else:
                self.lied = True
                yield memoryview(b"?" * what)


@quick
@given(st.lists(EVENTS, max_size=12))
def test_a_blob_arrives_whole_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, Any]]
) -> None:
    """Whatever the streams do: a file in the cache is the blob, and nothing else is left."""
    store = Store(tmp_path_factory.mktemp("stream", numbered=True) / "cache")
    blob = Blob.of(CONTENT)
    stream = Stream(events)
    told: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "RESUME_SECONDS", 0.002)
        patch.setattr(retry, "_FIRST_WAIT_SECONDS", 0.001)
        try:
            file = fetch.fetch_blob(stream, store, blob, told.append)
        except ModelFactoryError:
            assert store.find(blob) is None
        else:
            with file:
                assert file.read() == CONTENT
            assert not stream.lied
            assert sum(told) == len(CONTENT)
    assert list((store.root / "staging").iterdir()) == []


def weights(tmp_path: Path) -> bytes:
    path = tmp_path / "weights"
    with path.open("wb") as file:
        write_weights(file, TENSORS)
    return path.read_bytes()


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = tmp_path_factory.mktemp("weights")
    return folder / "changed", weights(folder)


@quick
@given(data=st.data())
def test_a_head_of_weights_is_read_or_refused(weights_file: tuple[Path, bytes], data: st.DataObject) -> None:
    """Lengths, offsets, shapes and dtypes that lie: no huge allocation, no tensor outside the file."""
    path, good = weights_file
    length = int.from_bytes(good[:8], "little")
    header = json.dumps(data.draw(changed(json.loads(good[8 : 8 + length])))).encode()
    said = data.draw(st.sampled_from([len(header), 0, 1, 2**62, 2**63, 2**64 - 1, len(header) + 1, 100_000_001]))
    path.unlink(missing_ok=True)
    path.write_bytes(said.to_bytes(8, "little") + header + good[8 + length :])
    with bounded():
        try:
            with path.open("rb") as file:
                found = map_weights(file)
        except FormatError:
            return
        size = path.stat().st_size
        assert all(tensor.nbytes <= size for tensor in found.values())
        for tensor in found.values():
            tensor.clone()


@quick
@given(st.text("abcdef0123456789 #\n:-TZ+", max_size=120), st.text("abc: -[]{}'\"\n#&*!1", max_size=60))
def test_files_of_operators_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, one: str, two: str) -> None:
    path = tmp_path_factory.getbasetemp() / "operators"
    path.write_text(one, encoding="utf-8")
    with suppress(ServerError):
        assert all(len(item.sha256) == 64 for item in read_tokens(path))
    path.write_text(two, encoding="utf-8")
    with suppress(ServerError):
        gather(OPTIONS, flags={}, variables={}, file=path, other_variables=())
