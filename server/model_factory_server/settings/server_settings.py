"""What an operator sets, with defaults: the one table of it.

Each field made with ``setting`` is a flag, a variable, a key of the settings' file and a line of the help; see
``options``. A new setting is one new field.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from model_factory.config.bounds import MAX_CONFIG_BYTES, MAX_NESTING, MAX_NODES
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

TEXT, JSON = LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")


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
    imports: tuple[str, ...] = setting(
        (),
        "a package, or a module in one, whose classes and functions configs may name as _target_; may be repeated",
        name="allow_import",
        metavar="MODULE",
    )
    share_source: bool = setting(
        False, "hand out the source of blocks that cannot travel without it, to trainers who trust it"
    )
    allow_files: tuple[Path, ...] = setting(
        (),
        "a folder of checkpoints and other files that builds may read, beside those of the checkout, of plug-ins, of "
        "--hub-dir and of TORCH_HOME; may be repeated",
        metavar="DIR",
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
        if self.imports and self.name != BUILTIN:
            raise ServerError(
                f"--allow-import goes with --backend {BUILTIN}: a checkout's blocks are its own registry's"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """What requests may ask for."""

    max_request_bytes: int = setting(8 * MIB, "one request", minimum=1024, maximum=MAX_MESSAGE_BYTES)
    max_components: int = setting(MAX_COMPONENTS, "components of one request", minimum=1, maximum=MAX_COMPONENTS)
    max_config_bytes: int = setting(
        MAX_CONFIG_BYTES, "one component's config, and one call to record", minimum=1, maximum=MAX_CONFIG_BYTES
    )
    max_nesting: int = setting(
        MAX_NESTING, "mappings and lists of a config inside each other", minimum=4, maximum=MAX_NESTING
    )
    max_nodes: int = setting(MAX_NODES, "values of a config, containers included", minimum=4, maximum=MAX_NODES)
    max_modules: int = setting(10_000, "modules of one component", minimum=1, maximum=MAX_MODULES)
    max_weights_bytes: int = setting(
        64 * 1024 * MIB, "parameters and buffers of one component, known before they are made", minimum=1
    )
    max_blob_bytes: int = setting(65 * 1024 * MIB, "one file that a build writes", minimum=MIB)
    max_store_bytes: int | None = setting(
        None,
        "the store's blobs; before weights are written, blobs go that nobody reads, least recently used first; by "
        "default no limit",
        minimum=MIB,
    )
    max_memory_bytes: int | None = setting(
        None,
        "what a build may allocate beside its weights file; by default the node's or container's memory, on CUDA no "
        "limit",
        minimum=256 * MIB,
    )
    plan_timeout: float = setting(60.0, "wall time of finding out a component's size", minimum=0.001)
    build_timeout: float = setting(600.0, "wall time of one component's build", minimum=0.001)
    build_cpu_timeout: float = setting(3600.0, "processor time of one component's build", minimum=1.0)
    max_queue: int = setting(1024, "builds that wait for a builder", minimum=0)
    max_builds_per_client: int | None = setting(
        None, "builds at the same time for one client; by default as many as there are builders", minimum=1
    )
    max_queue_per_client: int = setting(512, "builds of one client that wait", minimum=0)
    max_calls: int = setting(512, "calls in progress, streams of blobs included", minimum=1)
    max_calls_per_client: int = setting(128, "calls in progress of one client", minimum=1)
    max_connections: int = setting(2048, "open connections of all clients, health probes' included", minimum=1)

    @property
    def most_weights_bytes(self) -> int:
        """The smallest of the bounds on one model's weights: they are one file, and have to fit into the store."""
        return min(self.max_weights_bytes, self.max_blob_bytes, self.max_store_bytes or self.max_blob_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessSettings:
    """Who may talk to the server."""

    tls_cert: Path | None = setting(None, "the server's certificate chain in PEM; read again when it changes")
    tls_key: Path | None = setting(None, "the certificate's private key in PEM")
    tls_client_ca: Path | None = setting(
        None, "authorities in PEM; only clients with a certificate signed by one of them may connect"
    )
    tokens: Path | None = setting(
        None, "lines of 'model-factory token'; only clients with one of the tokens may call; read again when it changes"
    )
    allow_plaintext: bool = setting(False, "listen beyond this machine without TLS, where something else encrypts")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """Connections."""

    keepalive_interval: float = setting(60.0, "between pings, which tell whether a client is still there", minimum=1.0)
    keepalive_timeout: float = setting(20.0, "how long an answer to a ping may take", minimum=1.0)
    ping_interval: float = setting(
        30.0,
        "clients that ping more often than that are cut off; trainers ping every 60 s",
        minimum=0.1,
        maximum=50.0,
    )
    stall_timeout: float = setting(120.0, "how long a client may take for a message that is sent to it", minimum=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class IsolationSettings:
    """What a build can reach."""

    worker_variables: tuple[str, ...] = setting(
        (),
        "a variable that builds see, beside those for paths, language, threads and GPUs; may be repeated",
        name="worker_variable",
        metavar="NAME",
    )
    worker_network: bool = setting(False, "let builds reach the network; --allow-hub-download does so as well")
    max_open_files: int = setting(1024, "files that a build may have open", minimum=64)

    def allows_variable(self, name: str) -> bool:
        """Whether a build may see the variable of that name."""
        return name in _WORKER_VARIABLES or name in self.worker_variables or name.startswith(_WORKER_PREFIXES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserveSettings:
    """What operators see.

    Traces are set up by OpenTelemetry's own variables.
    """

    log_format: str = setting(TEXT, "text for people, or one JSON object a line", choices=LOG_FORMATS)
    log_level: str = setting("info", "the least important lines that are written", choices=LOG_LEVELS)
    metrics_listen: str | None = setting(
        None, "where Prometheus scrapes /metrics, over plain HTTP; nowhere by default", metavar="HOST:PORT"
    )
    reflection: bool = setting(False, "tell clients which methods and messages there are, for grpcurl and the like")


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
    share_store: bool = setting(
        True, "whether clients are told where the store lies, so that those who see the same files transfer nothing"
    )
    workers: int = setting(2, "builds at the same time", minimum=1)
    drain_timeout: float = setting(
        30.0, "what calls in progress get to end after the first signal to stop", minimum=0.0
    )
    drain_delay: float = setting(
        0.0, "how long new calls are still answered after it, so that load balancers see NOT_SERVING first", minimum=0.0
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
            raise ServerError(f"--listen is HOST:PORT, got {self.listen!r}. Remedy: {DEFAULT_ADDRESS}, say")
