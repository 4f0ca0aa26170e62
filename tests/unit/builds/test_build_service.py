"""The build service: concurrent requests for one model share one build."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from model_factory.config import parse_config
from model_factory.store import Store
from model_factory_server.backends.identity import BackendIdentity
from model_factory_server.builds.service import BuildRequest, BuildResult, BuildService
from model_factory_server.builds.worker_pool import JobResult, WorkerPool
from model_factory_server.observe.metrics import Metrics
from model_factory_server.observe.spans import Traces
from model_factory_server.worker.outputs import BuildOutput
from model_factory_server.worker.task import ArchitectureBlobs

CONFIG = parse_config(b'{"schema_version":1,"model":{"sequential":{"layers":[{"_type_":"nn.ReLU"}]}}}')
BACKEND = BackendIdentity(
    name="builtin", version="", code_digest="0" * 64, torch_version="2.8", device_kind="cpu", code_stamp=""
)
REQUEST = BuildRequest(config=CONFIG, dtype="", client="")


class Pool:
    """A worker pool whose jobs put three blobs into the store, after another lookup has found nothing."""

    def __init__(self, store: Store, looked: threading.Event) -> None:
        self.jobs = 0
        self.started = asyncio.Event()
        self._store = store
        self._looked = looked

    async def run(self, *_: Any, **__: Any) -> JobResult[BuildOutput]:
        self.jobs += 1
        self.started.set()
        await asyncio.to_thread(self._looked.wait, 10.0)
        put = self._store.put
        architecture = ArchitectureBlobs(
            descriptor=put(b"descriptor"), programs=put(b"programs"), source=None, placement=None
        )
        return JobResult(BuildOutput(architecture=architecture, weights=put(b"weights")), ())


def test_a_lookup_that_returns_after_the_build_causes_no_second_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, looked, built = Store(tmp_path), threading.Event(), threading.Event()
    pool = Pool(store, looked)
    service = BuildService(store, BACKEND, cast("WorkerPool", pool), Metrics(), Traces())
    look_up, late = service._records._look_up, threading.Event()

    def look_up_late(base_key: str, record_type: Any) -> Any:
        found = look_up(base_key, record_type)
        if late.is_set() and not looked.is_set():
            looked.set()
            built.wait(10.0)
        return found

    async def build() -> BuildResult:
        result = await service.build(REQUEST, "m", 1, lambda _stage: None)
        built.set()
        return result

    async def build_twice() -> list[BuildResult]:
        first = asyncio.create_task(build())
        await pool.started.wait()
        late.set()
        return await asyncio.gather(first, build())

    monkeypatch.setattr(service._records, "_look_up", look_up_late)
    first, second = asyncio.run(build_twice())
    assert pool.jobs == 1
    assert first.weights == second.weights
    assert first.key == second.key
