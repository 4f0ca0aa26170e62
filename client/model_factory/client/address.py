"""Addresses of servers, and HTTP proxies on the way.

gRPC accepts several forms of an address; any other text is refused with the cause and a remedy. HTTP proxies are off by
default. Error messages name the proxy without user name and password.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from model_factory.environment import (
    DEFAULT_ADDRESS,
    SERVER,
    USE_PROXY,
    configured_server,
    proxy_variables,
    use_proxy,
)
from model_factory.errors import ServerError
from model_factory.limits import MAX_PORT
from model_factory.wording import quoted

_LOCAL = ("unix:", "unix-abstract:")
_LISTENING = "0A"  # state of a socket in /proc/net/tcp
_NAME_SERVICES = ("vsock:", "xds:")
_HOSTS = ("dns:", "ipv4:", "ipv6:")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_NOT_IN_HOST = re.compile(r"[\s/\\@?#,\[\]\x00-\x1f\x7f\ud800-\udfff]")
_FORMS = "Remedy: HOST:PORT, as in gpu-node:50051, or [IPV6]:PORT; unix:PATH and dns:///HOST:PORT are addresses too"


def server_of_environment() -> str:
    """The address in ``$MODEL_FACTORY_SERVER``.

    Raises:
        ServerError: the variable is not set.
    """
    address = configured_server()
    if not address:
        raise ServerError(f"no server is given. Remedy: set {SERVER} to HOST:PORT, or pass the address")
    return address


NO_PROXY: Mapping[str, Any] = MappingProxyType(
    {
        "grpc.enable_http_proxy": 0,
        # The option above leaves on the proxy of the variable GRPC_ADDRESS_HTTP_PROXY.
        "grpc.address_http_proxy_enabled_addresses": "",
    }
)
"""Channel options of a direct connection, whatever proxies the environment names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """The address of a server."""

    text: str
    """The address as the trainer wrote the text; gRPC takes the same text."""
    hosts: tuple[tuple[str, int], ...] = ()
    """Pairs of host and port: several for a list of numeric addresses, empty for local sockets and name services."""

    @property
    def is_local_socket(self) -> bool:
        """Whether the address is a socket of this machine without a network."""
        return not self.hosts and self.text.startswith(_LOCAL)

    @property
    def is_loopback(self) -> bool:
        """Whether all traffic to the address stays on this machine, if ``localhost`` is a name of this machine."""
        if not self.hosts:
            return self.is_local_socket
        return all(_is_loopback(host) for host, _ in self.hosts)


def parse_address(text: str) -> Address:
    """Parse the address of a server.

    >>> parse_address("gpu-node:50051").hosts
    (('gpu-node', 50051),)
    >>> parse_address("[::1]:50051").is_loopback
    True

    Raises:
        ServerError: the text is not an address; the message has the text, the cause and a remedy.
    """
    if not isinstance(text, str):
        raise ServerError(f"the address of a server is a string, got {quoted(text)}. {_FORMS}")
    scheme, _, rest = text.partition(":")
    if text.startswith((*_LOCAL, *_NAME_SERVICES)) and rest.strip("/"):
        return Address(text=text)
    if not text.startswith(_HOSTS):
        return Address(text=text, hosts=(_parse_host_and_port(text, text),))
    if rest.startswith("//"):  # an authority: the DNS server
        rest = rest.removeprefix("//").partition("/")[2]
    parts = rest.split(",") if scheme != "dns" else [rest]
    return Address(text=text, hosts=tuple(_parse_host_and_port(part, text) for part in parts))


def _parse_host_and_port(part: str, text: str) -> tuple[str, int]:
    """Parse ``HOST:PORT``, a part of an address."""
    host, _, port = part.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if cause := _fault(part, host, bare, port):
        raise ServerError(f"{quoted(text)} is not the address of a server: {cause}")
    return bare, int(port)


def _fault(part: str, host: str, bare: str, port: str) -> str:
    """Return why a text is not ``HOST:PORT``, with the remedy; empty for a valid text."""
    if not part.strip():
        return f"the address is empty. {_FORMS}"
    if url := _URL.fullmatch(part):
        return _url_fault(url[1], url[2])
    if part != part.strip():
        return f"the text begins or ends with white space. Remedy: {part.strip()}"
    if ":" not in part or (part.startswith("[") and part.endswith("]")):
        is_host = _is_ipv6(part.strip("[]")) or not _NOT_IN_HOST.search(part)
        return f"the port is missing. Remedy: {part if is_host else 'HOST'}:50051"
    if _is_ipv6(part) or (host == bare and ":" in host):
        return f"an IPv6 address needs brackets before the port. Remedy: {_bracketed(part)}"
    if not bare:
        return f"the host is missing. Remedy: {DEFAULT_ADDRESS} for a server on this machine"
    if host != bare and not _is_ipv6(bare):
        return f"{quoted(bare)} in brackets is not an IPv6 address. {_FORMS}"
    if found := _NOT_IN_HOST.search(bare):
        return f"a host cannot contain {quoted(found[0])}. {_FORMS}"
    return _port_fault(port)


def _port_fault(port: str) -> str:
    if not (port.isascii() and port.isdigit()):
        return f"the port {quoted(port)} is not a number. {_FORMS}"
    if len(port) > len(str(MAX_PORT)) or not 0 < int(port) <= MAX_PORT:
        return f"the port is {quoted(port)}; ports are 1 to {MAX_PORT}. Remedy: the port of the server's --listen"
    return ""


def _url_fault(scheme: str, rest: str) -> str:
    """Return the fault for a URL; the remedy is the address inside the URL."""
    place = rest.partition("/")[0].rpartition("@")[2]
    port = place.rpartition(":")[2]
    remedy = place if port != place and port.isdigit() else f"{place or 'HOST'}:50051"
    secure = (
        ", with MODEL_FACTORY_TLS=1 or Credentials(tls=True) for TLS" if scheme.lower() in {"https", "grpcs"} else ""
    )
    cause = f"the text is a URL with the scheme {quoted(scheme)}; gRPC takes an address without a scheme"
    return f"{cause}. Remedy: {remedy}{secure}"


def _bracketed(part: str) -> str:
    """Return the likeliest correct spelling of an IPv6 address without brackets."""
    host, _, port = part.rpartition(":")
    if _is_ipv6(host) and port.isdigit() and len(port) == 5:  # a group of an IPv6 address has at most four digits
        return f"[{host}]:{port}"
    return f"[{part}]:50051" if _is_ipv6(part) else "[IPV6]:PORT"


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_options() -> list[tuple[str, Any]]:
    """Return the channel options that turn HTTP proxies on or off; gRPC's own default is on.

    Raises:
        ModelFactoryError: ``MODEL_FACTORY_USE_PROXY`` is neither true nor false.
    """
    return [] if use_proxy() else [*NO_PROXY.items()]


def is_proxied() -> bool:
    """Whether connections go through a proxy that the environment names."""
    return use_proxy() and bool(proxy_variables()[1])


def proxy_note(*, is_direct: bool = False) -> str:
    """Describe the proxy of the environment, and whether connections use the proxy, for an error; else empty.

    ``is_direct``: the connection takes no proxy, see ``Credentials.is_direct``.
    """
    variable, url, exceptions = proxy_variables()
    if not url:
        return ""
    named = f"{_proxy_host_and_port(url)}, the proxy of {variable}"
    if is_direct:
        return f" (not through {named}: a token without TLS takes no proxy)"
    if not use_proxy():
        return f" (not through {named}; {USE_PROXY}=1 connects through the proxy)"
    return f" (through {named}{f', unless {exceptions} lists the server' if exceptions else ''})"


def _proxy_host_and_port(url: str) -> str:
    """Return host and port of a proxy's URL, without user name and password."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host:
        return "a text that is not http://HOST:PORT"
    return f"{host}:{port or 80}"


def listening_users(address: Address) -> tuple[int, ...]:
    """Return the users whose processes listen at an address on this machine; empty if unknown, or for other machines.

    Without TLS, any user of a machine can take a free port of the loopback interface.

    >>> listening_users(parse_address("gpu-node:50051"))
    ()
    """
    if not address.is_loopback:
        return ()
    path = socket_path(address)
    if path:
        with suppress(OSError):
            return (Path(path).stat().st_uid,)
        return ()
    ports = {port for _, port in address.hosts}
    return tuple(sorted({user for port, user in _listening_sockets() if port in ports}))


def _listening_sockets() -> Iterator[tuple[int, int]]:
    """Yield port and user of the TCP sockets that listen on this machine."""
    for table in ("tcp", "tcp6"):
        with suppress(OSError, ValueError, IndexError):
            for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING:
                    yield int(fields[1].rpartition(":")[2], 16), int(fields[7])


def socket_path(address: Address) -> str:
    """Return the absolute path of a socket file; empty for other addresses.

    >>> socket_path(parse_address("unix:///run/factory.sock"))
    '/run/factory.sock'
    """
    if not address.text.startswith("unix:"):
        return ""
    path = address.text.removeprefix("unix:")
    return str(Path(path.removeprefix("//")).resolve())
