"""What a client must not get to see: the server's variables, files, paths, tracebacks and other people's blobs."""

from __future__ import annotations

import json
from concurrent import futures
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from model_factory import (
    FormatError,
    MissingBlobError,
    ModelFactoryError,
    RangeError,
    RemoteModelFactory,
    ServerError,
)
from model_factory.client.connection import RETRY_ATTEMPTS, Connection
from model_factory.v1 import blob_pb2, build_pb2, program_pb2, service_pb2_grpc
from support.configs import layers
from support.guarded import CANARY
from support.server import ServerProcess
from support.wire import built_from

LINEAR = {"_type_": "nn.Linear", "in_features": 2, "out_features": 2}
ASKING: dict[str, Any] = {
    "a variable": layers(LINEAR | {"out_features": "${env:CANARY_SECRET}"}),
    "a variable, cast": layers(LINEAR | {"in_features": "${env:int:CANARY_SECRET}"}),
    "a variable as a type": layers({"_type_": "${env:CANARY_SECRET}"}),
    "a file": {"config_path": "/etc/passwd"},
    "files below": layers(LINEAR) | {"defaults": ["/etc/passwd"]},
    "a file as a template": layers({"_template_": "/etc/passwd"}) | {"templates": {"x": LINEAR}},
    "an error with a path": layers({"_type_": "hostile.FillsTheDisk", "path": "/nowhere/at/all"}),
    "a bug in a block": layers({"_type_": "hostile.Tells", "what": "nothing_of_that_name"}),
    "a parameter": layers(LINEAR | {"in_features": "${params.secret}"}) | {"params": {"secret": 3}},
}


def test_answers_tell_nothing(attacked: RemoteModelFactory, guarded: ServerProcess) -> None:
    """Sent as they are, past the client's own checks."""
    said: list[str] = []
    with grpc.insecure_channel(guarded.address) as channel:
        stub = service_pb2_grpc.ModelFactoryServiceStub(channel)
        for what, config in ASKING.items():
            component = build_pb2.Component(name="m", config_json=json.dumps(config).encode())
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.BuildModels(build_pb2.BuildModelsRequest(components=[component]), timeout=60))
            code = caught.value.code()
            assert code in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION}, (what, code)
            metadata = caught.value.trailing_metadata() or ()
            said += [caught.value.details() or "", *(repr(value) for _, value in metadata)]
    said.append(guarded.metrics_page())
    assert "grpc_server_handled_total" in said[-1]
    for text in said:
        for secret in (CANARY, "root:", str(guarded.store.parent), "Traceback", 'File "/', "site-packages"):
            assert secret not in text, text
    assert CANARY not in guarded.log


def test_what_torch_adds_to_its_errors_stays_here(attacked: RemoteModelFactory, guarded: ServerProcess) -> None:
    """Frames of C++, with addresses and the paths of libraries."""
    with pytest.raises(ModelFactoryError) as built:
        attacked.build({"config": layers({"_type_": "nn.Linear", "in_features": 2, "out_features": 2**127})})
    config = layers({"_type_": "mlp", "dims": [4, 2]})
    component = build_pb2.Component(name="m", config_json=json.dumps(config).encode())
    call = b'{"call_signature":[["x",{"tensor":2}]],"tensors":[{"dtype":"float32","shape":[1180591620717411303424,0]}]}'
    request = program_pb2.RecordProgramRequest(
        component=component,
        module_path="graph_modules.layer0",
        call_json=call,
        build=built_from(guarded.address, config),
    )
    with grpc.insecure_channel(guarded.address) as channel, pytest.raises(grpc.RpcError) as recorded:
        service_pb2_grpc.ModelFactoryServiceStub(channel).RecordProgram(request, timeout=60)
    for text in (str(built.value), recorded.value.details() or ""):
        assert "verflow" in text or "too large" in text or "malformed" in text, text
        for private in ("frame #", "Exception raised from", "0x", ".so", "site-packages"):
            assert private not in text


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "../../../etc/passwd",
        "/etc/passwd",
        "." * 64,
        "../" * 21 + "a",
        "A" * 64,
        "g" * 64,
        "a" * 63 + "\0",
        "a" * 65,
    ],
)
def test_a_digest_is_never_a_path(digest: str, guarded: ServerProcess) -> None:
    with grpc.insecure_channel(guarded.address) as channel:
        stub = service_pb2_grpc.ModelFactoryServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            list(
                stub.ReadBlob(
                    blob_pb2.ReadBlobRequest(digest=blob_pb2.Digest(blake3=digest, size_bytes=10)), timeout=10
                )
            )
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_request_for_bytes_that_are_not_there(attacked: RemoteModelFactory, guarded: ServerProcess) -> None:
    attacked.build({"config": layers(LINEAR)})
    some = next(path for path in (guarded.store / "blobs").rglob("*/*"))
    size = some.stat().st_size
    with grpc.insecure_channel(guarded.address) as channel:
        stub = service_pb2_grpc.ModelFactoryServiceStub(channel)
        for asked, offset, limit, status, error in (
            (size, size + 1, 0, "OUT_OF_RANGE", RangeError),
            (size, -1, 0, "OUT_OF_RANGE", RangeError),
            (size, 0, -1, "OUT_OF_RANGE", RangeError),
            (2**62, 2**61, 0, "NOT_FOUND", MissingBlobError),
            (-5, 0, 0, "INVALID_ARGUMENT", FormatError),
        ):
            digest = blob_pb2.Digest(blake3=some.name, size_bytes=asked)
            request = blob_pb2.ReadBlobRequest(digest=digest, offset_bytes=offset, limit_bytes=limit)
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.ReadBlob(request, timeout=10))
            assert caught.value.code().name == status
            assert any(detail.Is(ErrorInfo.DESCRIPTOR) for detail in rpc_status.from_call(caught.value).details)
            link = Connection(guarded.address)
            with pytest.raises(ModelFactoryError) as told, link.errors():
                list(link.read_blob(request))
            link.close()
            assert type(told.value) is error
            if error is RangeError:
                assert f"offset {offset} and limit {limit} are out of range for a blob of {size} bytes" in str(
                    told.value
                )
        digest = blob_pb2.Digest(blake3=some.name, size_bytes=size)
        request = blob_pb2.ReadBlobRequest(digest=digest, limit_bytes=2**62)
        assert sum(len(answer.data) for answer in stub.ReadBlob(request, timeout=10)) == size


def test_a_module_path_is_not_an_attribute_path(attacked: RemoteModelFactory, guarded: ServerProcess) -> None:
    """``RecordProgram`` looks modules up, and nothing else that Python would find."""
    component = build_pb2.Component(name="m", config_json=json.dumps(layers(LINEAR)).encode())
    call = b'{"call_signature":[["x",{"tensor":2}]],"tensors":[{"dtype":"float32","shape":[1,2]}]}'
    built = built_from(guarded.address, layers(LINEAR))
    with grpc.insecure_channel(guarded.address) as channel:
        stub = service_pb2_grpc.ModelFactoryServiceStub(channel)
        for path in ("__class__", "graph_modules.layer0.weight", "\u00e9" * 9999):
            request = program_pb2.RecordProgramRequest(
                component=component, module_path=path, call_json=call, build=built
            )
            with pytest.raises(grpc.RpcError) as caught:
                stub.RecordProgram(request, timeout=60)
            assert caught.value.code() in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION}, path
            assert "Traceback" not in (caught.value.details() or "")


def test_only_what_may_be_repeated_is() -> None:
    """A call is tried again when the server could not be reached, and for no other answer."""
    asked: list[str] = []

    class Refuses(service_pb2_grpc.ModelFactoryServiceServicer):
        code = grpc.StatusCode.UNAVAILABLE

        def GetCapabilities(self, _request: Any, context: Any) -> Any:  # noqa: N802
            asked.append(self.code.name)
            context.abort(self.code, "no")

    server = grpc.server(futures.ThreadPoolExecutor(2))
    refuses = Refuses()
    service_pb2_grpc.add_ModelFactoryServiceServicer_to_server(refuses, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        for code in grpc.StatusCode:
            if code is grpc.StatusCode.OK:
                continue
            refuses.code = code
            link = Connection(f"127.0.0.1:{port}", timeout=20)
            with pytest.raises(ModelFactoryError) as caught:
                link.capabilities()
            assert isinstance(caught.value, ServerError)
            link.close()
            assert asked.count(code.name) == (RETRY_ATTEMPTS if code is grpc.StatusCode.UNAVAILABLE else 1), code
    finally:
        server.stop(None)
