"""Credentials: how a client verifies the server, and identifies itself."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from model_factory.client.address import NO_PROXY, Address, is_proxied, listening_users, parse_address, socket_path
from model_factory.digest import digest_of
from model_factory.documents import encode_document
from model_factory.environment import client_credentials, default_roots_file, proxy_variables
from model_factory.errors import AccessError

_NETWORK = Path("/proc/self/ns/net")  # a container has a loopback interface of its own
_MACHINE = (Path("/etc/machine-id"),)  # machines with a shared cache can have one name

MAX_TOKEN_BYTES = 4096
"""Maximum size of a token; a larger file is not a token file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """TLS and token of a connection, as names of files; without secrets, so safe to print, copy and pickle.

    Certificates are read when a connection is opened, the token at each RPC: a new token needs no new factory.

    >>> from model_factory import Credentials, RemoteModelFactory
    >>> credentials = Credentials(ca_file="ca.pem", token_file="/run/secrets/token")
    >>> credentials.encrypts
    True
    >>> factory = RemoteModelFactory("gpu-node:50051", seed=7, credentials=credentials)

    Raises:
        AccessError: ``cert_file`` is given without ``key_file``, or ``key_file`` without ``cert_file``.
    """

    tls: bool = False
    """Use TLS with the system's certificate authorities; implied by ``ca_file`` and ``cert_file``."""
    ca_file: str | PathLike[str] | None = None
    """PEM file with the certificates of the authorities that sign the server's certificate."""
    cert_file: str | PathLike[str] | None = None
    """PEM file with this client's certificate, for mutual TLS."""
    key_file: str | PathLike[str] | None = None
    """PEM file with the private key of ``cert_file``."""
    server_name: str = ""
    """Name in the server's certificate; empty: the host of the address."""
    token_file: str | PathLike[str] | None = None
    """File with the operator's token as the only content."""
    allow_plaintext: bool = False
    """Allow the token to be sent to other machines without TLS, for networks with their own encryption. Even so, the
    token takes no HTTP proxy."""

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise AccessError("cert_file and key_file go together. Remedy: give both, or neither")

    @classmethod
    def from_environment(cls) -> Credentials:
        """Read ``MODEL_FACTORY_CA_FILE``, ``..._CERT_FILE``, ``..._KEY_FILE``, ``..._TOKEN_FILE`` and so on."""
        return cls(**client_credentials())

    @property
    def encrypts(self) -> bool:
        """Whether connections use TLS."""
        return self.tls or self.ca_file is not None or self.cert_file is not None

    @property
    def is_direct(self) -> bool:
        """Whether connections take no HTTP proxy: the proxy could read a token without TLS."""
        return self.token_file is not None and not self.encrypts

    def server_identity(self, address: str, *, observed: bool = True) -> str:
        """Return a digest of the server's identity, as far as this client can distinguish servers.

        With TLS: digest of the authorities and of the expected name in the certificate. Without TLS: digest of the
        address and of the proxy; for a loopback address also of this machine, its network, and the users that listen.
        The users are left out with ``observed=False``: nobody listens in the place of a server that is down.

        Raises:
            AccessError: the file of authorities cannot be read.
        """
        parsed = parse_address(address)
        if self.encrypts:
            authorities = digest_of(_read(self.ca_file) or b"") if self.ca_file is not None else _system_authorities()
            name = self.server_name or ",".join(host for host, _ in parsed.hosts) or address
            return digest_of(encode_document(["tls", authorities, name]))
        place = socket_path(parsed) or address
        return digest_of(encode_document(["plaintext", place, _way_to(parsed, observed=observed)]))

    def open(self, address: str, options: Sequence[tuple[str, Any]]) -> grpc.Channel:
        """Open a channel to a server.

        Raises:
            AccessError: a file cannot be read, or the token would be sent without encryption.
        """
        if self.encrypts:
            channel = self._open_encrypted(address, options)
        elif self.is_direct:
            channel = self._open_for_plain_token(address, options)
        else:
            channel = grpc.insecure_channel(address, options=options)
        return channel if self.token_file is None else grpc.intercept_channel(channel, _TokenInterceptor(self._token))

    def _open_encrypted(self, address: str, options: Sequence[tuple[str, Any]]) -> grpc.Channel:
        if self.server_name:
            options = [*options, ("grpc.ssl_target_name_override", self.server_name)]
        tls = grpc.ssl_channel_credentials(_read(self.ca_file), _read(self.key_file), _read(self.cert_file))
        return grpc.secure_channel(address, tls, options=options)

    def _open_for_plain_token(self, address: str, options: Sequence[tuple[str, Any]]) -> grpc.Channel:
        """Open a channel for a token without TLS: without a proxy, and to this machine or where the user allows more.

        gRPC checks on each connection that the peer of a local channel is on this machine, since the name ``localhost``
        can lead to another machine.
        """
        options = [*(item for item in options if item[0] not in NO_PROXY), *NO_PROXY.items()]
        if self.allow_plaintext:
            return grpc.insecure_channel(address, options=options)
        parsed = parse_address(address)
        if not parsed.is_loopback:
            raise AccessError(
                f"the token is not sent to {address} without TLS: the network could read the token. Remedy: "
                "Credentials(ca_file=...) or tls=True; or allow_plaintext=True where the network encrypts"
            )
        kind = grpc.LocalConnectionType.UDS if parsed.is_local_socket else grpc.LocalConnectionType.LOCAL_TCP
        return grpc.secure_channel(address, grpc.local_channel_credentials(kind), options=options)

    def _token(self) -> str:
        token = (_read(self.token_file, MAX_TOKEN_BYTES) or b"").decode("ascii", "replace").strip()
        if not token or not token.isprintable() or not token.isascii() or " " in token:
            raise AccessError(
                f"{self.token_file} does not hold a token. Remedy: a file with the operator's token as the only word"
            )
        return token


def _system_authorities() -> str:
    """Return the name of gRPC's default authorities: a variable can name a file of others."""
    path = default_roots_file()
    return f"file {digest_of(_read(path) or b'')}" if path else "system"


def _way_to(address: Address, *, observed: bool) -> list[object]:
    """Return the surroundings that decide which server answers at an address without TLS."""
    if not address.is_loopback:
        return list(proxy_variables()[1:]) if is_proxied() else [platform.node() if not address.hosts else ""]
    network = _NETWORK.stat().st_ino if _NETWORK.exists() else 0
    machine = next((path.read_text().strip() for path in _MACHINE if path.is_file()), "")
    return [platform.node(), machine, network, *([list(listening_users(address))] if observed else [])]


class _Details(NamedTuple):
    """A concrete ``grpc.ClientCallDetails``."""

    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _TokenInterceptor(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):  # type: ignore[type-arg]
    """Adds the token to the metadata of every RPC."""

    def __init__(self, token: Callable[[], str]) -> None:
        self._token = token

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._with_token(client_call_details), request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._with_token(client_call_details), request)

    def _with_token(self, details: Any) -> _Details:
        metadata = [*(details.metadata or ()), ("authorization", f"Bearer {self._token()}")]
        return _Details(
            method=details.method,
            timeout=details.timeout,
            metadata=metadata,
            credentials=details.credentials,
            wait_for_ready=getattr(details, "wait_for_ready", None),
            compression=getattr(details, "compression", None),
        )


def _read(path: str | PathLike[str] | None, max_bytes: int = -1) -> bytes | None:
    if path is None:
        return None
    try:
        with Path(path).open("rb") as file:
            return file.read(max_bytes)
    except OSError as error:
        raise AccessError(
            f"cannot read {path}: {error.strerror}. Remedy: name a file that exists and that this user may read"
        ) from None
