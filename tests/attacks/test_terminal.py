"""Foreign text moves, hides, reorders and forges nothing on a terminal or in a log, whichever side the text is from."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
import re
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from torch import nn

from model_factory import RemoteModelFactory, errors
from model_factory.cli.main import main
from model_factory.cli.output import PrintableStream
from model_factory.client import progress
from model_factory.client.connection import Connection
from model_factory.describe.describe import describe, named_tensors
from model_factory.descriptor.codec import decode_descriptor, encode_descriptor, encode_programs
from model_factory.descriptor.rebuild import rebuild
from model_factory.descriptor.weights import write_weights
from model_factory.digest import digest_of
from model_factory.documents import FORMAT, encode_document
from model_factory.errors import FormatError, ModelFactoryError
from model_factory.store import Holder
from model_factory.v1 import build_pb2, capabilities_pb2, wire
from model_factory_server.observe.logs import configure_logging, fields
from support.hostile_server import HostileServer

# Erase a line, go up, go back, hide, retitle, reorder, break lines in ways that terminals and Python see differently.
EVIL = "\x1b[2K\x1b[1A\r\x08\x1b[8m\x1b]0;t\x07\u202e\u2066\u200b\u2028\x85\x0b\x0c\x1c\x9b2J\ufeff\U000e0041\x7f\tend"
FORGED = f"{EVIL}\nerror: forged\r\nl.lock: 1 bundle pinned"
CONFIG = {
    "schema_version": 1,
    "model": {"sequential": {"layers": [{"_type_": "nn.Linear", "in_features": 2, "out_features": 3}]}},
}


def assert_visible(text: str) -> None:
    """Only line breaks and visible characters, by Unicode's categories and not by the function under test."""
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}
    found = {char for char in text if unicodedata.category(char) in hidden} - {" ", "\n"}
    assert not found, found


def assert_harmless(text: str) -> None:
    """Visible, and without a line that another text could mean."""
    assert_visible(text)
    for line in text.split("\n"):
        assert not line.startswith(("error: forged", "l.lock: 1 bundle"))


def error_classes(base: type[ModelFactoryError] = ModelFactoryError) -> Iterator[type[ModelFactoryError]]:
    if base.__module__ == errors.__name__:
        yield base
    for cls in base.__subclasses__():
        yield from error_classes(cls)


@pytest.mark.parametrize("cls", sorted(set(error_classes()), key=lambda cls: cls.__name__))
def test_no_error_shows_foreign_text_as_it_is(cls: type[ModelFactoryError]) -> None:
    error = cls(FORGED)
    for item in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301  our own
        for text in (str(item), repr(item), *map(str, item.args), "".join(traceback.format_exception(item))):
            assert_harmless(text)
        assert "error: forged" in str(item)
    assert len(str(cls("x" * 50_000_000))) <= 10_000
    if issubclass(cls, errors.LocatedError):
        located = cls(FORGED, path=("model", FORGED, 7), place=f"{FORGED}:1:1")
        for text in (str(located), located.reason, repr(located)):
            assert_harmless(text)
        assert len(str(cls("x", path=("y" * 50_000_000,)))) <= 20_000


def test_the_frames_of_torch_are_found_in_linear_time() -> None:
    """A regular expression took a minute for 100,000 spaces."""
    assert errors.plain_text(" " * 10_000_000 + "x").endswith("x")
    assert errors.plain_text("sizes differ \n\nframe #0: /lib\nException raised from x") == "sizes differ"


class TalkingServer(HostileServer):
    """Has hostile text in every field that a person may read."""

    def __init__(self, model: nn.Module, source: str = "") -> None:
        weights = io.BytesIO()
        write_weights(weights, named_tensors(model, describe(model)))
        document, blobs = json.loads(encode_descriptor(describe(model))), {}
        if source:
            bundle = encode_document({"format": 1, "files": {"evil.py": source}, "requires": [["torch", FORGED, EVIL]]})
            document["modules"][1] |= {"kind": "source", "source": ["evil", "Evil", FORGED]}
            document["bundle"] = [digest_of(bundle), len(bundle)]
            blobs[digest_of(bundle)] = bundle
        super().__init__(encode_document(document), weights.getvalue(), encode_programs(()), blobs)
        self.status: Any = None
        """Status of every RPC but GetCapabilities; None: success."""
        self.refused: dict[str, str] = {}
        self.format = FORMAT

    def GetCapabilities(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        backend = capabilities_pb2.Backend(name=FORGED, torch_version=FORGED)
        return capabilities_pb2.GetCapabilitiesResponse(
            server_version=FORGED, format_version=self.format, backend=backend, device_kind=FORGED
        )

    def ListBlocks(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        self._abort(context)
        argument = capabilities_pb2.BlockArgument(name=FORGED, annotation=FORGED, default=FORGED)
        block = capabilities_pb2.Block(name=FORGED, summary=FORGED, origin=FORGED, tags=[FORGED], arguments=[argument])
        return capabilities_pb2.ListBlocksResponse(blocks=[block])

    def DescribeModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._abort(context)
        found = super().DescribeModels(request, context)
        for item in found.components:
            item.refused.update(self.refused)
        return found

    def BuildModels(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self._abort(context)
        yield build_pb2.BuildModelsResponse(progress=build_pb2.BuildProgress(component=FORGED, stage=1))  # type: ignore[arg-type]
        yield from super().BuildModels(request, context)

    def _abort(self, context: Any) -> None:
        if self.status is not None:
            context.abort_with_status(rpc_status.to_status(self.status))


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., TalkingServer]]:
    monkeypatch.setenv("MODEL_FACTORY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Connection, "health", lambda _self, _timeout: "SERVING")  # the hostile server has no health
    (tmp_path / "m.yaml").write_text(json.dumps(CONFIG), encoding="utf-8")
    started: list[TalkingServer] = []

    def start(source: str = "") -> TalkingServer:
        started.append(TalkingServer(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), source))
        return started[-1]

    yield start
    for server in started:
        server.close()


CODE_LINE = re.compile(r" {4} *(?:(\d+) \|| >) (.*)")
HIDDEN_CODE = {
    "erased": "import os; os.system('x')  # \x1b[2K\x1b[1Gimport math\n",
    "overwritten": "os.remove('x')\x1b[1A\nSIZE = 3            \n",
    "backspaces": "os.kill(1, 9)" + "\x08" * 13 + "WIDTH = 1    \n",
    "carriage return": "os.fork()\rWIDTH = 1    \n",
    "invisible": "\x1b[8mos.fork()\x1b[0m\n",
    "reordered": "if mode != 'user\u202e \u2066# harmless\u2069 \u2066': os.fork()\n",
    "right to left": "א = 1 + os.fork() + ב\n",
    "far right": "WIDTH = 1" + " " * 5000 + "; os.fork()\n",
    "far right by tabs": "WIDTH = 1" + "\t" * 500 + "; os.fork()\n",
    "other line breaks": "# a\x0bos.fork()\n# b\x0c# c\x1c# d\x85# e\u2028# f\n",
    "covered": "os.fork()  # e" + "\u0301" * 3000 + "\n",
    "scrolled": "os.fork()\n" + "\x1b[3J\x1b[2J\x1b[H" + "\n",
    "one column": "x = 1\x1b[;1r\x1b[?25l\x1b[20h\n",
}


@pytest.mark.parametrize("way", HIDDEN_CODE)
def test_trust_shows_all_code(way: str, talk: Callable[..., TalkingServer], capsys: pytest.CaptureFixture[str]) -> None:
    """Before, a terminal showed other code than Python would run."""
    source = f"import os\n{HIDDEN_CODE[way]}from torch import nn\nclass Evil(nn.Linear):\n    pass\n"
    server = talk(source)
    assert main(["trust", "m.yaml", "--server", server.address, "--text", "-o", "model.lock"]) == 0
    shown = capsys.readouterr().out
    assert_harmless(shown)
    assert max(map(len, shown.split("\n"))) < 12_000
    code = [match for line in shown.split("\n") if (match := CODE_LINE.fullmatch(line))]
    assert max(len(match[0]) for match in code) <= 120
    lines = source.replace("\r", "\n").removesuffix("\n").split("\n")  # Python's own line breaks
    assert [match[1] for match in code if match[1]] == [str(number) for number in range(1, len(lines) + 1)]
    text = "".join(match[2] for match in code)
    for call in ("os.system('x')", "os.remove('x')", "os.kill(1, 9)", "os.fork()"):
        assert (call in text) == (call in source)


def test_trust_names_the_lines_with_unusual_characters(
    talk: Callable[..., TalkingServer], capsys: pytest.CaptureFixture[str]
) -> None:
    server = talk("name = '编码器'\nx = 1  # \u202e\npass\n")
    assert main(["trust", "m.yaml", "--server", server.address, "-o", "model.lock"]) == 0
    shown = capsys.readouterr().out
    assert "  evil.py, 3 lines (escaped characters in line 2; characters beyond ASCII in line 1)\n" in shown
    assert_harmless(shown)


@pytest.mark.parametrize(
    "command",
    [
        ["blocks"],
        ["blocks", "x"],
        ["describe", "m.yaml"],
        ["describe", "m.yaml", "--quick"],
        ["build", "m.yaml", "-o", "out"],
        ["trust", "m.yaml"],
        ["doctor", "--timeout", "5"],
        ["doctor", "--timeout", "5", "--json"],
        ["health"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("fails", [False, True])
def test_no_command_shows_foreign_text_as_it_is(
    command: list[str], fails: bool, talk: Callable[..., TalkingServer], capsys: pytest.CaptureFixture[str]
) -> None:
    server = talk()
    server.refused = {"0": FORGED, FORGED: FORGED} if fails and "describe" not in command else {}
    server.status = status_of(FORGED) if fails and command[0] in {"blocks", "build", "describe"} else None
    server.format = FORMAT + 1 if fails and command[0] == "doctor" else FORMAT
    main([*command, "--server", server.address])
    written = capsys.readouterr()
    assert_harmless(written.out)
    assert_harmless(written.err)
    quiet = command[0] == "health" or command[:2] == ["blocks", "x"]
    quiet = quiet or (command[0] in {"build", "describe", "trust"} and not fails)
    assert quiet or "[2K" in written.out + written.err


def status_of(text: str, **metadata: str) -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(reason="BUILD_FAILED", domain=wire.ERROR_DOMAIN)
    info.metadata.update({"component": text, "config_path": json.dumps(["model", text])} | metadata)
    status = status_pb2.Status(code=9, message=text)
    status.details.add().Pack(info)
    return status


@pytest.mark.parametrize(
    "path", ["[" * 5000, "[" * 100 + "]" * 100, "NaN", '["a", NaN]', '["\\ud800"]', json.dumps([EVIL, 1, -7]), "{}"]
)
def test_a_hostile_place_in_an_error(path: str, talk: Callable[..., TalkingServer], tmp_path: Path) -> None:
    """Deep nesting was a RecursionError."""
    server = talk()
    server.status = status_of(FORGED, config_path=path)
    factory = RemoteModelFactory(server.address, cache_dir=tmp_path / "cache", timeout=20)
    for call in (factory.blocks, lambda: factory.build({"config": CONFIG}), lambda: factory.describe({"a": CONFIG})):
        with pytest.raises(ModelFactoryError) as caught:
            call()
        assert_harmless(str(caught.value))
        assert_harmless("".join(traceback.format_exception(caught.value)))


def test_errors_are_bounded(talk: Callable[..., TalkingServer], tmp_path: Path) -> None:
    """gRPC ends an RPC whose metadata is larger than the client accepts."""
    server = talk()
    factory = RemoteModelFactory(server.address, cache_dir=tmp_path / "cache", timeout=20)
    for status in (status_of("x" * 1_000_000), status_of("y" * 3000, **{f"k{n}": "z" * 100 for n in range(1000)})):
        server.status = status
        with pytest.raises(ModelFactoryError) as caught:
            factory.blocks()
        assert len(str(caught.value)) <= 10_000


class Terminal(io.StringIO):
    """A stream that says to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_bars(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "SHOW_AFTER_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    with progress.building([FORGED]) as report:
        report(FORGED, "constructing")
        report("编码器" * 1000, FORGED)
    with progress.downloading(FORGED, 100) as download:
        download.waiting(Holder(pid=1, host=FORGED, doing=FORGED, since=0.0))
        download.received(7)
    shown = terminal.getvalue().replace("\r", "").replace("\x1b[A", "")  # of tqdm itself
    assert "编码器" in shown
    assert_harmless(shown)
    assert_harmless(caplog.messages[0])


@pytest.mark.parametrize("content", [b"\xff", b"[]", b"{}", b'{"pid": 1, "host": 2, "doing": [], "since": "x"}', b"1"])
def test_a_lock_file_of_another_user(content: bytes, tmp_path: Path) -> None:
    """The text of a file with ``since`` as a string was a TypeError in the build of another user."""
    from model_factory.store.named_locks import read_holder  # noqa: PLC0415

    path = tmp_path / "lock"
    path.write_bytes(content)
    assert read_holder(path) is None
    path.write_text(json.dumps({"pid": 1, "host": FORGED, "doing": FORGED, "since": 1.0}))
    assert_harmless(str(read_holder(path)))


def hostile_names() -> Iterator[tuple[str, Callable[[dict[str, Any]], object]]]:
    module = 1
    yield "class", lambda item: item["modules"][module].update(type=EVIL)
    yield "child", lambda item: item["modules"][0]["children"][0].__setitem__(0, EVIL)
    yield "long child", lambda item: item["modules"][0]["children"][0].__setitem__(0, "x" * 100_000)
    yield "parameter", lambda item: item["modules"][module]["parameters"][0].__setitem__(0, EVIL)
    yield "tensor", lambda item: item["tensors"][0].__setitem__(0, EVIL)
    yield "attribute", lambda item: item["modules"][module]["attributes"].append([EVIL, 1])
    yield "text of a stock module", lambda item: item["modules"][module]["attributes"].append(["padding_mode", EVIL])
    program = {"kind": "program", "signature": [], "frozen": []}
    yield "argument", lambda item: item["modules"][0].update(program, signature=[[EVIL, "positional", True, None]])
    yield "method", lambda item: item["modules"][0].update(program, methods=[[EVIL, []]])


CHANGES = dict(hostile_names())


@pytest.mark.parametrize("name", CHANGES)
def test_names_in_a_descriptor_are_visible(name: str) -> None:
    """``repr()`` of a model is torch's, and shows names, class names and texts of attributes unescaped."""
    document = json.loads(encode_descriptor(describe(nn.Sequential(nn.Linear(2, 3)))))
    CHANGES[name](document)
    with pytest.raises(FormatError) as caught:
        decode_descriptor(encode_document(document))
    assert_harmless(str(caught.value))


def test_names_of_every_script_are_names() -> None:
    model = nn.Sequential()
    model.add_module("编码器 👩‍🔬", nn.Linear(2, 3))
    tensors = named_tensors(model, describe(model))
    found = rebuild(decode_descriptor(encode_descriptor(describe(model))), tensors)
    assert "(编码器 👩‍🔬): Linear(" in repr(found)


def test_texts_for_ops_are_visible() -> None:
    """Errors of torch quote such texts unescaped."""
    from model_factory.program.codec.programs import decode_program  # noqa: PLC0415

    step = {"call": "op:torch.nn.functional.interpolate", "args": [{"ref": "x"}], "out": "y"}
    for kwargs in ([["mode", EVIL]], [["size", {"tuple": [1, EVIL]}]], [["size", {"dict": [[EVIL, 1]]}]]):
        with pytest.raises(FormatError):
            decode_program({"inputs": ["x"], "steps": [step | {"kwargs": kwargs}], "result": {"ref": "y"}})


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_log_of_a_server(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure_logging(log_format, "info")
        log = logging.getLogger("x")
        log.info("%s", FORGED, extra=fields(component=FORGED, error=[FORGED], outcomes={FORGED: FORGED}))
        log.error("%s", FORGED, exc_info=ValueError(FORGED))
    finally:
        root.handlers[:], root.level = handlers, level
    written = capsys.readouterr().err
    assert_harmless(written)
    if log_format == "json":
        assert len(written.splitlines()) == 2
    else:
        assert sum(not line.startswith("    ") for line in written.rstrip("\n").split("\n")) == 2


def test_the_reasons_of_a_table_are_bounded() -> None:
    """All cells of a column are as wide as the widest: one long name made each row of the table as long."""
    document = json.loads(encode_descriptor(describe(nn.Sequential(*[nn.Linear(1, 1) for _ in range(200)]))))
    document["modules"][1]["parameters"] = [[f"{'n' * 900}{index}", 0] for index in range(1000)]
    from model_factory.descriptor.architecture import Architecture  # noqa: PLC0415

    assert len(str(Architecture(decode_descriptor(encode_document(document))))) < 500_000


def test_what_workers_print_is_escaped(capfd: pytest.CaptureFixture[str]) -> None:
    """Blocks print, and torch warns, with names and texts of a config."""
    stream = PrintableStream(2)
    print(FORGED, file=stream)
    stream.write(warnings.formatwarning(FORGED, UserWarning, "x.py", 1))
    written = capfd.readouterr().err
    assert written.count("error: forged") == 2
    assert_visible(written)


@pytest.mark.parametrize("error", [RuntimeError(FORGED), KeyError(FORGED), UnicodeError(FORGED), OSError(5, FORGED)])
def test_an_unexpected_error_of_a_command(
    error: Exception,
    talk: Callable[..., TalkingServer],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Python wrote the traceback with the text as it was."""

    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(RemoteModelFactory, "describe", fails)
    assert main(["describe", "m.yaml", "--server", talk().address]) == 1
    written = capsys.readouterr().err
    assert "Traceback (most recent call last)" in written
    assert_harmless(written)


def test_frames_of_torch_stay_out_of_errors() -> None:
    """An error indents its lines; the frames are found all the same."""
    located = errors.BuildError("sizes differ\nException raised from add at /src/add.cpp:7\nframe #0: 0x7f /lib/x.so")
    assert errors.plain_text(located.reason) == "sizes differ"
    assert errors.plain_text(located) == "sizes differ"
