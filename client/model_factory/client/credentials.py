"""How a client knows its server, and shows who it is."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from model_factory.client.address import parse_address
from model_factory.digest import digest_of
from model_factory.documents import encode_document
from model_factory.environment import client_credentials
from model_factory.errors import AccessError

MAX_TOKEN_BYTES = 4096
"""Of a token; more is another file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a connection is opened with. It holds names of files, never what is in them, so it may be shown and copied.

    The files are read when a connection is opened, the token at each call: a new one needs no new factory.
    """

    tls: bool = False
    """Whether to use TLS with the system's certificate authorities; the fields for certificates imply it."""
    ca_file: str | PathLike[str] | None = None
    """Certificates, in PEM, of the authorities that sign the server's."""
    cert_file: str | PathLike[str] | None = None
    """This client's certificate in PEM, for mutual TLS."""
    key_file: str | PathLike[str] | None = None
    """The private key of ``cert_file``, in PEM."""
    server_name: str = ""
    """The name in the server's certificate, where it is not that of the address."""
    token_file: str | PathLike[str] | None = None
    """Holds the token that the operator gave out, and nothing else."""
    allow_plaintext: bool = False
    """Whether the token may be sent without TLS to other machines, where something else encrypts."""

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise AccessError("cert_file and key_file go together. Remedy: give both, or neither")

    @classmethod
    def from_environment(cls) -> Credentials:
        """What ``MODEL_FACTORY_CA_FILE``, ``..._CERT_FILE``, ``..._KEY_FILE``, ``..._TOKEN_FILE`` and so on say."""
        return cls(**client_credentials())

    @property
    def encrypts(self) -> bool:
        """Whether connections use TLS."""
        return self.tls or self.ca_file is not None or self.cert_file is not None

    def server_identity(self, address: str) -> str:
        """Return a digest of who answers at an address, as far as this client can tell one server from another.

        With TLS: the authorities, and the name that the certificate is checked for. Without TLS: the address, and this
        node's name where the address is this machine's own.

        Raises:
            AccessError: the file of authorities cannot be read.
        """
        parsed = parse_address(address)
        if self.encrypts:
            authorities = digest_of(_read(self.ca_file) or b"") if self.ca_file is not None else "system"
            name = self.server_name or ",".join(host for host, _ in parsed.hosts) or address
            return digest_of(encode_document(["tls", authorities, name]))
        node = platform.node() if parsed.is_loopback else ""
        return digest_of(encode_document(["plaintext", address, node]))

    def open(self, address: str, options: Sequence[tuple[str, Any]]) -> grpc.Channel:
        """Open a channel to a server.

        Raises:
            AccessError: a file cannot be read, or the token would travel unencrypted.
        """
        if self.encrypts:
            if self.server_name:
                options = [*options, ("grpc.ssl_target_name_override", self.server_name)]
            tls = grpc.ssl_channel_credentials(_read(self.ca_file), _read(self.key_file), _read(self.cert_file))
            channel = grpc.secure_channel(address, tls, options=options)
        else:
            channel = grpc.insecure_channel(address, options=options)
        if self.token_file is None:
            return channel
        if not (self.encrypts or self.allow_plaintext or parse_address(address).is_loopback):
            raise AccessError(
                f"the token is not sent to {address} without TLS, since whoever is on the way could read it. Remedy: "
                "Credentials(ca_file=...) or tls=True; or allow_plaintext=True where something else encrypts"
            )
        return grpc.intercept_channel(channel, _SendsToken(self._token))

    def _token(self) -> str:
        token = (_read(self.token_file, MAX_TOKEN_BYTES) or b"").decode("ascii", "replace").strip()
        if not token or not token.isprintable() or not token.isascii() or " " in token:
            raise AccessError(
                f"{self.token_file} does not hold a token. Remedy: one word and nothing else, as the operator gave it"
            )
        return token


class _Details(NamedTuple):
    """``grpc.ClientCallDetails``, which is abstract."""

    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _SendsToken(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):  # type: ignore[type-arg]
    """Sends the token along with every call."""

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


def _read(path: str | PathLike[str] | None, most: int = -1) -> bytes | None:
    if path is None:
        return None
    try:
        with Path(path).open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise AccessError(
            f"cannot read {path}: {error.strerror}. Remedy: a file that is there, and that this user may read"
        ) from None
