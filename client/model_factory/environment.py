"""The one place where this package reads its process's environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_factory.errors import ModelFactoryError, StoreError
from model_factory.limits import MIB

DEFAULT_ADDRESS = "127.0.0.1:50051"
"""Where a server listens and commands look for it, unless told otherwise."""

_FILES = {
    "ca_file": "MODEL_FACTORY_CA_FILE",
    "cert_file": "MODEL_FACTORY_CERT_FILE",
    "key_file": "MODEL_FACTORY_KEY_FILE",
    "token_file": "MODEL_FACTORY_TOKEN_FILE",
}
_TLS = "MODEL_FACTORY_TLS"
_SERVER_NAME = "MODEL_FACTORY_SERVER_NAME"
_ALLOW_PLAINTEXT = "MODEL_FACTORY_ALLOW_PLAINTEXT"  # a server has a setting of that name

WORDS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
"""How a variable says that something is so, in any case of letters."""

_CACHE = "MODEL_FACTORY_CACHE"
_CACHE_GIB = "MODEL_FACTORY_CACHE_GIB"
_SHARED_STORE = "MODEL_FACTORY_SHARED_STORE"
_SERVER = "MODEL_FACTORY_SERVER"
_INDUCTOR = "TORCHINDUCTOR_CACHE_DIR"

USE_PROXY = "MODEL_FACTORY_USE_PROXY"
"""Turns on the HTTP proxies that the environment names."""

_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # the first one that is set counts for gRPC, even if empty
_NO_PROXIES = ("no_grpc_proxy", "no_proxy")  # the same

VARIABLES = (_CACHE, _CACHE_GIB, _SHARED_STORE, _SERVER, USE_PROXY, _TLS, _SERVER_NAME, *_FILES.values())
"""What this package reads beside the variables that configs name."""


def environment() -> Mapping[str, str]:
    """The variables that ``${env:...}`` in a config may name."""
    return os.environ


def client_credentials() -> dict[str, Any]:
    """What the environment says for the fields of ``Credentials``.

    Raises:
        ModelFactoryError: a variable that is yes or no is neither.
    """
    files = {field: os.environ[variable] for field, variable in _FILES.items() if os.environ.get(variable)}
    words = {"server_name": os.environ.get(_SERVER_NAME, ""), "tls": _is_on(_TLS)}
    return files | words | {"allow_plaintext": _is_on(_ALLOW_PLAINTEXT)}


def use_proxy() -> bool:
    """Whether connections go through the HTTP proxies that the environment names: ``$MODEL_FACTORY_USE_PROXY``.

    Raises:
        ModelFactoryError: the variable is neither true nor false.
    """
    return _is_on(USE_PROXY)


def proxy_variables() -> tuple[str, str, str]:
    """Return the variable that names a proxy, its URL, and the variable with exceptions; empty texts where unset."""
    variable = next((name for name in _PROXIES if name in os.environ), "")
    exceptions = next((name for name in _NO_PROXIES if name in os.environ), "")
    return variable, os.environ.get(variable, ""), exceptions if os.environ.get(exceptions) else ""


def grpc_fork_support() -> bool:
    """Whether ``$GRPC_ENABLE_FORK_SUPPORT`` turns on the fork support of gRPC's Python part, beside the core's."""
    return os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "").lower() in {"1", "yes", "true"}  # the words that gRPC knows


def _is_on(variable: str) -> bool:
    """Read a variable that is true or false; false where unset or empty.

    Raises:
        ModelFactoryError: the variable is neither.
    """
    word = os.environ.get(variable) or "no"
    if word.lower() not in WORDS:
        raise ModelFactoryError(f"{variable} is true/false, 1/0, yes/no or on/off, got {word!r}")
    return WORDS[word.lower()]


def keep_variables(is_allowed: Callable[[str], bool]) -> None:
    """Remove from this process's environment every variable that is not allowed."""
    for name in [name for name in os.environ if not is_allowed(name)]:
        del os.environ[name]


@contextmanager
def only_variables(is_allowed: Callable[[str], bool], more: Mapping[str, str]) -> Iterator[None]:
    """Start processes inside with the allowed variables alone, and some more."""
    before = dict(os.environ)
    keep_variables(is_allowed)
    os.environ.update(more)
    try:
        yield
    finally:
        for name in more:
            del os.environ[name]
        os.environ.update(before)


def default_cache_dir() -> Path:
    """Where a node keeps blobs: ``$MODEL_FACTORY_CACHE``, else ``model-factory`` in the user's cache folder.

    Raises:
        StoreError: the user has no home folder, and the variable names no folder outside of a home folder.
    """
    explicit, caches = os.environ.get(_CACHE), os.environ.get("XDG_CACHE_HOME")
    try:
        if explicit:
            return Path(explicit).expanduser()
        return Path(caches or Path.home() / ".cache") / "model-factory"
    except (RuntimeError, KeyError) as error:  # no HOME, and no entry of the user in the system's table
        raise StoreError(
            "no folder for the cache: this user has no home folder. "
            f"Remedy: set {_CACHE} to a folder that this user may read and write"
        ) from error


def library_caches() -> list[Path]:
    """Where libraries keep what they derive from code and from the machine: lists of fonts, compiled kernels."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111  no error without a home
    caches = [Path(home, name) for name in ("fontconfig", "matplotlib", "numba")]
    inductor = os.environ.get(_INDUCTOR)
    return [*caches, Path(inductor)] if inductor else caches


def default_cache_bytes() -> int:
    """What the blobs of the cache may take: ``$MODEL_FACTORY_CACHE_GIB`` in GiB, else 64.

    Raises:
        ModelFactoryError: the variable is not a number.
    """
    text = os.environ.get(_CACHE_GIB) or "64"
    try:
        gib = float(text)
    except ValueError:
        gib = -1.0
    if not 0 <= gib < 1 << 30:
        raise ModelFactoryError(f"{_CACHE_GIB} is a size in GiB, got {text!r}. Remedy: 64 say, or unset it")
    return int(gib * 1024 * MIB)


def shared_store() -> str:
    """Where this node sees the server's store and trusts its owner: ``$MODEL_FACTORY_SHARED_STORE``.

    For one that lies elsewhere here than for the server, or belongs to another user.
    """
    return os.environ.get(_SHARED_STORE, "")


def default_server() -> str:
    """The server that commands talk to: ``$MODEL_FACTORY_SERVER``, else one on this machine."""
    return os.environ.get(_SERVER) or DEFAULT_ADDRESS
