"""All settings of a server, with defaults.

Each field made with ``setting`` is a flag, a variable, a key of the settings file and a line of the help; see
``options``. A new setting is one new field.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from model_factory.config.bounds import MAX_CONFIG_BYTES, MAX_NESTING, MAX_NODES
from model_factory.config.schema.check import CHECKPOINT_NAME
from model_factory.environment import DEFAULT_ADDRESS
from model_factory.errors import ServerError
from model_factory.limits import MAX_COMPONENTS, MAX_MESSAGE_BYTES, MAX_MODULES, MAX_PORT, MIB
from model_factory_server.settings.options import setting

DEVICES = ("auto", "cpu", "cuda")

BUILTIN = "builtin"
POLICY_CONSTRUCTOR = "policy_constructor"
BACKENDS = (BUILTIN, POLICY_CONSTRUCTOR)

_WORKER_VARIABLES = frozenset(
    (
        "HOME LANG LANGUAGE LC_ALL LC_CTYPE LD_LIBRARY_PATH LOGNAME PATH PYTHONDONTWRITEBYTECODE PYTHONHASHSEED "
        "PYTHONHOME PYTHONPATH TMPDIR TZ USER VIRTUAL_ENV XDG_CACHE_HOME"
    ).split()
)
_WORKER_PREFIXES = ("CUDA_", "NVIDIA_", "CUBLAS_", "CUDNN_", "OMP_", "MKL_", "KMP_", "TORCH_", "TORCHINDUCTOR_")

COPIES = 3
"""Copies of a message in memory at the same time, at most: in gRPC, encoded, and decoded."""

_LARGEST_MESSAGES = 2 * 2 * COPIES  # two of the largest requests fit into the half for requests

TEXT, JSON = LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSettings:
    """Pretrained models: of radiov3, of the blocks on a ResNet-34, and of a checkout."""

    repository: str = setting(
        "NVlabs/RADIO", "torch.hub repository on GitHub", name="radio_repo", metavar="OWNER/NAME[:REF]"
    )
    version: str = setting(
        "c-radio_v3-l", "name of the model in the repository", name="radio_version", metavar="VERSION"
    )
    directory: Path | None = setting(
        None,
        "local copy of the repository, or a torch.hub folder; weights are read from its subfolder checkpoints "
        "(those of ResNet-34 and of a checkout by default from torch.hub's own folder)",
        name="hub_dir",
        metavar="DIR",
    )
    allow_download: bool = setting(False, "download files missing from --hub-dir", name="allow_hub_download")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSettings:
    """The backend.

    Plain data, sent to every worker.
    """

    name: str = setting(
        BUILTIN,
        "library of model constructors: built in, or of a checkout",
        name="backend",
        choices=BACKENDS,
    )
    path: Path | None = setting(None, "checkout with the package model_constructor", name="backend_path", metavar="DIR")
    plugins: tuple[str, ...] = setting(
        (),
        "plug-in: a module with register(registry), added to the plug-ins of installed packages; may be repeated",
        name="plugin",
        metavar="MODULE",
    )
    imports: tuple[str, ...] = setting(
        (),
        "package or module whose classes and functions configs may name as _target_; may be repeated",
        name="allow_import",
        metavar="MODULE",
    )
    share_source: bool = setting(
        False, "send the source code of blocks that need their source to trainers that trust the source"
    )
    allow_files: tuple[Path, ...] = setting(
        (),
        "folder with checkpoints and other files for builds to read, in addition to the checkout, plug-ins, --hub-dir "
        "and TORCH_HOME; may be repeated",
        metavar="DIR",
    )
    checkpoints: tuple[str, ...] = setting(
        (),
        "checkpoint that configs may name as weights: a safetensors file, a file of torch.save with tensors only, or a "
        "folder with model.safetensors; may be repeated",
        name="checkpoint",
        metavar="NAME=PATH",
    )
    hub: HubSettings = field(default_factory=HubSettings)

    @property
    def checkpoint_paths(self) -> dict[str, Path]:
        """The absolute paths of the checkpoints by name; links are kept.

        Example:
            >>> BackendSettings(checkpoints=("resnet34=/models/resnet34.safetensors",)).checkpoint_paths
            {'resnet34': PosixPath('/models/resnet34.safetensors')}
        """
        pairs = [item.partition("=") for item in self.checkpoints]
        return {name: Path(os.path.abspath(path)) for name, _, path in pairs}  # noqa: PTH100  resolve() follows links

    def __post_init__(self) -> None:
        self._check_checkpoints()
        if self.name not in BACKENDS:
            raise ServerError(f"--backend must be one of {', '.join(BACKENDS)}, got {self.name!r}")
        if (self.path is not None) != (self.name == POLICY_CONSTRUCTOR):
            raise ServerError(
                f"--backend-path DIR needs --backend {POLICY_CONSTRUCTOR}, and the reverse: give both, or neither; "
                f"got --backend {self.name} and {'no path' if self.path is None else f'the path {self.path}'}"
            )
        if self.imports and self.name != BUILTIN:
            raise ServerError(
                f"--allow-import needs --backend {BUILTIN}: a checkout names its blocks in its own registry. "
                f"Remedy: remove --allow-import"
            )

    def _check_checkpoints(self) -> None:
        seen: set[str] = set()
        for item in self.checkpoints:
            name, _, path = item.partition("=")
            if not CHECKPOINT_NAME.fullmatch(name) or not path:
                raise ServerError(
                    f"--checkpoint must be NAME=PATH, with a name that matches ^{CHECKPOINT_NAME.pattern}$, "
                    f"got {item!r}"
                )
            if name in seen:
                raise ServerError(f"--checkpoint gives two paths for {name!r}. Remedy: another name for one")
            seen.add(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """Limits of requests and builds."""

    max_request_bytes: int = setting(8 * MIB, "size of one request", minimum=1024, maximum=MAX_MESSAGE_BYTES)
    max_components: int = setting(MAX_COMPONENTS, "components in one request", minimum=1, maximum=MAX_COMPONENTS)
    max_config_bytes: int = setting(
        MAX_CONFIG_BYTES,
        "size of one component's config or module call",
        minimum=1,
        maximum=MAX_CONFIG_BYTES,
    )
    max_nesting: int = setting(MAX_NESTING, "maximum nesting depth of a config", minimum=4, maximum=MAX_NESTING)
    max_values: int = setting(
        MAX_NODES, "values in a config, mappings and lists included", minimum=4, maximum=MAX_NODES
    )
    max_modules: int = setting(10_000, "modules in one component", minimum=1, maximum=MAX_MODULES)
    max_weights_bytes: int = setting(
        64 * 1024 * MIB, "size of the parameters and buffers of one component, checked before allocation", minimum=1
    )
    max_blob_bytes: int = setting(65 * 1024 * MIB, "size of one file written by a build", minimum=MIB)
    max_store_bytes: int | None = setting(
        None,
        "size of the store's blobs and records, where a file counts with at least 16 KiB; the least recently used "
        "files are evicted, except blobs in use; unlimited by default",
        minimum=MIB,
    )
    max_memory_bytes: int | None = setting(
        None,
        "memory that a build may allocate in addition to its weights file; default: the memory of the node or "
        "container, unlimited with CUDA",
        minimum=256 * MIB,
    )
    plan_timeout: float = setting(60.0, "wall time for computing the size of a component", minimum=0.001)
    build_timeout: float = setting(600.0, "wall time for building one component", minimum=0.001)
    build_cpu_timeout: float = setting(3600.0, "processor time for building one component", minimum=1.0)
    max_queue: int = setting(1024, "builds waiting for a worker", minimum=0)
    max_builds_per_client: int | None = setting(None, "concurrent builds of one client; default: --workers", minimum=1)
    max_queue_per_client: int = setting(512, "builds of one client waiting for a worker", minimum=0)
    max_rpcs: int = setting(512, "RPCs in progress, including streams of blobs", minimum=1)
    max_rpcs_per_client: int = setting(128, "RPCs in progress of one client", minimum=1)
    max_held_bytes: int = setting(
        1024 * MIB,
        "memory of the server process for requests and responses in progress; further RPCs wait in turn",
        minimum=MIB,
    )
    max_client_held_bytes: int | None = setting(
        None,
        "memory of the server process for requests and responses of one client; half of the memory for all clients by "
        f"default, at least {_LARGEST_MESSAGES} times the largest request",
        minimum=MIB,
    )
    max_connections: int = setting(2048, "open connections of all clients, including health probes", minimum=1)
    max_connections_per_address: int | None = setting(
        None, "open connections from one address, checked every second; unlimited by default, for proxies", minimum=1
    )

    def __post_init__(self) -> None:
        needed = _LARGEST_MESSAGES * self.max_request_bytes
        if not needed <= self.effective_max_client_held_bytes <= self.max_held_bytes:
            raise ServerError(
                f"--max-client-held-bytes must be from {_LARGEST_MESSAGES} x --max-request-bytes = {needed} to "
                f"--max-held-bytes = {self.max_held_bytes}, got {self.effective_max_client_held_bytes}. Remedy: change "
                "one of the three settings"
            )

    @property
    def effective_max_client_held_bytes(self) -> int:
        """The memory for requests and responses of one client."""
        return self.max_held_bytes // 2 if self.max_client_held_bytes is None else self.max_client_held_bytes

    @property
    def effective_max_weights_bytes(self) -> int:
        """The smallest limit for the weights of a component: the weights are a single file, inside the store."""
        return min(self.max_weights_bytes, self.max_blob_bytes, self.max_store_bytes or self.max_blob_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessSettings:
    """Access to the server."""

    tls_cert: Path | None = setting(
        None, "the server's certificate chain in PEM; read again after changes", needs_text=True
    )
    tls_key: Path | None = setting(None, "private key of the certificate, in PEM", needs_text=True)
    tls_client_ca: Path | None = setting(
        None,
        "certificate authorities in PEM; only clients with a certificate from these authorities may connect",
        needs_text=True,
    )
    tokens: Path | None = setting(
        None,
        "file with lines from 'model-factory token', read again after changes; only clients with a token are served",
        needs_text=True,
    )
    allow_plaintext: bool = setting(
        False, "listen beyond this machine without TLS, for example behind an encrypting mesh", needs_text=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """Connections."""

    keepalive_interval: float = setting(60.0, "time between pings that detect lost clients", minimum=1.0)
    keepalive_timeout: float = setting(20.0, "maximum time until the response to a ping", minimum=1.0)
    min_ping_interval: float = setting(
        30.0,
        "minimum time between pings of a client, else the client is disconnected; trainers ping every 60 s",
        minimum=0.1,
        maximum=50.0,
    )
    stall_timeout: float = setting(
        120.0,
        "time for a client to send a request, to get memory for a message, or to receive a message; a client that "
        "does not receive is disconnected",
        minimum=1.0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class IsolationSettings:
    """Isolation of builds."""

    worker_variables: tuple[str, ...] = setting(
        (),
        "variable visible to builds, in addition to variables for paths, language, threads and GPUs; may be repeated",
        name="worker_variable",
        metavar="NAME",
    )
    worker_network: bool = setting(False, "let builds reach the network; --allow-hub-download implies access")
    max_open_files: int = setting(1024, "open files of a build", minimum=64)

    def allows_variable(self, name: str) -> bool:
        """Return whether builds see an environment variable.

        Example:
            >>> settings = IsolationSettings(worker_variables=("HF_HOME",))
            >>> settings.allows_variable("HF_HOME"), settings.allows_variable("AWS_SECRET_ACCESS_KEY")
            (True, False)
        """
        return name in _WORKER_VARIABLES or name in self.worker_variables or name.startswith(_WORKER_PREFIXES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserveSettings:
    """Logs and metrics.

    OpenTelemetry's own variables set up traces.
    """

    log_format: str = setting(TEXT, "text, or one JSON object per line", choices=LOG_FORMATS)
    log_level: str = setting("info", "lowest level of written lines", choices=LOG_LEVELS)
    metrics_listen: str | None = setting(
        None, "address of /metrics for Prometheus, over plain HTTP; off by default", metavar="HOST:PORT"
    )
    reflection: bool = setting(False, "list services and messages to clients, for tools like grpcurl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a server.

    Example:
        >>> Settings(listen="127.0.0.1:0", workers=4).limits.max_rpcs
        512
    """

    listen: str = setting(DEFAULT_ADDRESS, "address to listen on; port 0 picks a free port", metavar="HOST:PORT")
    store: Path = setting(
        Path("model-factory-store"), "folder of blobs and records; replicas may share the folder", metavar="DIR"
    )
    device: str = setting(
        "cpu", "device for initialising models; auto: CUDA if a GPU is present, else the CPU", choices=DEVICES
    )
    share_store: bool = setting(
        True,
        "send the store's path to clients; on the same file system, a client then links files without download",
    )
    workers: int = setting(2, "number of workers: concurrent builds", minimum=1)
    drain_timeout: float = setting(
        30.0, "time for RPCs in progress to finish after the first signal to stop", minimum=0.0
    )
    drain_delay: float = setting(
        0.0,
        "time to accept new RPCs after the first signal to stop, for load balancers to see NOT_SERVING",
        minimum=0.0,
    )
    backend: BackendSettings = field(default_factory=BackendSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    access: AccessSettings = field(default_factory=AccessSettings)
    connections: ConnectionSettings = field(default_factory=ConnectionSettings)
    isolation: IsolationSettings = field(default_factory=IsolationSettings)
    observe: ObserveSettings = field(default_factory=ObserveSettings)

    def __post_init__(self) -> None:
        _, colon, port = self.listen.rpartition(":")
        is_port = port.isascii() and port.isdigit() and int(port) <= MAX_PORT
        if not colon or not is_port or self.listen.startswith("unix"):
            raise ServerError(f"--listen must be HOST:PORT, got {self.listen!r}. Remedy: for example {DEFAULT_ADDRESS}")
