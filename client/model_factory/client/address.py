"""Addresses of servers: which forms gRPC takes, and what is wrong with any other text."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from model_factory.environment import DEFAULT_ADDRESS
from model_factory.errors import ServerError
from model_factory.limits import MAX_PORT
from model_factory.wording import quoted

_LOCAL = ("unix:", "unix-abstract:")
_OTHERS = ("vsock:", "xds:")
_HOSTS = ("dns:", "ipv4:", "ipv6:")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_IN_NO_HOST = re.compile(r"[\s/\\@?#,\[\]\x00-\x1f\x7f\ud800-\udfff]")
_FORMS = "Remedy: HOST:PORT, as in gpu-node:50051, or [IPV6]:PORT; unix:PATH and dns:///HOST:PORT are addresses too"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """The address of a server."""

    text: str
    """As the trainer wrote the address, and as gRPC takes the address."""
    hosts: tuple[tuple[str, int], ...] = ()
    """Host and port; several for a list of numeric addresses, and empty for local sockets and name services."""

    @property
    def is_loopback(self) -> bool:
        """Whether nothing that is sent there leaves this machine."""
        if not self.hosts:
            return self.text.startswith(_LOCAL)
        return all(_is_loopback(host) for host, _ in self.hosts)


def parse_address(text: str) -> Address:
    """Return the address that a text is.

    >>> parse_address("gpu-node:50051").hosts
    (('gpu-node', 50051),)
    >>> parse_address("[::1]:50051").is_loopback
    True

    Raises:
        ServerError: the text is no address; the message has the text, the cause and a remedy.
    """
    if not isinstance(text, str):
        raise ServerError(f"the address of a server is text, got {quoted(text)}. {_FORMS}")
    scheme, _, rest = text.partition(":")
    if text.startswith((*_LOCAL, *_OTHERS)) and rest.strip("/"):
        return Address(text=text)
    if not text.startswith(_HOSTS):
        return Address(text=text, hosts=(_host_and_port(text, text),))
    if rest.startswith("//"):  # an authority, which is the name server to ask
        rest = rest.removeprefix("//").partition("/")[2]
    parts = rest.split(",") if scheme != "dns" else [rest]
    return Address(text=text, hosts=tuple(_host_and_port(part, text) for part in parts))


def _host_and_port(part: str, text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``, a part of an address."""
    host, _, port = part.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if cause := _fault(part, host, bare, port):
        raise ServerError(f"{quoted(text)} is not the address of a server: {cause}")
    return bare, int(port)


def _fault(part: str, host: str, bare: str, port: str) -> str:
    """Return what keeps a text from being ``HOST:PORT``, with the remedy; empty if nothing does."""
    if not part.strip():
        return f"the address is empty. {_FORMS}"
    if url := _URL.fullmatch(part):
        return _of_url(url[1], url[2])
    if part != part.strip():
        return f"there is space at an end. Remedy: {part.strip()}"
    if ":" not in part or (part.startswith("[") and part.endswith("]")):
        is_host = _is_ipv6(part.strip("[]")) or not _IN_NO_HOST.search(part)
        return f"the port is missing. Remedy: {part if is_host else 'HOST'}:50051"
    if _is_ipv6(part) or (host == bare and ":" in host):
        return f"an IPv6 address stands in brackets, and a port comes after. Remedy: {_bracketed(part)}"
    if not bare:
        return f"the host is missing. Remedy: {DEFAULT_ADDRESS} for a server on this machine"
    if host != bare and not _is_ipv6(bare):
        return f"{quoted(bare)} in brackets is no IPv6 address. {_FORMS}"
    if found := _IN_NO_HOST.search(bare):
        return f"a host has no {quoted(found[0])}. {_FORMS}"
    return _fault_of_port(port)


def _fault_of_port(port: str) -> str:
    if not (port.isascii() and port.isdigit()):
        return f"the port {quoted(port)} is no number. {_FORMS}"
    if len(port) > len(str(MAX_PORT)) or not 0 < int(port) <= MAX_PORT:
        return f"the port is {quoted(port)}; ports are 1 to {MAX_PORT}. Remedy: the port of the server's --listen"
    return ""


def _of_url(scheme: str, rest: str) -> str:
    """Return what is wrong with a URL, with the address in it as the remedy."""
    place = rest.partition("/")[0].rpartition("@")[2]
    port = place.rpartition(":")[2]
    remedy = place if port != place and port.isdigit() else f"{place or 'HOST'}:50051"
    secure = (
        ", with MODEL_FACTORY_TLS=1 or Credentials(tls=True) for TLS" if scheme.lower() in {"https", "grpcs"} else ""
    )
    return f"a URL of the scheme {quoted(scheme)}, where gRPC takes an address. Remedy: {remedy}{secure}"


def _bracketed(part: str) -> str:
    """Return the likeliest spelling of an IPv6 address without brackets, with a port."""
    host, _, port = part.rpartition(":")
    if _is_ipv6(host) and port.isdigit() and len(port) == 5:  # no group of an address is so long
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
