"""Refuses an address in reach of other machines where nothing encrypts connections."""

from __future__ import annotations

import ipaddress
import logging
import socket

from model_factory.errors import ServerError
from model_factory_server.settings.server_settings import AccessSettings

log = logging.getLogger(__name__)


def check_exposure(listen: str, settings: AccessSettings) -> None:
    """Refuse to listen without TLS where other machines can connect.

    Raises:
        ServerError: other machines can connect, and neither TLS nor ``--allow-plaintext`` is set.

    Example:
        >>> check_exposure("127.0.0.1:50051", AccessSettings())
    """
    if settings.tls_cert is not None or is_loopback(listen):
        return
    if not settings.allow_plaintext:
        raise ServerError(
            f"{listen} can be reached from other machines. Without TLS, others on the network can read and change "
            "everything, tokens included. Remedy: --tls-cert and --tls-key (and --tokens or --tls-client-ca to "
            "restrict access); or listen on 127.0.0.1; or --allow-plaintext where a service mesh encrypts connections"
        )
    log.warning("listening on %s without TLS because of --allow-plaintext", listen)


def is_loopback(listen: str) -> bool:
    """Return whether only this machine can connect; for a name, every address of the name counts.

    Example:
        >>> is_loopback("127.0.0.1:50051"), is_loopback("0.0.0.0:50051")
        (True, False)
    """
    host = listen.rpartition(":")[0].strip("[]")
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)} if host else set()
        return bool(found) and all(ipaddress.ip_address(address).is_loopback for address in found)
    except (OSError, ValueError):
        return False
