"""Who may talk to this server: certificates, tokens, and where it may listen without either."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import re
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from model_factory.errors import AccessError, ServerError
from model_factory.limits import MIB
from model_factory_server.settings.server_settings import AccessSettings

log = logging.getLogger(__name__)

OPEN_SERVICES = frozenset({"grpc.health.v1.Health"})
"""Answered without a token: the probes of orchestrators have none. Their answers tell nothing."""

MAX_TOKENS_BYTES = MIB
"""Of the file of tokens."""

_LINE = re.compile(r"(?P<name>[A-Za-z0-9._@-]{1,64})\s+(?P<sha256>[0-9a-f]{64})(?:\s+(?P<expires>\S+))?")
_SCHEME = "bearer "
_CHECK_SECONDS = 1.0  # between looks at the file
_DAY_SECONDS = 86400.0
_WARN_DAYS = 7.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token that is accepted; the token itself is nowhere on the server."""

    name: str
    """Of the client that has it."""
    sha256: str
    """Of the token, in hex. A token is 256 random bits, so one round of a fast hash is enough."""
    expires: float
    """Seconds since the epoch; infinity: never."""


class Tokens:
    """The tokens of a file, read again when it changes; a file that became unreadable leaves the last ones valid."""

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        """Read the file.

        Raises:
            ServerError: it cannot be read, or a line is not one; the message names the line and shows none of it.
        """
        self._path = path
        self._now = now
        self._stamp = _stamp(path)
        self._tokens = read_tokens(path)
        self._looked = time.monotonic()

    def holder(self, token: str) -> str:
        """Return the name of a token's holder.

        Raises:
            AccessError: nobody has this token, or it has expired.
        """
        self._refresh()
        given = hashlib.sha256(token.encode()).hexdigest()
        found = None
        for item in self._tokens:  # every one is compared, so the time says nothing about which matched
            if hmac.compare_digest(item.sha256, given):
                found = item
        if found is None:
            raise AccessError("this server does not know the token. Remedy: ask its operator for one")
        if found.expires <= self._now():
            raise AccessError(
                f"the token of {found.name!r} has expired. Remedy: ask the server's operator for a new one"
            )
        return found.name

    def _refresh(self) -> None:
        if time.monotonic() - self._looked < _CHECK_SECONDS:
            return
        self._looked = time.monotonic()
        try:
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                # A line that is none keeps nobody else in or out; a file with no other is broken.
                bad: list[ServerError] = []
                tokens = read_tokens(self._path, bad.append)
                if bad and not tokens:
                    raise bad[0]
                for error in bad:
                    log.error("a line of the tokens is left out: %s", error)
                self._tokens, self._stamp = tokens, stamp
                log.info("read %d tokens from %s", len(self._tokens), self._path)
        except ServerError as error:
            log.error("the tokens stay as they were: %s", error)  # noqa: TRY400  ours, and its text says it all


class Access:
    """Decides about every call."""

    def __init__(self, settings: AccessSettings) -> None:
        """Read what the settings name.

        Raises:
            ServerError: a file cannot be used.
        """
        self._tokens = None if settings.tokens is None else Tokens(settings.tokens)

    def holder(self, service: str, metadata: Iterable[tuple[str, str | bytes]]) -> str:
        """Return whose token a call has; empty where none is asked for.

        Raises:
            AccessError: there is none, or it is not accepted.
        """
        if self._tokens is None or service in OPEN_SERVICES:
            return ""
        return self._tokens.holder(_bearer(metadata))

    @staticmethod
    def identity(holder: str, context: Any) -> str:
        """Who makes a call: its token's holder, else its certificate's name; empty where neither is asked for."""
        if holder:
            return f"token:{holder}"
        names = context.auth_context().get("x509_common_name", ())
        return f"certificate:{names[0].decode(errors='replace')}" if names else ""


def read_tokens(path: Path, on_bad: Callable[[ServerError], object] | None = None) -> tuple[Token, ...]:
    """Read a file of tokens: lines with a name, the token's SHA-256 in hex, and when it expires, in ISO 8601.

    ``on_bad`` is told of each line that is not one.

    Raises:
        ServerError: it cannot be read, or a line is not one and there is no ``on_bad``.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_TOKENS_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ServerError(f"cannot read the tokens in {path}: {type(error).__name__}") from None
    if len(text) > MAX_TOKENS_BYTES:
        raise ServerError(f"{path} has more than the {MAX_TOKENS_BYTES} bytes that a file of tokens may have")
    tokens = []
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.partition("#")[0].strip()
        if content:
            try:
                tokens.append(_token(content, f"{path}:{number}"))
            except ServerError as error:
                if on_bad is None:
                    raise
                on_bad(error)
    return tuple(tokens)


def token_line(name: str, token: str, days: float | None) -> str:
    """Write the line of a file of tokens that lets the holder of a token in.

    Raises:
        ServerError: the name is not one word, or there are no so many days.
    """
    line = f"{name} {hashlib.sha256(token.encode()).hexdigest()}"
    if days is not None:
        try:
            until = datetime.now(UTC) + timedelta(days=days)
        except (OverflowError, ValueError):
            raise ServerError(f"--days {days:g} is no number of days that a date can be ahead") from None
        line += f" {until.isoformat(timespec='seconds')}"
    _token(line, "the new token")
    return line


@dataclass(frozen=True, slots=True, kw_only=True)
class Encryption:
    """What connections are encrypted with."""

    credentials: grpc.ServerCredentials
    """For the port."""
    expiry: Callable[[], float]
    """When the certificate in use expires, in seconds since the epoch."""


def encryption(settings: AccessSettings) -> Encryption | None:
    """Return what connections are encrypted with, read again from its files when they change; None: not encrypted.

    Raises:
        ServerError: a file cannot be read or does not fit another, or one of two is not given.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        if settings.tls_cert is not None or settings.tls_key is not None or settings.tls_client_ca is not None:
            raise ServerError("TLS needs --tls-cert and --tls-key, and mutual TLS --tls-client-ca beside them")
        return None
    files = tuple(item for item in (settings.tls_cert, settings.tls_key, settings.tls_client_ca) if item is not None)
    used: dict[str, Any] = {"stamps": _stamps(files)}
    asks_for_one = settings.tls_client_ca is not None

    def configuration() -> Any:
        certificate, key = _read(files[0]), _read(files[1])
        expiry = _check_pair(files[0], certificate, files[1], key)
        made = grpc.ssl_server_certificate_configuration(
            [(key, certificate)], root_certificates=_read(files[2]) if asks_for_one else None
        )
        _warn_of_expiry(files[0], expiry)
        used["expiry"] = expiry
        return made

    def changed() -> Any:
        """What handshakes from now on use; None: what they did. Called by gRPC for each of them."""
        try:
            stamps = _stamps(files)
            if stamps == used["stamps"]:
                return None
            fresh = configuration()
        except ServerError as error:
            log.error("the certificates stay as they were: %s", error)  # noqa: TRY400  its text says it all
            return None
        used["stamps"] = stamps
        log.info("read the certificates again")
        return fresh

    made = grpc.dynamic_ssl_server_credentials(configuration(), changed, require_client_authentication=asks_for_one)
    return Encryption(credentials=made, expiry=lambda: float(used["expiry"]))


def _check_pair(certificate_path: Path, certificate: bytes, key_path: Path, key: bytes) -> float:
    """Check that a key is a certificate's, the first of a chain; return when that expires."""
    try:
        first = x509.load_pem_x509_certificate(certificate)
    except ValueError:
        raise ServerError(f"{certificate_path} does not hold a certificate in PEM") from None
    try:
        private = serialization.load_pem_private_key(key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it has a password
        raise ServerError(f"{key_path} does not hold a private key in PEM, without a password") from None
    if private.public_key() != first.public_key():
        raise ServerError(f"the key in {key_path} is not that of the certificate in {certificate_path}")
    return first.not_valid_after_utc.timestamp()


def _warn_of_expiry(path: Path, expiry: float) -> None:
    days = (expiry - time.time()) / _DAY_SECONDS
    if days < 0:
        log.error("the certificate in %s has expired: no client will connect. Remedy: replace the file", path)
    elif days < _WARN_DAYS:
        log.warning("the certificate in %s expires in %.1f days", path, days)


def check_exposure(listen: str, settings: AccessSettings) -> None:
    """Refuse to listen unencrypted where others than this machine can connect.

    Raises:
        ServerError: it would.
    """
    if settings.tls_cert is not None or is_loopback(listen):
        return
    if not settings.allow_plaintext:
        raise ServerError(
            f"{listen} can be reached from other machines, and without TLS whatever passes can be read and changed on "
            "the way, tokens included. Remedy: --tls-cert and --tls-key (and --tokens or --tls-client-ca, to say who "
            "may talk); or listen on 127.0.0.1; or --allow-plaintext where something else encrypts, a service mesh say"
        )
    log.warning("listening on %s without TLS, as --allow-plaintext says", listen)


def is_loopback(listen: str) -> bool:
    """Whether only this machine can connect to an address; a name counts when all it stands for does."""
    host = listen.rpartition(":")[0].strip("[]")
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)} if host else set()
        return bool(found) and all(ipaddress.ip_address(address).is_loopback for address in found)
    except (OSError, ValueError):
        return False


def _token(content: str, place: str) -> Token:
    match = _LINE.fullmatch(content)
    if match is None:
        raise ServerError(
            f"{place} is not a token: a line has a name, the token's SHA-256 in 64 hexadecimal digits, and perhaps "
            "when it expires. Remedy: model-factory token NAME writes one"
        )
    try:
        until = datetime.fromisoformat(match["expires"]) if match["expires"] else None
    except ValueError:
        raise ServerError(f"{place}: {match['expires']!r} is not a time like 2030-01-31T12:00:00+00:00") from None
    if until is not None and until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return Token(
        name=match["name"], sha256=match["sha256"], expires=float("inf") if until is None else until.timestamp()
    )


def _bearer(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    for key, value in metadata:
        if key == "authorization" and isinstance(value, str) and value[: len(_SCHEME)].lower() == _SCHEME:
            return value[len(_SCHEME) :].strip()
    raise AccessError(
        "this server wants a token. Remedy: Credentials(token_file=...), or MODEL_FACTORY_TOKEN_FILE naming the file"
    )


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise ServerError(f"cannot read {path}: {error.strerror}") from None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _stamps(paths: Iterable[Path]) -> tuple[tuple[int, int, int], ...]:
    return tuple(_stamp(path) for path in paths)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ServerError(f"cannot read {path}: {error.strerror}") from None
