"""``model-factory doctor``: what a trainer needs of a deployment, one check after the other, and what to do."""

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
from model_factory.client.address import is_proxied, parse_address, proxy_note
from model_factory.client.connection import Connection
from model_factory.environment import default_cache_bytes, default_cache_dir
from model_factory.errors import ModelFactoryError
from model_factory.limits import MIB
from model_factory.store import Store

Outcome = Literal["OK", "FAIL", "skipped"]

_ROUND_TRIPS = 20
_WIDTH, _DEPTH = 1024, 4  # of what is downloaded: 16 MiB
_FREE_BYTES = 1024 * MIB
_BUILD_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check came to."""

    check: str
    """Its name."""
    outcome: Outcome
    """Skipped: something that it needs has failed."""
    said: str
    """What was found."""
    remedy: str = ""
    """What to do about it."""
    seconds: float = 0.0
    """How long it took."""


class CheckError(Exception):
    """A check found something wrong: what, and what to do."""

    def __init__(self, said: str, remedy: str) -> None:
        super().__init__(said)
        self.remedy = remedy


@dataclass(slots=True, kw_only=True)
class Visit:
    """What the checks work on, and what they leave for those after them."""

    address: str
    """Of the server, as the user wrote the address."""
    scratch: Path
    """A folder that is gone afterwards; caches in it are empty."""
    timeout: float
    """Seconds that each question to the server may take."""
    addresses: list[Any] = field(default_factory=list)
    """What the server's name resolves to."""
    _connection: Connection | None = field(default=None, init=False)

    @property
    def connection(self) -> Connection:
        """The connection to the server, made on first use."""
        if self._connection is None:
            self._connection = Connection(self.address, self.timeout)
        return self._connection

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


def doctor(address: str, *, timeout: float, as_json: bool) -> int:
    """Do every check and print its finding; 0 if all is well, else 1."""
    findings: list[Finding] = []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="model-factory-doctor-")))
        visit = Visit(address=address, scratch=scratch, timeout=timeout)
        stack.callback(visit.close)
        failed: set[str] = set()
        for check in CHECKS:
            finding = _examine(check, visit, failed)
            if finding.outcome != "OK":
                failed.add(check.name)
            findings.append(finding)
            if not as_json:
                _print(finding)
    if as_json:
        report = {"server": address, "ok": not failed, "checks": [asdict(item) for item in findings]}
        print(json.dumps(report, indent=2))
    return 1 if failed else 0


def _examine(check: Check, visit: Visit, failed: set[str]) -> Finding:
    if missing := [name for name in check.needs if name in failed]:
        return Finding(check=check.name, outcome="skipped", said=f"needs {missing[0]}")
    started = time.monotonic()
    outcome: Outcome = "FAIL"
    try:
        said, remedy, outcome = check.run(visit), "", "OK"
    except CheckError as error:
        said, remedy = str(error), error.remedy
    except ModelFactoryError as error:
        said, _, remedy = str(error).partition(" Remedy: ")
        remedy = remedy or check.remedy
    return Finding(
        check=check.name, outcome=outcome, said=said, remedy=remedy, seconds=round(time.monotonic() - started, 4)
    )


def _print(finding: Finding) -> None:
    print(f"{finding.outcome:<8}{finding.check:<14}{finding.said}", flush=True)
    if finding.remedy:
        print(f"{'':<22}do: {finding.remedy}", flush=True)


def _name(visit: Visit) -> str:
    address = parse_address(visit.address)
    if is_proxied():
        return f"{visit.address} is for the proxy to look up{proxy_note()}"
    found = []
    for host, port in address.hosts:
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise CheckError(
                f"{host} has no address: {getattr(error, 'strerror', None) or error}",
                "check the spelling of --server, and the name server of this node",
            ) from None
        visit.addresses += addresses
        found.append(f"{host} is {', '.join(sorted({str(item[4][0]) for item in addresses}))}")
    return "; ".join(found) or f"{visit.address} has no host to look up"


def _port(visit: Visit) -> str:
    if not visit.addresses:
        return f"no port to try of {visit.address}{proxy_note() if is_proxied() else ''}"
    errors = []
    for family, kind, protocol, _, address in visit.addresses:
        started = time.monotonic()
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.settimeout(visit.timeout)
                probe.connect(address)
        except OSError as error:
            errors.append(f"{address[0]}:{address[1]}: {error.strerror or error}")
            continue
        return f"{address[0]}:{address[1]} accepts connections in {_ms(time.monotonic() - started)}"
    raise CheckError(
        f"nobody accepts connections at {'; '.join(errors)}",
        "start the server; let it --listen on an address that this node reaches (its default is loopback); open the "
        "port in firewalls and network policies",
    )


def _health(visit: Visit) -> str:
    status = visit.connection.health(visit.timeout)
    if status != "SERVING":
        raise CheckError(
            f"the server says {status}",
            "it starts or stops: try again in a minute. If it stays so, its log says what the warm-up build met",
        )
    return status


def _capabilities(visit: Visit) -> str:
    answer = visit.connection.capabilities()
    backend = answer.backend
    return (
        f"version {answer.server_version}, format {answer.format_version}, {backend.name} on {answer.device_kind}, "
        f"torch {backend.torch_version}, at most {answer.limits.weights_bytes / MIB:,.0f} MiB of weights"
    )


def _round_trip(visit: Visit) -> str:
    times = []
    for _ in range(_ROUND_TRIPS):
        started = time.monotonic()
        visit.connection.health(visit.timeout)
        times.append(time.monotonic() - started)
    return f"{_ms(statistics.median(times))} median, {_ms(max(times))} worst of {_ROUND_TRIPS}"


def _cache(_visit: Visit) -> str:
    cache = Store(default_cache_dir(), default_cache_bytes())
    cache.put(b"model-factory doctor")
    free = cache.free_bytes()
    if free < _FREE_BYTES:
        raise CheckError(
            f"{cache.root} has {free / MIB:,.0f} MiB free",
            "make room, or set MODEL_FACTORY_CACHE to a folder with more: weights are kept there",
        )
    return f"{cache.root} is writable and has {free / MIB:,.0f} MiB free"


def _build(visit: Visit) -> str:
    """Build a block with a recorded program, anew and from the server's store; run the block here, forward and back."""
    import torch  # noqa: PLC0415  what comes before must work without waiting for it

    factory, seconds = _factory(visit, "build", secrets.randbits(32)), []
    for _ in range(2):
        started = time.monotonic()
        module: Any = factory.build({"config": dict(SELF_CHECK_CONFIG)})
        seconds.append(time.monotonic() - started)
    factory.close()
    parameters = list(module.parameters())
    x = torch.ones(4, 5, SELF_CHECK_WIDTH)
    result, expected = (
        module(x),
        _self_check(x, **{name.split(".")[-1]: item for name, item in module.named_parameters()}),
    )
    gradients, right = (torch.autograd.grad(value.square().sum(), parameters) for value in (result, expected))
    if not all(torch.allclose(one, other) for one, other in zip((result, *gradients), (expected, *right), strict=True)):
        raise CheckError(
            "the rebuilt block computes something else than the block's formula",
            "report this, with the versions of torch on both sides",
        )
    return f"{_ms(seconds[0])}, again {_ms(seconds[1])}; forward and backward of a recorded block are right"


def _self_check(x: Any, weight: Any, bias: Any, scale: Any) -> Any:
    """Compute what the model of ``SELF_CHECK_CONFIG`` computes, without the model."""
    import torch  # noqa: PLC0415  what comes before must work without waiting for it

    steps = torch.nn.functional.linear(x, weight, bias) * scale
    positions = torch.arange(x.shape[1], device=x.device).to(x.dtype)
    return torch.relu(torch.cat([steps + torch.sin(positions)[:, None], x[:, :1]], dim=1))


def _throughput(visit: Visit) -> str:
    config = _sequential(*[_linear(_WIDTH, _WIDTH) for _ in range(_DEPTH)])
    first = _factory(visit, "throughput-first")
    first.build(config)
    first.close()
    second = _factory(visit, "throughput-second")
    started = time.monotonic()
    module: Any = second.build(config)
    seconds = time.monotonic() - started
    second.close()
    size = sum(item.numel() * item.itemsize for item in module.parameters())
    rate = size / 1e6 / seconds
    return f"{size / MIB:.0f} MiB looked up, downloaded, checked and mapped in {_ms(seconds)}: {rate:,.0f} MB/s"


def _factory(visit: Visit, cache: str, seed: int = 0) -> Any:
    from model_factory.client.factory import RemoteModelFactory  # noqa: PLC0415  torch

    return RemoteModelFactory(
        visit.address,
        seed=seed,
        cache_dir=visit.scratch / cache,
        timeout=_BUILD_SECONDS,
        credentials=visit.connection.credentials,
    )


def _sequential(*layers: dict[str, Any]) -> dict[str, Any]:
    return {"config": {"schema_version": 1, "model": {"sequential": {"layers": list(layers)}}}}


def _linear(inputs: int, outputs: int) -> dict[str, Any]:
    return {"_type_": "nn.Linear", "in_features": inputs, "out_features": outputs}


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that has to be right."""

    name: str
    """In a word."""
    run: Callable[[Visit], str]
    """Returns what it found; raises CheckError, or an error of this package, when it is not right."""
    needs: tuple[str, ...] = ()
    """Checks without which it makes no sense."""
    remedy: str = ""
    """What to do about an error that does not say so itself."""


_LOOK = "look into the server's log for the request id, or around this time"

CHECKS: tuple[Check, ...] = (
    Check(name="name", run=_name),
    Check(name="port", run=_port, needs=("name",)),
    Check(
        name="health",
        run=_health,
        needs=("port",),
        remedy="make sure that it is a model-factory server, and that both sides agree on TLS. With it, "
        "MODEL_FACTORY_CA_FILE here names the authorities of the server's certificate, which has the name that it is "
        "asked by (else MODEL_FACTORY_SERVER_NAME) and has not expired; MODEL_FACTORY_CERT_FILE and "
        "MODEL_FACTORY_KEY_FILE name this client's, if the server asks for one. Its log says why a handshake failed",
    ),
    Check(
        name="capabilities",
        run=_capabilities,
        needs=("health",),
        remedy="install the same version of model-factory here and on the server",
    ),
    Check(name="round trip", run=_round_trip, needs=("health",), remedy=_LOOK),
    Check(
        name="cache",
        run=_cache,
        remedy="give this user the right to write there, or set MODEL_FACTORY_CACHE to another folder",
    ),
    Check(name="build", run=_build, needs=("capabilities",), remedy=_LOOK),
    Check(name="throughput", run=_throughput, needs=("build",), remedy=_LOOK),
)
"""In the order in which they are done."""
