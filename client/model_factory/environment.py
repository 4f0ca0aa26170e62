"""Access to the environment of the process; no other module of this package reads environment variables."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_factory.errors import AccessError, ModelFactoryError, StoreError
from model_factory.limits import MIB

DEFAULT_ADDRESS = "127.0.0.1:50051"
"""Default address for servers and commands."""

_FILES = {
    "ca_file": "MODEL_FACTORY_CA_FILE",
    "cert_file": "MODEL_FACTORY_CERT_FILE",
    "key_file": "MODEL_FACTORY_KEY_FILE",
    "token_file": "MODEL_FACTORY_TOKEN_FILE",
}
_TLS = "MODEL_FACTORY_TLS"
_SERVER_NAME = "MODEL_FACTORY_SERVER_NAME"
_ALLOW_PLAINTEXT = "MODEL_FACTORY_ALLOW_PLAINTEXT"  # the server has a setting with this name

WORDS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
"""Accepted values of boolean variables; upper and lower case are equal."""

_CACHE = "MODEL_FACTORY_CACHE"
_CACHE_GIB = "MODEL_FACTORY_CACHE_GIB"
_SHARED_STORE = "MODEL_FACTORY_SHARED_STORE"
SERVER = "MODEL_FACTORY_SERVER"
"""Name of the variable with the address of the server."""

_PROGRESS = "MODEL_FACTORY_PROGRESS"
_RANKS = ("RANK", "SLURM_PROCID")  # of torchrun, and of Slurm
_OFFLINE = "MODEL_FACTORY_OFFLINE"
_TRUST_SOURCE = "MODEL_FACTORY_TRUST_SOURCE"
_INDUCTOR = "TORCHINDUCTOR_CACHE_DIR"

USE_PROXY = "MODEL_FACTORY_USE_PROXY"
"""Name of the variable that turns on the HTTP proxies of the environment."""

SHARE_VALUES = "MODEL_FACTORY_SHARE_VALUES"
"""Name of the variable that lets servers learn values of calls."""

_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # gRPC uses the first variable that is set, even if empty
_NO_PROXIES = ("no_grpc_proxy", "no_proxy")  # likewise

VARIABLES = (
    *(_CACHE, _CACHE_GIB, _SHARED_STORE, SERVER, SHARE_VALUES, _TRUST_SOURCE, _OFFLINE, _PROGRESS, USE_PROXY, _TLS),
    _SERVER_NAME,
    *_FILES.values(),
)
"""All variables of this package; configs can name more."""


def environment() -> Mapping[str, str]:
    """Return the variables for ``${env:...}`` in configs."""
    return os.environ


def client_credentials() -> dict[str, Any]:
    """Return values for the fields of ``Credentials`` from the environment.

    Raises:
        AccessError: a variable is empty, which could turn off TLS or the token unnoticed.
        ModelFactoryError: a boolean variable has another value.
    """
    for variable in (*_FILES.values(), _TLS, _SERVER_NAME, _ALLOW_PLAINTEXT):
        if variable in os.environ and not os.environ[variable].strip():
            raise AccessError(empty_access_variable(variable))
    files = {field: os.environ[variable] for field, variable in _FILES.items() if variable in os.environ}
    words = {"server_name": os.environ.get(_SERVER_NAME, ""), "tls": _is_on(_TLS)}
    return files | words | {"allow_plaintext": _is_on(_ALLOW_PLAINTEXT)}


def empty_access_variable(name: str) -> str:
    """Return the text of the error for an empty variable or key that decides about access.

    >>> empty_access_variable("MODEL_FACTORY_TLS").partition(". Remedy: ")[2]
    'give MODEL_FACTORY_TLS a value, or remove MODEL_FACTORY_TLS to go without'
    """
    return (
        f"{name} is empty, and an empty value would turn protection off unnoticed. "
        f"Remedy: give {name} a value, or remove {name} to go without"
    )


def use_proxy() -> bool:
    """Whether connections use the HTTP proxies of the environment: ``$MODEL_FACTORY_USE_PROXY``.

    Raises:
        ModelFactoryError: the variable is neither true nor false.
    """
    return _is_on(USE_PROXY)


def share_values() -> bool:
    """Whether servers may learn values of calls to record: ``$MODEL_FACTORY_SHARE_VALUES``.

    Raises:
        ModelFactoryError: the variable is neither true nor false.
    """
    return _is_on(SHARE_VALUES)


def offline() -> bool | None:
    """Whether to build from the node cache alone: ``$MODEL_FACTORY_OFFLINE``; None where unset.

    Raises:
        ModelFactoryError: the variable is neither true nor false.
    """
    return _is_on(_OFFLINE) if os.environ.get(_OFFLINE) else None


def shows_progress() -> bool:
    """Whether this process shows progress: ``$MODEL_FACTORY_PROGRESS``, else only the first rank of a job.

    Raises:
        ModelFactoryError: the variable is neither true nor false.
    """
    if os.environ.get(_PROGRESS):
        return _is_on(_PROGRESS)
    return next((os.environ[name] == "0" for name in _RANKS if os.environ.get(name)), True)


def proxy_variables() -> tuple[str, str, str]:
    """Return the proxy variable's name, the URL, and the name of the variable with exceptions; empty where unset."""
    variable = next((name for name in _PROXIES if name in os.environ), "")
    exceptions = next((name for name in _NO_PROXIES if name in os.environ), "")
    return variable, os.environ.get(variable, ""), exceptions if os.environ.get(exceptions) else ""


def grpc_fork_support() -> bool:
    """Whether ``$GRPC_ENABLE_FORK_SUPPORT`` turns on fork support in gRPC's Python part."""
    return os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "").lower() in {"1", "yes", "true"}  # the values known to gRPC


def _is_on(variable: str) -> bool:
    """Read a boolean variable; false where unset or empty.

    Raises:
        ModelFactoryError: the variable has another value.
    """
    word = os.environ.get(variable) or "no"
    if word.lower() not in WORDS:
        raise ModelFactoryError(f"{variable} is true/false, 1/0, yes/no or on/off, got {word!r}")
    return WORDS[word.lower()]


def default_roots_file() -> str:
    """File of certificate authorities that replaces the system's in gRPC; empty where unset."""
    return os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "")


def keep_variables(is_allowed: Callable[[str], bool]) -> None:
    """Remove all other variables from the environment of this process."""
    for name in [name for name in os.environ if not is_allowed(name)]:
        del os.environ[name]


def use_temporary_folder(folder: Path) -> None:
    """Have this process and its children make temporary files in ``folder``."""
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


@contextmanager
def only_variables(is_allowed: Callable[[str], bool], more: Mapping[str, str]) -> Iterator[None]:
    """Limit the environment to allowed variables plus ``more`` for the block, for processes started inside."""
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
    """Folder of the node cache: ``$MODEL_FACTORY_CACHE``, else ``model-factory`` in the user's cache folder.

    Raises:
        StoreError: the user has no home folder, and the variable is unset or relative to a home folder.
    """
    explicit, caches = os.environ.get(_CACHE), os.environ.get("XDG_CACHE_HOME")
    try:
        if explicit:
            return Path(explicit).expanduser()
        return Path(caches or Path.home() / ".cache") / "model-factory"
    except (RuntimeError, KeyError) as error:  # no HOME, and no entry for the user in the password file
        raise StoreError(
            "no folder for the cache: this user has no home folder. "
            f"Remedy: set {_CACHE} to a folder that this user may read and write"
        ) from error


def library_caches() -> list[Path]:
    """Cache folders of libraries, for lists of fonts and compiled kernels."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111  no error without a home
    caches = [Path(home, name) for name in ("fontconfig", "matplotlib", "numba")]
    inductor = os.environ.get(_INDUCTOR)
    return [*caches, Path(inductor)] if inductor else caches


def default_cache_bytes() -> int:
    """Bound on the blobs of the cache, in bytes: ``$MODEL_FACTORY_CACHE_GIB`` in GiB, else 64 GiB.

    Raises:
        ModelFactoryError: the variable is not a number.
    """
    text = os.environ.get(_CACHE_GIB) or "64"
    try:
        gib = float(text)
    except ValueError:
        gib = -1.0
    if not 0 <= gib < 1 << 30:
        raise ModelFactoryError(
            f"{_CACHE_GIB} is a size in GiB, got {text!r}. Remedy: a number, for example 64, or unset the variable"
        )
    return int(gib * 1024 * MIB)


def shared_store() -> str:
    """Folder with the server's store on this node, of a trusted owner: ``$MODEL_FACTORY_SHARED_STORE``.

    Needed where the path differs from the server's path, or where another user owns the store.
    """
    return os.environ.get(_SHARED_STORE, "")


def trusted_lock_file() -> Path | None:
    """Lock file with the source code that may run in this process: ``$MODEL_FACTORY_TRUST_SOURCE``; None where unset.

    Only the path of a lock file: no variable can trust all code of a server.
    """
    path = os.environ.get(_TRUST_SOURCE)
    return Path(path).expanduser() if path else None


def configured_server() -> str:
    """Address of the server: ``$MODEL_FACTORY_SERVER``; empty where unset."""
    return os.environ.get(SERVER, "").strip()


def default_server() -> str:
    """Address of the server for commands: ``$MODEL_FACTORY_SERVER``, else a server on this machine."""
    return os.environ.get(SERVER) or DEFAULT_ADDRESS
