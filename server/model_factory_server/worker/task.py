"""What a builder process is told: what to do, where, and within which bounds. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model_factory.identity import BuildReference
from model_factory_server.settings.server_settings import BackendSettings, IsolationSettings, LimitSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What to do."""

    kind: Literal["build", "describe", "record", "list"]
    """Which of the functions of ``worker``."""
    config: bytes = b""
    """The component's config as on the wire."""
    seed: int = 0
    """The component's own seed."""
    dtype: str = ""
    """What floating tensors are cast to; empty: left."""
    known: Mapping[str, Sequence[str | int]] | None = None
    """Blobs of a build under another seed: its descriptor, since what is recorded need not be so again, and how it is
    made in place. None where nothing is known."""
    portability: bool = False
    """Of a description: whether to find out how each module travels."""
    path: str = ""
    """Of the module to record."""
    call: bytes = b""
    """The call to record it for."""
    training: Mapping[str, bool] | None = None
    """Training flags at that call."""
    built: BuildReference | None = None
    """The build that the module to record comes from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A task for one process, with what the operator has set."""

    task: Task
    store: Path
    """Where blobs go."""
    backend: BackendSettings
    """What builds."""
    code_stamp: str
    """Of the operator's files when the server started."""
    device_kind: str
    """Where the model is initialised."""
    limits: LimitSettings
    """What the model may grow to."""
    isolation: IsolationSettings
    """What the process may reach."""
    threads: int
    """Threads for torch's kernels, so that builders at the same time do not wait for each other."""
