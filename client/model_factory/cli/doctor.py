"""``model-factory doctor``: check a deployment from a trainer's machine, step by step, with a remedy for each fault."""

from __future__ import annotations

import json
import secrets
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from model_factory.blocks import SELF_CHECK_CONFIG, SELF_CHECK_WIDTH
from model_factory.cli.output import say_lines
from model_factory.client.address import is_proxied, parse_address, proxy_note
from model_factory.client.connection import Connection
from model_factory.environment import default_cache_bytes, default_cache_dir
from model_factory.errors import ModelFactoryError, safe_text
from model_factory.limits import MIB
from model_factory.store import Store

Outcome = Literal["OK", "FAIL", "skipped"]

_ROUND_TRIPS = 20
_WIDTH, _DEPTH = 1024, 4  # of the model for the download: 16 MiB
_FREE_BYTES = 1024 * MIB
_BUILD_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check."""

    check: str
    """Name of the check."""
    outcome: Outcome
    """``skipped``: an earlier check, needed for this check, failed."""
    message: str
    """The observation."""
    remedy: str = ""
    """Action for the user; empty without a fault."""
    seconds: float = 0.0
    """Duration of the check."""


class CheckError(Exception):
    """A fault found by a check, with a remedy."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(slots=True, kw_only=True)
class Deployment:
    """The deployment under test, with results that later checks use."""

    address: str
    """Address of the server, as written by the user."""
    scratch: Path
    """A temporary folder for empty caches."""
    timeout: float
    """Time limit of each RPC, in seconds."""
    addresses: list[Any] = field(default_factory=list)
    """Socket addresses of the server's name."""
    _connection: Connection | None = field(default=None, init=False)

    @property
    def connection(self) -> Connection:
        """The connection to the server, made on first use."""
        if self._connection is None:
            self._connection = Connection(self.address, self.timeout)
        return self._connection

    @property
    def is_proxied(self) -> bool:
        """Whether the connection goes through an HTTP proxy."""
        return is_proxied() and not self.connection.credentials.is_direct

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


def doctor(address: str, *, timeout: float, as_json: bool) -> int:
    """Run every check and print the findings; return 0 without a fault, else 1."""
    findings: list[Finding] = []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="model-factory-doctor-")))
        deployment = Deployment(address=address, scratch=scratch, timeout=timeout)
        stack.callback(deployment.close)
        failed: set[str] = set()
        for check in CHECKS:
            finding = _examine(check, deployment, failed)
            if finding.outcome != "OK":
                failed.add(check.name)
            findings.append(finding)
            if not as_json:
                _print(finding)
    if as_json:
        report = {"server": address, "ok": not failed, "checks": [asdict(item) for item in findings]}
        say_lines(json.dumps(report, indent=2))
    return 1 if failed else 0


def _examine(check: Check, deployment: Deployment, failed: set[str]) -> Finding:
    if missing := [name for name in check.needs if name in failed]:
        return Finding(check=check.name, outcome="skipped", message=f"needs {missing[0]}")
    started = time.monotonic()
    outcome: Outcome = "FAIL"
    try:
        message, remedy, outcome = safe_text(check.run(deployment)), "", "OK"
    except CheckError as error:
        message, remedy = safe_text(str(error)), error.remedy
    except ModelFactoryError as error:
        message, _, remedy = str(error).partition(" Remedy: ")
        remedy = remedy or check.remedy
    return Finding(
        check=check.name, outcome=outcome, message=message, remedy=remedy, seconds=round(time.monotonic() - started, 4)
    )


def _print(finding: Finding) -> None:
    say_lines(f"{finding.outcome:<8}{finding.check:<14}{finding.message}")
    if finding.remedy:
        say_lines(f"{'':<22}remedy: {finding.remedy}")


def _name(deployment: Deployment) -> str:
    address = parse_address(deployment.address)
    if deployment.is_proxied:
        return f"the proxy looks up {deployment.address}{proxy_note()}"
    found = []
    for host, port in address.hosts:
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise CheckError(
                f"{host} has no address: {getattr(error, 'strerror', None) or error}",
                "check the spelling of --server, and the name server of this node",
            ) from None
        deployment.addresses += addresses
        found.append(f"{host} is {', '.join(sorted({str(item[4][0]) for item in addresses}))}")
    return "; ".join(found) or f"{deployment.address} contains no host name"


def _port(deployment: Deployment) -> str:
    if not deployment.addresses:
        return f"no port to connect to in {deployment.address}{proxy_note() if deployment.is_proxied else ''}"
    errors = []
    for family, kind, protocol, _, address in deployment.addresses:
        started = time.monotonic()
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.settimeout(deployment.timeout)
                probe.connect(address)
        except OSError as error:
            errors.append(f"{address[0]}:{address[1]}: {error.strerror or error}")
            continue
        return f"{address[0]}:{address[1]} accepts connections in {_ms(time.monotonic() - started)}"
    raise CheckError(
        f"no server accepts connections at {'; '.join(errors)}",
        "start the server; give --listen an address that this node can reach (the default is loopback); open the port "
        "in firewalls and network policies",
    )


def _health(deployment: Deployment) -> str:
    status = deployment.connection.health(deployment.timeout)
    if status != "SERVING":
        raise CheckError(
            f"the health status is {status}",
            "the server starts or stops: try again in a minute. If the status stays, look for the warm-up build in the "
            "server's log",
        )
    return status


def _capabilities(deployment: Deployment) -> str:
    found = deployment.connection.capabilities()
    backend = found.backend
    return (
        f"version {found.server_version}, format {found.format_version}, {backend.name} on {found.device_kind}, "
        f"torch {backend.torch_version}, at most {found.limits.weights_bytes / MIB:,.0f} MiB of weights"
    )


def _round_trip(deployment: Deployment) -> str:
    times = []
    for _ in range(_ROUND_TRIPS):
        started = time.monotonic()
        deployment.connection.health(deployment.timeout)
        times.append(time.monotonic() - started)
    return f"{_ms(statistics.median(times))} median, {_ms(max(times))} worst of {_ROUND_TRIPS}"


def _cache(_deployment: Deployment) -> str:
    cache = Store(default_cache_dir(), default_cache_bytes())
    cache.put(b"model-factory doctor")
    free = cache.free_bytes()
    if free < _FREE_BYTES:
        raise CheckError(
            f"{cache.root} has {free / MIB:,.0f} MiB free",
            "free space on the disk, or set MODEL_FACTORY_CACHE to a folder on a larger disk, for weights",
        )
    return f"{cache.root} is writable and has {free / MIB:,.0f} MiB free"


def _build(deployment: Deployment) -> str:
    """Build a recorded block twice, the second time from the server's store; run forward and backward."""
    import torch  # noqa: PLC0415  earlier checks must not wait for this import

    factory, seconds = _factory(deployment, "build", secrets.randbits(32)), []
    for _ in range(2):
        started = time.monotonic()
        module: Any = factory.build({"config": dict(SELF_CHECK_CONFIG)})
        seconds.append(time.monotonic() - started)
    factory.close()
    report = "report this fault, with the versions of torch on server and trainer"
    try:
        is_right = _computes_self_check(module, torch.ones(4, 5, SELF_CHECK_WIDTH))
    except Exception as error:  # noqa: BLE001  any module may be the response of another server
        raise CheckError(f"the rebuilt block failed: {type(error).__name__}: {error}", report) from None
    if not is_right:
        raise CheckError("the rebuilt block computes other values than the block's formula", report)
    return f"{_ms(seconds[0])}, again {_ms(seconds[1])}; forward and backward of a recorded block are right"


def _computes_self_check(module: Any, x: Any) -> bool:
    """Whether result and gradients of a module are right."""
    import torch  # noqa: PLC0415  earlier checks must not wait for this import

    named = {name.split(".")[-1]: item for name, item in module.named_parameters()}
    both = (module(x), _self_check(x, **named))
    gradients = (torch.autograd.grad(value.square().sum(), list(module.parameters())) for value in both)
    pairs = zip(*((value, *found) for value, found in zip(both, gradients, strict=True)), strict=True)
    return all(torch.allclose(one, other) for one, other in pairs)


def _self_check(x: Any, weight: Any, bias: Any, scale: Any) -> Any:
    """Compute the formula of the model of ``SELF_CHECK_CONFIG`` without the model."""
    import torch  # noqa: PLC0415  earlier checks must not wait for this import

    steps = torch.nn.functional.linear(x, weight, bias) * scale
    positions = torch.arange(x.shape[1], device=x.device).to(x.dtype)
    return torch.relu(torch.cat([steps + torch.sin(positions)[:, None], x[:, :1]], dim=1))


def _throughput(deployment: Deployment) -> str:
    config = _sequential(*[_linear(_WIDTH, _WIDTH) for _ in range(_DEPTH)])
    first = _factory(deployment, "throughput-first")
    first.build(config)
    first.close()
    second = _factory(deployment, "throughput-second")
    started = time.monotonic()
    module: Any = second.build(config)
    seconds = time.monotonic() - started
    second.close()
    size = sum(item.numel() * item.itemsize for item in module.parameters())
    rate = size / 1e6 / seconds
    return f"{size / MIB:.0f} MiB downloaded, verified and mapped in {_ms(seconds)}: {rate:,.0f} MB/s"


def _factory(deployment: Deployment, cache: str, seed: int = 0) -> Any:
    from model_factory.client.factory import RemoteModelFactory  # noqa: PLC0415  torch

    return RemoteModelFactory(
        deployment.address,
        seed=seed,
        cache_dir=deployment.scratch / cache,
        timeout=_BUILD_SECONDS,
        credentials=deployment.connection.credentials,
    )


def _sequential(*layers: dict[str, Any]) -> dict[str, Any]:
    return {"config": {"schema_version": 1, "model": {"sequential": {"layers": list(layers)}}}}


def _linear(inputs: int, outputs: int) -> dict[str, Any]:
    return {"_type_": "nn.Linear", "in_features": inputs, "out_features": outputs}


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check of a deployment."""

    name: str
    """Short name, for the output."""
    run: Callable[[Deployment], str]
    """Returns the observation; raises ``CheckError`` or ``ModelFactoryError`` for a fault."""
    needs: tuple[str, ...] = ()
    """Names of checks that must pass first."""
    remedy: str = ""
    """Remedy for an error without a remedy of its own."""


_SEE_LOG = "look for the request id, or this time, in the server's log"

CHECKS: tuple[Check, ...] = (
    Check(name="name", run=_name),
    Check(name="port", run=_port, needs=("name",)),
    Check(
        name="health",
        run=_health,
        needs=("port",),
        remedy="make sure that a model-factory server listens there, and that client and server agree on TLS. For TLS, "
        "set MODEL_FACTORY_CA_FILE to the authorities of the server's certificate; the certificate must contain the "
        "host name (else set MODEL_FACTORY_SERVER_NAME) and must not have expired. Set MODEL_FACTORY_CERT_FILE and "
        "MODEL_FACTORY_KEY_FILE if the server requires a client certificate. The server's log has the cause of a "
        "failed handshake",
    ),
    Check(
        name="capabilities",
        run=_capabilities,
        needs=("health",),
        remedy="install the same version of model-factory here and on the server",
    ),
    Check(name="round trip", run=_round_trip, needs=("health",), remedy=_SEE_LOG),
    Check(
        name="cache",
        run=_cache,
        remedy="give this user permission to write to the folder, or set MODEL_FACTORY_CACHE to another folder",
    ),
    Check(name="build", run=_build, needs=("capabilities",), remedy=_SEE_LOG),
    Check(name="throughput", run=_throughput, needs=("build",), remedy=_SEE_LOG),
)
"""All checks, in order."""
