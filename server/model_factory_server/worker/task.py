"""Tasks: the requests of the server to a worker. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model_factory.identity import BuildReference
from model_factory.store import Blob
from model_factory_server.settings.server_settings import BackendSettings, IsolationSettings, LimitSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchitectureBlobs:
    """The documents of a component, common to builds under all seeds, as blobs in the store."""

    descriptor: Blob
    """The module tree."""
    programs: Blob
    """The recorded forwards."""
    source: Blob | None
    """The bundle named by the descriptor; ``None`` where the descriptor names no bundle."""
    placement: Blob | None
    """Where constructors can make tensors inside the weights file; ``None`` where unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildTask:
    """Build a component and put its weights into the store."""

    config: bytes
    """The component's config in wire form."""
    seed: int
    """The component's own seed."""
    dtype: str
    """Dtype of the floating tensors; empty: unchanged."""
    known: ArchitectureBlobs | None
    """Documents of an earlier build under any seed, to use instead of recording; ``None``: record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribeTask:
    """Describe a component without writing weights."""

    config: bytes
    """The component's config in wire form."""
    dtype: str
    """Dtype of the floating tensors; empty: unchanged."""
    portability: bool
    """Whether to record, and to report every module with a refusal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordTask:
    """Record the program of a module for a call."""

    config: bytes
    """The component's config in wire form."""
    seed: int
    """The component's own seed."""
    dtype: str
    """Dtype of the floating tensors during the recording; empty: unchanged."""
    path: str
    """Path of the module inside the component."""
    call: bytes
    """The call to record, an encoded ``ExampleCall``."""
    training: Mapping[str, bool]
    """Training flags at the call, by path below the module."""
    built: BuildReference
    """The build of the trainer's module."""
    descriptor: Blob
    """Descriptor of the same component, made by this server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListTask:
    """List the blocks for configs."""


Task = BuildTask | DescribeTask | RecordTask | ListTask


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A task for a worker, with the operator's settings."""

    task: Task
    """The work to do."""
    store: Path
    """Folder of the store."""
    backend: BackendSettings
    """Settings of the backend."""
    code_stamp: str
    """Stamp of the operator's files at the start of the server."""
    device_kind: str
    """Where models are constructed: ``cpu`` or ``cuda``."""
    limits: LimitSettings
    """Bounds on the model."""
    isolation: IsolationSettings
    """Limits on the surroundings of the process: variables, network, open files."""
    threads: int
    """Kernel threads of torch: few enough for workers side by side."""
    temporary: Path | None = None
    """Folder of the job's temporary files, removed after the job; ``None``: the folder of this machine."""
