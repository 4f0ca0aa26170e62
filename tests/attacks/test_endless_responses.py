"""A server that never comes to an end: by hints when to retry, by progress, by streams that break after each byte."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from model_factory import RemoteModelFactory, ServerError, UnavailableError
from model_factory.client import fetch, retry
from model_factory.client.connection import RETRY_ATTEMPTS, Connection
from model_factory.client.fetch import fetch_blob
from model_factory.store import Blob, Store
from model_factory.v1 import blob_pb2, build_pb2
from support.configs import layers
from support.hostile_server import HostileServer

PRELU = layers({"_type_": "nn.PReLU"})
YEAR = str(365 * 86400 * 1000)
BYTES = bytes(1000)


class Endless(HostileServer):
    """Answers in the way of a test."""

    def __init__(self) -> None:
        super().__init__(b"", b"", b"", {})
        self.hint = ""
        """When to retry, in milliseconds, as gRPC reads the hint; empty: no hint."""
        self.begins = False
        self.calls = 0

    def _refuse(self, context: Any) -> None:
        self.calls += 1
        metadata = (("grpc-retry-pushback-ms", self.hint),) if self.hint else ()
        context.set_trailing_metadata((*metadata, ("retry-after", YEAR)))
        context.abort(grpc.StatusCode.UNAVAILABLE, "later")

    def ListBlocks(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        self._refuse(context)

    def DescribeModels(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        self._refuse(context)

    def BuildModels(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: ARG002, N802
        if self.begins:
            yield build_pb2.BuildModelsResponse(progress=build_pb2.BuildProgress(component="model"))
        if self.hint:
            self._refuse(context)
        while context.is_active():
            self.calls += 1
            yield build_pb2.BuildModelsResponse(progress=build_pb2.BuildProgress(component="model"))

    def ReadBlob(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: ARG002, N802
        yield blob_pb2.ReadBlobResponse(data=b"\0")
        self._refuse(context)


@pytest.fixture
def endless() -> Iterator[Endless]:
    server = Endless()
    yield server
    server.close()


@pytest.mark.parametrize("hint", [YEAR, "0", "-1", "-9223372036854775808", "nan", "1e18", "99999999999999999999"])
@pytest.mark.parametrize("call", ["blocks", "describe", "build", "begun build"])
def test_no_hint_makes_a_client_wait(hint: str, call: str, endless: Endless, tmp_path: Path) -> None:
    """gRPC waited a year, without a connection; and for ever after the hint 0."""
    endless.hint, endless.begins = hint, call.startswith("begun")
    factory = RemoteModelFactory(endless.address, cache_dir=tmp_path)
    started = time.monotonic()
    with pytest.raises(UnavailableError, match="later"):
        {"blocks": factory.blocks, "describe": lambda: factory.describe({"config": PRELU})}.get(
            call, lambda: factory.build({"config": PRELU})
        )()
    assert endless.calls == RETRY_ATTEMPTS
    assert time.monotonic() - started < 20


def test_a_deadline_covers_all_attempts(endless: Endless, tmp_path: Path) -> None:
    endless.hint = YEAR
    factory = RemoteModelFactory(endless.address, cache_dir=tmp_path, timeout=0.3)
    with pytest.raises(UnavailableError):
        factory.blocks()
    assert endless.calls < RETRY_ATTEMPTS


def test_progress_has_an_end(endless: Endless, tmp_path: Path) -> None:
    """Progress of one build was read for ever."""
    with pytest.raises(ServerError, match="reports progress without end"):
        RemoteModelFactory(endless.address, cache_dir=tmp_path).build({"config": PRELU})
    time.sleep(1.0)
    calls = endless.calls
    time.sleep(1.0)
    assert endless.calls == calls, "the RPC goes on"


def test_a_byte_is_no_progress(endless: Endless, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte renewed the patience: a large blob took years."""
    monkeypatch.setattr(retry, "RESUME_SECONDS", 0.5)
    connection = Connection(endless.address, timeout=20)
    with pytest.raises(UnavailableError, match="later"):
        fetch_blob(connection, Store(tmp_path / "cache"), Blob.of(BYTES))
    assert endless.calls < 10
    assert len(BYTES) < fetch.PROGRESS_BYTES
    connection.close()
