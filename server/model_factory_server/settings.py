"""What an operator sets, with defaults. Nothing else of the server reads its environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from model_factory.errors import ServerError
from model_factory.limits import MIB

DEVICES = ("auto", "cpu", "cuda")

BUILTIN = "builtin"
POLICY_CONSTRUCTOR = "policy_constructor"
BACKENDS = (BUILTIN, POLICY_CONSTRUCTOR)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSettings:
    """Where the block ``radiov3`` takes its pretrained model from."""

    repository: str = "NVlabs/RADIO"
    """``OWNER/NAME`` or ``OWNER/NAME:REF`` on GitHub."""
    version: str = "c-radio_v3-l"
    """Of the model, as the repository calls it."""
    directory: Path | None = None
    """A local copy of the repository, or a folder as ``torch.hub`` keeps it; its ``checkpoints`` has the weights."""
    allow_download: bool = False
    """Whether what is not there may be downloaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSettings:
    """What builds, and with what: plain data, which travels to every worker."""

    name: str = BUILTIN
    """One of ``BACKENDS``."""
    path: Path | None = None
    """The checkout that holds the package ``model_constructor``; of ``policy_constructor`` alone."""
    plugins: tuple[str, ...] = ()
    """Modules with a function ``register(registry)``, in the order in which they are called."""
    hub: HubSettings = field(default_factory=HubSettings)
    """Of the built-in backend's pretrained blocks."""

    def __post_init__(self) -> None:
        if self.name not in BACKENDS:
            raise ServerError(f"--backend is one of {', '.join(BACKENDS)}, got {self.name!r}")
        if (self.path is not None) != (self.name == POLICY_CONSTRUCTOR):
            raise ServerError(
                f"--backend-path DIR goes with --backend {POLICY_CONSTRUCTOR}: give both, or neither; "
                f"got --backend {self.name} and {'no path' if self.path is None else f'the path {self.path}'}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one server."""

    listen: str
    """``HOST:PORT``; port 0 picks a free one."""
    store: Path
    """Folder of blobs and records; replicas may share it."""
    backend: BackendSettings = field(default_factory=BackendSettings)
    """What builds."""
    share_store: bool = True
    """Whether clients are told where the store lies, so that those who see the same files transfer nothing."""
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
