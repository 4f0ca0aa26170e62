"""Checks of blobs that clients report: one hash at a time, and a sound blob is not hashed again and again."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path

import pytest

from model_factory.store import Blob, Store
from model_factory_server.observe.metrics import Metrics
from model_factory_server.observe.rpc_context import RpcContext, enter_rpc
from model_factory_server.rpc import blob_checks
from model_factory_server.rpc.blob_checks import BlobChecks


class CountingStore(Store):
    """Counts hashes, and how many run at the same time."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.hashed: list[str] = []
        self.running = self.most = 0
        self.may_end = threading.Event()

    def verify(self, digest: str) -> bool:
        self.hashed.append(digest)
        self.running += 1
        self.most = max(self.most, self.running)
        self.may_end.wait(30)
        self.running -= 1
        return super().verify(digest)


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    return CountingStore(tmp_path)


def damaged(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("model_factory_store_damaged_blobs_total")


def test_a_sound_blob_is_hashed_once(store: CountingStore) -> None:
    metrics = Metrics()
    blob = store.put(b"sound")
    store.may_end.set()

    async def run() -> None:
        checks = BlobChecks(store, metrics)
        for _ in range(20):
            await checks.check(blob)
        await asyncio.gather(*(checks.check(blob) for _ in range(20)))

    asyncio.run(run())
    assert store.hashed == [blob.digest]
    assert damaged(metrics) == 0


def test_a_sound_blob_is_hashed_again_later(store: CountingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_checks, "SOUND_SECONDS", 0.0)
    blob = store.put(b"sound")
    store.may_end.set()

    async def run() -> None:
        checks = BlobChecks(store, Metrics())
        await checks.check(blob)
        await checks.check(blob)

    asyncio.run(run())
    assert len(store.hashed) == 2


def test_a_damaged_blob_is_removed_and_counted(store: CountingStore) -> None:
    metrics = Metrics()
    blob = store.put(b"sound")
    path = store.find(blob)
    assert path is not None
    found = path.stat()
    path.write_bytes(b"sQund")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    store.may_end.set()

    async def run() -> None:
        checks = BlobChecks(store, metrics)
        await checks.check(blob)
        await checks.check(blob)
        await checks.check(Blob("ab" * 32, 7))

    asyncio.run(run())
    assert not path.exists()
    assert damaged(metrics) == 1


def test_clients_that_leave_do_not_start_more_hashes(store: CountingStore) -> None:
    """A hash goes on in its thread: the thread counts until its end."""
    blobs = [store.put(bytes([number])) for number in range(40)]

    async def run() -> None:
        checks = BlobChecks(store, Metrics())
        for blob in blobs:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(checks.check(blob), 0.01)
            if len(store.hashed) and len(checks._running) >= blob_checks._MAX_WAITING:
                break
        started = time.monotonic()
        await asyncio.wait_for(checks.check(blobs[-1]), 5)  # too many wait: nothing is hashed
        assert time.monotonic() - started < 5
        store.may_end.set()
        await asyncio.wait(checks._running.values())

    asyncio.run(run())
    assert store.most == 1
    assert len(store.hashed) == blob_checks._MAX_WAITING


async def check_as(client: str, checks: BlobChecks, blob: Blob) -> None:
    """Check a blob in an RPC of a client; for a task of its own."""
    enter_rpc(RpcContext(request_id="", method="", client=client))
    await checks.check(blob)


def test_reports_of_one_client_do_not_keep_out_another_client(store: CountingStore) -> None:
    sound = [store.put(bytes([number])) for number in range(40)]
    blob = store.put(b"sound")
    path = store.find(blob)
    assert path is not None
    found = path.stat()
    path.write_bytes(b"sQund")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))

    async def run() -> None:
        checks = BlobChecks(store, Metrics())
        many = [asyncio.create_task(check_as("hostile", checks, item)) for item in sound]
        await asyncio.sleep(0.05)
        names = ("honest", "honest", "another")
        honest = [asyncio.create_task(check_as(name, checks, blob)) for name in names]
        await asyncio.sleep(0.05)
        assert len(checks._running) == blob_checks._MAX_WAITING + 1
        store.may_end.set()
        await asyncio.gather(*many, *honest)
        assert not checks._running
        assert not checks._claims

    asyncio.run(run())
    assert not path.exists()
    assert store.most == 1
    assert len(store.hashed) == blob_checks._MAX_WAITING + 1
    assert blob.digest in store.hashed
