"""What an operator sets, with defaults: the one table of it.

Each field made with ``setting`` is a flag, a variable, a key of the settings' file and a line of the help; see
``options``. A new setting is one new field.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from model_factory.errors import ServerError
from model_factory.limits import MIB
from model_factory.settings import DEFAULT_ADDRESS
from model_factory_server.options import setting

DEVICES = ("auto", "cpu", "cuda")

BUILTIN = "builtin"
POLICY_CONSTRUCTOR = "policy_constructor"
BACKENDS = (BUILTIN, POLICY_CONSTRUCTOR)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSettings:
    """The pretrained model of the block radiov3."""

    repository: str = setting(
        "NVlabs/RADIO", "its hub repository on GitHub", name="radio_repo", metavar="OWNER/NAME[:REF]"
    )
    version: str = setting("c-radio_v3-l", "its name in the repository", name="radio_version", metavar="VERSION")
    directory: Path | None = setting(
        None,
        "local copy of the repository, or a torch.hub folder; weights are under its checkpoints",
        name="hub_dir",
        metavar="DIR",
    )
    allow_download: bool = setting(False, "download what is not in --hub-dir", name="allow_hub_download")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSettings:
    """What builds.

    Plain data, which travels to every worker.
    """

    name: str = setting(BUILTIN, "who turns configs into models", name="backend", choices=BACKENDS)
    path: Path | None = setting(
        None, "the checkout with the package model_constructor", name="backend_path", metavar="DIR"
    )
    plugins: tuple[str, ...] = setting(
        (),
        "a module with register(registry), beside those of installed packages; may be repeated",
        name="plugin",
        metavar="MODULE",
    )
    share_source: bool = setting(
        False, "hand out the source of blocks that cannot travel without it, to trainers who trust it"
    )
    hub: HubSettings = field(default_factory=HubSettings)

    def __post_init__(self) -> None:
        if self.name not in BACKENDS:
            raise ServerError(f"--backend is one of {', '.join(BACKENDS)}, got {self.name!r}")
        if (self.path is not None) != (self.name == POLICY_CONSTRUCTOR):
            raise ServerError(
                f"--backend-path DIR goes with --backend {POLICY_CONSTRUCTOR}: give both, or neither; "
                f"got --backend {self.name} and {'no path' if self.path is None else f'the path {self.path}'}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """What a request may ask for."""

    max_weights_bytes: int = setting(
        64 * 1024 * MIB, "parameters and buffers of one component, known before they are made", minimum=1
    )
    build_timeout: float = setting(600.0, "wall time of one component's build", minimum=0.001)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one server."""

    listen: str = setting(DEFAULT_ADDRESS, "where to listen; port 0 picks a free one", metavar="HOST:PORT")
    store: Path = setting(
        Path("model-factory-store"), "folder of blobs and records; replicas may share it", metavar="DIR"
    )
    device: str = setting(
        "cpu", "where models are initialised; auto is CUDA where there is a GPU, else the CPU", choices=DEVICES
    )
    builders: int = setting(2, "builds at the same time", minimum=1)
    drain_timeout: float = setting(
        30.0, "what calls in progress get to end after the first signal to stop", minimum=0.0
    )
    backend: BackendSettings = field(default_factory=BackendSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
