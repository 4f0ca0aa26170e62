"""The build service: concurrent requests for one model share one build."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from model_factory.store import Store
from model_factory_server.backends.identity import BackendIdentity
from model_factory_server.builds.admission import Admission
from model_factory_server.builds.checked_config import CheckedConfig
from model_factory_server.builds.fair_shares import Claim
from model_factory_server.builds.service import BuildRequest, BuildResult, BuildService
from model_factory_server.builds.worker_pool import JobResult, WorkerPool
from model_factory_server.observe.metrics import Metrics
from model_factory_server.observe.spans import Traces
from model_factory_server.settings.server_settings import LimitSettings
from model_factory_server.worker.outputs import BuildOutput
from model_factory_server.worker.task import ArchitectureBlobs, BuildTask

CONFIG = CheckedConfig.parse(b'{"schema_version":1,"model":{"sequential":{"layers":[{"_type_":"nn.ReLU"}]}}}')
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


class BusyPool:
    """A worker pool with shares; a job ends when its event is set."""

    def __init__(self, store: Store, admission: Admission) -> None:
        self._store = store
        self._admission = admission
        self.go = asyncio.Event()
        self.running: list[bytes] = []

    async def run(self, task: BuildTask, *_: Any, claim: Claim, **__: Any) -> JobResult[BuildOutput]:
        async with self._admission.worker(claim):
            self.running.append(task.config)
            if task.config == CONFIG.wire:
                await self.go.wait()
        put = self._store.put
        architecture = ArchitectureBlobs(
            descriptor=put(b"descriptor"), programs=put(b"programs"), source=None, placement=None
        )
        return JobResult(BuildOutput(architecture=architecture, weights=put(b"weights")), ())


def test_a_joined_build_takes_the_best_share_of_its_clients(tmp_path: Path) -> None:
    """A client at its bound has queued a build; another client joins the build, and need not wait for the first."""
    other = CheckedConfig.parse(b'{"schema_version":1,"model":{"sequential":{"layers":[{"_type_":"nn.Tanh"}]}}}')
    queued = BuildRequest(config=other, dtype="", client="greedy")

    async def scenario() -> None:
        store = Store(tmp_path)
        admission = Admission(LimitSettings(max_builds_per_client=1), 2)
        pool = BusyPool(store, admission)
        service = BuildService(store, BACKEND, cast("WorkerPool", pool), Metrics(), Traces())

        def build(request: BuildRequest, client: str) -> asyncio.Task[BuildResult]:
            return asyncio.create_task(service.build(replace(request, client=client), "m", 1, lambda _stage: None))

        tasks = [build(REQUEST, "greedy")]
        async with asyncio.timeout(10):
            while not pool.running:  # noqa: ASYNC110  of the service under test, which sets no event
                await asyncio.sleep(0.01)
            tasks.append(build(queued, "greedy"))
            while not admission.waiting:  # noqa: ASYNC110  the same
                await asyncio.sleep(0.01)
            await build(queued, "modest")
        assert not tasks[0].done()
        assert (await tasks[1]).weights
        pool.go.set()
        await tasks[0]

    asyncio.run(scenario())
