"""Jobs in progress: equal requests at the same time share a job."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from model_factory_server.builds.fair_shares import Claim
from model_factory_server.builds.worker_pool import StageCallback
from model_factory_server.observe.jobs import JobWatch
from model_factory_server.observe.metrics import Metrics
from model_factory_server.observe.spans import Traces
from model_factory_server.worker.stages import Stage

T = TypeVar("T")

Work = Callable[[StageCallback, Claim], Coroutine[Any, Any, T]]
"""Does a job with the worker of a claim; calls its first argument with every stage of the job."""


def ignore_stages(_stage: Stage) -> None:
    """Do nothing: the default stage callback."""


class _InFlightBuild:
    """A job in progress, and the callbacks of the waiting requests."""

    def __init__(self, watch: JobWatch, work: Work[Any], client: str) -> None:
        self._watch = watch
        self.callbacks: list[StageCallback] = []
        self.stage = Stage.QUEUED
        self.claim = Claim(client)
        self.task = asyncio.create_task(work(self._enter, self.claim))
        self.task.add_done_callback(watch.end)

    def _enter(self, stage: Stage) -> None:
        self.stage = stage
        self._watch.stage(stage)
        for callback in self.callbacks:
            callback(stage)


class InFlightJobs:
    """All jobs in progress, by key."""

    def __init__(self, metrics: Metrics, traces: Traces) -> None:
        self._metrics = metrics
        self._traces = traces
        self._jobs: dict[str, _InFlightBuild] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._jobs

    async def join_or_start(
        self, kind: str, key: str, work: Work[T], client: str, on_stage: StageCallback = ignore_stages
    ) -> T:
        """Wait for the job under a key, started here unless in progress; all waiting requests share its outcome.

        A queued job gets a worker as soon as the share of any client that waits for the job allows. The job is
        cancelled once the last waiting request is cancelled.
        """
        job = self._jobs.get(key)
        if job is None:
            job = self._jobs[key] = _InFlightBuild(JobWatch(self._metrics, self._traces, kind, key), work, client)
            job.task.add_done_callback(lambda _task: self._forget(key, job))
        else:
            job.claim.join(client)
        on_stage(job.stage)
        job.callbacks.append(on_stage)
        try:
            result: T = await asyncio.shield(job.task)  # a cancelled request leaves the job to the others
            return result
        finally:
            job.callbacks.remove(on_stage)
            job.claim.leave(client)
            if not job.callbacks and not job.task.done():
                self._forget(key, job)
                job.task.cancel()

    def _forget(self, key: str, job: _InFlightBuild) -> None:
        if self._jobs.get(key) is job:
            del self._jobs[key]
