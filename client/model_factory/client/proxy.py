"""HTTP proxies between a trainer and the server: off by default, and named in errors without their credentials."""

from __future__ import annotations

from urllib.parse import urlsplit

from model_factory.environment import USE_PROXY, proxy_variables, use_proxy


def proxy_option() -> tuple[str, int]:
    """Return the channel option that turns gRPC's proxies on or off; gRPC's own default is on.

    Raises:
        ModelFactoryError: ``MODEL_FACTORY_USE_PROXY`` is neither true nor false.
    """
    return ("grpc.enable_http_proxy", int(use_proxy()))


def is_proxied() -> bool:
    """Whether connections go through a proxy that the environment names."""
    return use_proxy() and bool(proxy_variables()[1])


def proxy_note() -> str:
    """Return, for an error, the proxy that the environment names and whether connections use the proxy; else empty."""
    variable, url, exceptions = proxy_variables()
    if not url:
        return ""
    named = f"{_host_and_port(url)}, the proxy of {variable}"
    if not use_proxy():
        return f" (not through {named}; {USE_PROXY}=1 connects through the proxy)"
    return f" (through {named}{f', unless {exceptions} lists the server' if exceptions else ''})"


def _host_and_port(url: str) -> str:
    """Return host and port of a proxy's URL; user name and password stay out of errors."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host:
        return "a text that is no http://HOST:PORT"
    return f"{host}:{port or 80}"
