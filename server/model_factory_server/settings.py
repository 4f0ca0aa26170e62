"""What an operator sets, with defaults. Nothing else of the server reads its environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model_factory.limits import MIB

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one server."""

    listen: str
    """``HOST:PORT``; port 0 picks a free one."""
    store: Path
    """Folder of blobs and records; replicas may share it."""
    device: str = "cpu"
    """Where models are initialised: ``auto`` is CUDA where there is a GPU, else the CPU."""
    builders: int = 2
    """Builds at the same time."""
    build_timeout: float = 600.0
    """Seconds of wall time one component's build may take."""
    max_weights_bytes: int = 64 * 1024 * MIB
    """Of the parameters and buffers of one component."""
    drain_timeout: float = 30.0
    """Seconds that calls in progress get to end after the first signal to stop."""
