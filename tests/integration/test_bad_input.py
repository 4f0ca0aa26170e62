"""Every mistake of a trainer is an error of ours that names the place, and the server lives on."""

from __future__ import annotations

import itertools
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from model_factory import (
    BuildError,
    ConfigError,
    LimitError,
    ModelFactoryError,
    RemoteModelFactory,
    ServerError,
    UnavailableError,
)
from model_factory.v1 import build_pb2, capabilities_pb2, program_pb2, service_pb2_grpc
from model_factory_server import PolicyConstructorModelFactory
from support.configs import layers
from support.server import ServerProcess
from support.wire import built_from

MakeRemote = Callable[..., RemoteModelFactory]

_fresh = itertools.count(1)


@pytest.fixture(autouse=True)
def _server_still_builds(server: ServerProcess, make_remote: MakeRemote) -> Iterator[None]:
    """After each test here the same server process builds something that it has never built before."""
    yield
    width = next(_fresh)
    layer = {"_type_": "nn.Linear", "in_features": 3, "out_features": width}
    model = make_remote(seed=width).build(
        {"config": {"schema_version": 1, "model": {"sequential": {"layers": [layer]}}}}
    )
    assert model(torch.zeros(1, 3)).shape == (1, width)
    assert server.alive


GOOD = """\
schema_version: 1
model:
  graph:
    inputs: [x]
    modules:
      first: {_type_: nn.Linear, in_features: 3, out_features: 3}
      second:
        _type_: mlp
        dims: [3, 4]
    steps:
      - {call: module:first, args: [$x], out: a}
      - {call: module:second, args: [$a], out: b}
      - {call: op:torch.relu, args: [$b], out: c}
    outputs: [c]
"""

# What is wrong: the change to the good file, where it is then, and what the message has to say.
MISTAKES: dict[str, tuple[str, str, str, str]] = {
    "unknown type": ("_type_: mlp", "_type_: mpl", "8:17", r"Unknown module type 'mpl'.*did you mean 'mlp'"),
    "unknown torch type": ("nn.Linear", "nn.Linera", "6:23", r"Unknown module type 'nn.Linera'.*'nn.Linear'"),
    "unknown argument": (
        "in_features",
        "in_featrues",
        "6:47",
        r"Unknown kwargs for 'nn.Linear': 'in_featrues'.*did you mean 'in_features'",
    ),
    "missing argument": (", out_features: 3", "", "6:14", r"missing a required argument: 'out_features'"),
    "unknown op": ("op:torch.relu", "op:torch.rleu", "13:16", r"Unknown op 'torch.rleu'.*did you mean"),
    "unknown module": ("module:second", "module:secnod", "12:16", r"Unknown module 'secnod'.*did you mean 'second'"),
    "forward reference": ("args: [$x]", "args: [$b]", "11:37", r"Forward reference: '\$b'"),
    "unknown value": ("args: [$x]", "args: [$y]", "11:37", r"Unknown value '\$y'"),
    "reused name": ("out: b", "out: a", "12:48", r"collision"),
    "refused value": ("dims: [3, 4]", "dims: [3, 0]", "8:9", r"dims\[1\] must be a positive integer, got 0"),
    "refused value of torch": ("out_features: 3", "out_features: three", "6:14", r"'nn.Linear': .*"),
    "wrong type of value": ("dims: [3, 4]", "dims: 3", "8:9", r"dims must be a list"),
    "wrong version": ("schema_version: 1", "schema_version: 2", "1:17", r"must be 1, found the number 2"),
    "no version": ("schema_version: 1\n", "", "1:1", r"'schema_version' is required"),
    "interpolation cycle": (
        "schema_version: 1",
        "schema_version: 1\nparams: {a: '${params.b}', b: '${params.a}'}",
        "2:1[0-9]",
        r"Interpolation cycle detected",
    ),
    "unknown reference": ("in_features: 3", "in_features: '${params.width}'", "6:47", r"params"),
    "missing variable": ("in_features: 3", "in_features: '${env:int:NO_SUCH_VARIABLE}'", "6:47", r"NO_SUCH_VARIABLE"),
    "duplicate key": ("_type_: mlp", "_type_: mlp\n        _type_: mlp", "9:9", r"Duplicate mapping key"),
    "not YAML": ("outputs: [c]", "outputs: [c", r"\d+:\d+", r"not valid YAML"),
    "missing defaults": (
        "schema_version: 1",
        "schema_version: 1\ndefaults: [nowhere.yaml]",
        "2:12",
        r"cannot read.*nowhere\.yaml",
    ),
    "reserved key": ("_type_: mlp", "_type_: mlp\n        _strict_: 1", "9:19", r"Unknown reserved keys"),
    "target": ("_type_: mlp", "_target_: os.system", "8:19", r"_target_ is not allowed"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_in_a_file_is_named_with_its_place(what: str, make_remote: MakeRemote, tmp_path: Path) -> None:
    old, new, place, message = MISTAKES[what]
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    path = tmp_path / "model.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        make_remote().build({"good": _write(tmp_path / "good.yaml", GOOD), "bad": path})
    assert re.match(rf"{re.escape(str(path))}:({place}): .*{message}", str(caught.value), re.DOTALL), str(caught.value)


def test_the_good_file_is_good(make_remote: MakeRemote, tmp_path: Path) -> None:
    assert make_remote().build({"config_path": _write(tmp_path / "good.yaml", GOOD)})(torch.ones(2, 3)).shape == (2, 4)


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_the_place_is_in_the_file_that_has_the_mistake(make_remote: MakeRemote, tmp_path: Path) -> None:
    base = _write(tmp_path / "base.yaml", GOOD.replace("dims: [3, 4]", "dims: [3, 0]"))
    child = _write(tmp_path / "child.yaml", "defaults: [base.yaml]\n")
    with pytest.raises(ConfigError, match=rf"{re.escape(str(base))}:8:9: "):
        make_remote().build({"config_path": child})
    child.write_text("defaults: [base.yaml]\nmodel: {graph: {modules: {second: {dims: [3, -1]}}}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"dims\[1\] must be a positive integer, got -1"):
        make_remote().build({"config_path": child})


def test_a_cycle_of_files(make_remote: MakeRemote, tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
        _write(tmp_path / f"{name}.yaml", f"defaults: [{other}.yaml]\n")
    with pytest.raises(
        ConfigError, match=r"c\.yaml:1:12: defaults include cycle detected: .*a\.yaml.*b\.yaml.*c\.yaml"
    ):
        make_remote().build({"config_path": tmp_path / "a.yaml"})


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "unreadable"])
def test_a_file_that_cannot_be_read(kind: str, make_remote: MakeRemote, tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "unreadable":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        make_remote().build({"config_path": path})


def test_a_variable_that_cannot_be_cast(
    make_remote: MakeRemote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_WIDTH", "three")
    path = _write(tmp_path / "model.yaml", GOOD.replace("in_features: 3", "in_features: '${env:int:TEST_WIDTH}'"))
    with pytest.raises(ConfigError, match=rf"{re.escape(str(path))}:6:47: .*TEST_WIDTH"):
        make_remote().build({"config_path": path})


def of_layers(*specs: Any) -> dict[str, Any]:
    return {"config": layers(*specs)}


def test_a_constructor_that_fails_otherwise(make_remote: MakeRemote) -> None:
    # A negative size makes torch raise a RuntimeError, which is neither a TypeError nor a ValueError.
    with pytest.raises(BuildError, match=r"model\.sequential\.layers\[0\].*'nn\.Linear'"):
        make_remote().build(of_layers({"_type_": "nn.Linear", "in_features": -1, "out_features": 2}))


def test_a_constructor_that_fails_is_named_with_its_place_too(make_remote: MakeRemote, tmp_path: Path) -> None:
    bad = _write(tmp_path / "bad.yaml", GOOD.replace("in_features: 3", "in_features: -3"))
    good = _write(tmp_path / "good.yaml", GOOD)
    texts = []
    for factory in (make_remote(), PolicyConstructorModelFactory()):
        with pytest.raises(BuildError, match=rf"^{re.escape(str(bad))}:6:14: model\.graph\.modules\.first: ") as caught:
            factory.build({"good": good, "bad": bad})
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


def test_a_model_over_the_servers_limit(start_server: Callable[..., ServerProcess], make_remote: MakeRemote) -> None:
    small = start_server(None, "--max-weights-bytes", "1MiB")
    factory = make_remote(small.address)
    with pytest.raises(LimitError, match=r"\d+ bytes of weights; this server builds at most 1048576"):
        factory.build(of_layers({"_type_": "nn.Linear", "in_features": 1024, "out_features": 1024}))
    assert factory.build(of_layers({"_type_": "nn.Linear", "in_features": 64, "out_features": 64})) is not None
    assert not list((small.store / "staging").iterdir())
    assert small.stop() == 0


def test_a_build_that_takes_too_long(start_server: Callable[..., ServerProcess], make_remote: MakeRemote) -> None:
    hurried = start_server(None, "--build-timeout", "0.05")
    with pytest.raises(LimitError, match=r"longer than the 0\.05 seconds"):
        make_remote(hurried.address).build(
            of_layers({"_type_": "nn.Linear", "in_features": 9000, "out_features": 9000})
        )
    assert hurried.alive
    assert hurried.workers() == set()
    assert hurried.stop() == 0


def test_no_server_at_the_address(make_remote: MakeRemote) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(UnavailableError, match=rf"127\.0\.0\.1:{port} cannot be reached"):
        make_remote(f"127.0.0.1:{port}").build(of_layers({"_type_": "nn.ReLU"}))


@pytest.mark.parametrize("address", ["", "nonsense", "127.0.0.1:notaport", "127.0.0.1:99999", "no-such-host.invalid:1"])
def test_a_wrong_address(address: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFactoryError):
        RemoteModelFactory(address, cache_dir=tmp_path).build(of_layers({"_type_": "nn.ReLU"}))


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 64], ids=["hangs up", "a web server", "noise"]
)
def test_something_else_at_the_address(answer: bytes, make_remote: MakeRemote) -> None:
    """A web server, say, or one that hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    client.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ServerError, match=re.escape(address)):
            make_remote(address, timeout=15).build(of_layers({"_type_": "nn.ReLU"}))
        listener.shutdown(socket.SHUT_RDWR)


def test_a_server_that_never_answers(make_remote: MakeRemote) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UnavailableError, match=r"did not respond in time|cannot be reached"):
            make_remote(address, timeout=1.0).build(of_layers({"_type_": "nn.ReLU"}))


@pytest.fixture
def stub(server: ServerProcess) -> Iterator[Any]:
    with grpc.insecure_channel(server.address) as channel:
        yield service_pb2_grpc.ModelFactoryServiceStub(channel)


def component(config: bytes = b"{}", name: str = "model") -> build_pb2.Component:
    return build_pb2.Component(name=name, config_json=config)


WIRE_NONSENSE: dict[str, tuple[str, Any, grpc.StatusCode]] = {
    "no components": ("BuildModels", build_pb2.BuildModelsRequest(), grpc.StatusCode.INVALID_ARGUMENT),
    "no name": (
        "BuildModels",
        build_pb2.BuildModelsRequest(components=[component(name="")]),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "a long name": (
        "BuildModels",
        build_pb2.BuildModelsRequest(components=[component(name="n" * 256)]),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "a name twice": (
        "BuildModels",
        build_pb2.BuildModelsRequest(components=[component(), component()]),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "not JSON": (
        "BuildModels",
        build_pb2.BuildModelsRequest(components=[component(b"{")]),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "not UTF-8": (
        "BuildModels",
        build_pb2.BuildModelsRequest(components=[component(b'{"\xff": 1}')]),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "deep": (
        "BuildModels",
        build_pb2.BuildModelsRequest(components=[component(b"[" * 100_000)]),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ),
    "a strange dtype": (
        "BuildModels",
        build_pb2.BuildModelsRequest(components=[component()], dtype="int8"),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "describe not JSON": (
        "DescribeModels",
        build_pb2.DescribeModelsRequest(components=[component(b"nope")]),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "a call that is not JSON": (
        "RecordProgram",
        program_pb2.RecordProgramRequest(
            component=component(
                b'{"schema_version":1,"model":{"sequential":{"layers":[{"_type_":"mlp","dims":[2,2]}]}}}'
            ),
            module_path="graph_modules.layer0",
            call_json=b"{",
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "a module that is not there": (
        "RecordProgram",
        program_pb2.RecordProgramRequest(
            component=component(
                b'{"schema_version":1,"model":{"sequential":{"layers":[{"_type_":"mlp","dims":[2,2]}]}}}'
            ),
            module_path="graph_modules.nowhere",
            call_json=b'{"call_signature":[["x",{"tensor":2}]],"tensors":[{"dtype":"float32","shape":[1,2]}]}',
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "a call of no build": (
        "RecordProgram",
        program_pb2.RecordProgramRequest(
            component=component(
                b'{"schema_version":1,"model":{"sequential":{"layers":[{"_type_":"mlp","dims":[2,2]}]}}}'
            ),
            module_path="graph_modules.layer0",
            call_json=b'{"call_signature":[["x",{"tensor":2}]],"tensors":[{"dtype":"float32","shape":[1,2]}]}',
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
}


@pytest.mark.parametrize("what", WIRE_NONSENSE)
def test_nonsense_on_the_wire(what: str, stub: Any, server: ServerProcess) -> None:
    method, request, code = WIRE_NONSENSE[what]
    if method == "RecordProgram" and what != "a call of no build":
        request.build.CopyFrom(built_from(server.address, json.loads(request.component.config_json)))
    with pytest.raises(grpc.RpcError) as caught:
        _ask(getattr(stub, method), request)
    assert caught.value.code() == code, caught.value.details()
    assert "Traceback" not in caught.value.details()


def _ask(method: Any, request: Any) -> list[Any]:
    answer = method(request, timeout=60)
    return list(answer if hasattr(answer, "__iter__") else [answer])


def test_the_capabilities_are_those_of_this_server(stub: Any) -> None:
    answer = stub.GetCapabilities(capabilities_pb2.GetCapabilitiesRequest())
    assert answer.backend.torch_version == torch.__version__
    assert answer.device_kind == "cpu"
    assert answer.limits.components == 256
