"""Decides whether an RPC is accepted, and names its client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from model_factory.errors import AccessError
from model_factory_server.access.tokens import Tokens
from model_factory_server.settings.server_settings import AccessSettings

OPEN_SERVICES = frozenset({"grpc.health.v1.Health"})
"""Services without authentication: probes of orchestrators have no token, and health responses hold no secret."""

_SCHEME = "bearer "


class Authenticator:
    """Checks the token of every RPC."""

    def __init__(self, settings: AccessSettings) -> None:
        """Read the token file, if the settings name a token file.

        Raises:
            ServerError: the file cannot be used.
        """
        self._tokens = None if settings.tokens is None else Tokens(settings.tokens)

    def token_holder(self, service: str, metadata: Iterable[tuple[str, str | bytes]]) -> str:
        """Return the name of the token's client; empty where no token is needed.

        Raises:
            AccessError: the token is missing, unknown or expired.

        Example:
            >>> Authenticator(AccessSettings()).token_holder("model_factory.v1.ModelFactoryService", [])
            ''
        """
        if self._tokens is None or service in OPEN_SERVICES:
            return ""
        return self._tokens.holder(_bearer_token(metadata))


def identity_of(token_holder: str, auth_context: Mapping[str, Iterable[bytes]]) -> str:
    """Return the client's identity: the token's client, else the name in the certificate, else the empty string.

    Example:
        >>> identity_of("", {"x509_common_name": [b"trainer-3"]})
        'certificate:trainer-3'
    """
    if token_holder:
        return f"token:{token_holder}"
    for name in auth_context.get("x509_common_name", ()):
        return f"certificate:{name.decode(errors='replace')}"
    return ""


def _bearer_token(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    for key, value in metadata:
        if key == "authorization" and isinstance(value, str) and value[: len(_SCHEME)].lower() == _SCHEME:
            return value[len(_SCHEME) :].strip()
    raise AccessError(
        "this server requires a token. Remedy: Credentials(token_file=...), or MODEL_FACTORY_TOKEN_FILE naming the file"
    )
