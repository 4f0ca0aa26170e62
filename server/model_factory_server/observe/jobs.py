"""Times the stages of a job, and counts its outcome."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from model_factory.errors import ModelFactoryError
from model_factory.v1 import wire
from model_factory_server.observe.logs import fields
from model_factory_server.observe.metrics import Metrics
from model_factory_server.observe.spans import Traces
from model_factory_server.worker.stages import Stage

log = logging.getLogger(__name__)


class JobWatch:
    """Log line, metrics and spans of one job."""

    def __init__(self, metrics: Metrics, traces: Traces, kind: str, key: str) -> None:
        self._metrics = metrics
        self._traces = traces
        self._kind = kind
        self._key = key
        self._begun = time.monotonic()
        self._seconds: dict[Stage, float] = {}
        self._begin(Stage.QUEUED)

    def stage(self, stage: Stage) -> None:
        """End the current stage and enter the next stage."""
        self._leave("OK")
        self._begin(stage)

    def end(self, task: asyncio.Task[Any]) -> None:
        """Record the outcome of the job's finished task."""
        outcome = _outcome(task)
        self._leave(outcome)
        self._metrics.jobs.labels(self._kind, outcome).inc()
        log.info(
            "%s %s in %.2f s",
            self._kind,
            outcome,
            time.monotonic() - self._begun,
            extra=fields(build=self._key, outcome=outcome, stage_seconds=self._seconds),
        )

    def _begin(self, stage: Stage) -> None:
        self._stage, self._since = stage, time.monotonic()
        self._span = self._traces.stage(f"{self._kind} {stage}")

    def _leave(self, outcome: str) -> None:
        seconds = time.monotonic() - self._since
        self._metrics.stage_seconds.labels(self._kind, self._stage).observe(seconds)
        self._seconds[self._stage] = round(seconds, 4)
        self._span.end(outcome, {"model_factory.build": self._key})


def _outcome(task: asyncio.Task[Any]) -> str:
    if task.cancelled():
        return "CANCELLED"
    error = task.exception()
    if error is None:
        return "OK"
    return wire.reason_of(error).name if isinstance(error, ModelFactoryError) else wire.INTERNAL.name
