"""A small compressed message that is large in memory: refused before a byte is decompressed, on both sides."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from model_factory.documents import FORMAT
from model_factory.limits import MIB
from model_factory.v1 import capabilities_pb2
from support.server import ServerProcess, running_server

BOMB = bytes(64 * MIB)  # decompressed, more than the bound of the tests
MAX_MIB = 40
SERVICE = "/model_factory.v1.ModelFactoryService/"
ALGORITHMS = [grpc.Compression.Gzip, grpc.Compression.Deflate]
UNBOUNDED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


class CompressingServer(grpc.GenericRpcHandler):
    """Answers everything but the first question with a bomb."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method.removeprefix(SERVICE)
        if method == "GetCapabilities":
            first = capabilities_pb2.GetCapabilitiesResponse(server_version="0", format_version=FORMAT)
            return grpc.unary_unary_rpc_method_handler(self._first(first.SerializeToString()))
        if method in {"BuildModels", "ReadBlob"}:
            return grpc.unary_stream_rpc_method_handler(lambda _request, _context: iter([BOMB]))
        return grpc.unary_unary_rpc_method_handler(lambda _request, _context: BOMB)

    @staticmethod
    def _first(answer: bytes) -> Any:
        def respond(_request: bytes, context: grpc.ServicerContext) -> bytes:
            context.set_compression(grpc.Compression.NoCompression)
            return answer

        return respond


@pytest.fixture(params=ALGORITHMS, ids=lambda item: item.name)
def compressing(request: pytest.FixtureRequest) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2), options=UNBOUNDED, compression=request.param)
    server.add_generic_rpc_handlers((CompressingServer(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


TRAINER = """
import resource, sys
from model_factory import ModelFactoryError, RemoteModelFactory
from model_factory.client.connection import Connection
from model_factory.v1 import blob_pb2
import grpc
config = {"schema_version": 1, "model": {"sequential": {"layers": [{"_type_": "nn.PReLU"}]}}}
factory = RemoteModelFactory(sys.argv[1], cache_dir=sys.argv[2], timeout=60)
calls = [
    lambda: factory.blocks(),
    lambda: factory.build({"config": config}),
    lambda: factory.describe({"config": config}),
    lambda: list(factory._connection.read_blob(blob_pb2.ReadBlobRequest())),
]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
factory._connection.capabilities()
before = peak()
for call in calls:
    try:
        call()
    except (ModelFactoryError, grpc.RpcError):
        pass
    else:
        raise SystemExit("answered")
print((peak() - before) // 1024)
"""


def test_a_trainer_decompresses_nothing(compressing: str, tmp_path: Path) -> None:
    """A response of 1 MB became 1 GiB, eight times the limit of a message, before the check of its size."""
    (tmp_path / "trainer.py").write_text(TRAINER, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "trainer.py"), compressing, str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < MAX_MIB, "MiB that bombs of 64 MiB take"


def peak_kib(pid: int) -> int:
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return int(found[1])


@pytest.fixture(scope="module")
def fresh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running_server(tmp_path_factory.mktemp("compressed") / "store") as process:
        yield process


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda item: item.name)
def test_a_server_decompresses_nothing(fresh_server: ServerProcess, algorithm: grpc.Compression) -> None:
    before = peak_kib(fresh_server.pid)
    with grpc.insecure_channel(fresh_server.address, options=UNBOUNDED, compression=algorithm) as channel:
        for method in ("DescribeModels", "ListBlocks", "RecordProgram"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"{SERVICE}{method}")(BOMB, timeout=60)
            assert "is disabled" in str(caught.value.details())
        with pytest.raises(grpc.RpcError):
            list(channel.unary_stream(f"{SERVICE}BuildModels")(BOMB, timeout=60))
    assert peak_kib(fresh_server.pid) - before < MAX_MIB * 1024
    with grpc.insecure_channel(fresh_server.address) as channel:  # still there for others
        answer = channel.unary_unary(f"{SERVICE}GetCapabilities")(b"", timeout=30)
    assert capabilities_pb2.GetCapabilitiesResponse.FromString(answer).format_version == FORMAT
