"""The one place where this package reads its process's environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from model_factory.errors import ModelFactoryError
from model_factory.limits import MIB

DEFAULT_ADDRESS = "127.0.0.1:50051"
"""Where a server listens and commands look for it, unless told otherwise."""


def environment() -> Mapping[str, str]:
    """The variables that ``${env:...}`` in a config may name."""
    return os.environ


def default_cache_dir() -> Path:
    """Where a node keeps blobs: ``$MODEL_FACTORY_CACHE``, else ``model-factory`` in the user's cache folder."""
    explicit = os.environ.get("MODEL_FACTORY_CACHE")
    if explicit:
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "model-factory"


def default_cache_bytes() -> int:
    """What the blobs of the cache may take: ``$MODEL_FACTORY_CACHE_GIB`` in GiB, else 64.

    Raises:
        ModelFactoryError: the variable is not a number.
    """
    text = os.environ.get("MODEL_FACTORY_CACHE_GIB") or "64"
    try:
        gib = float(text)
    except ValueError:
        gib = -1.0
    if not 0 <= gib < 1 << 30:
        raise ModelFactoryError(f"MODEL_FACTORY_CACHE_GIB is a size in GiB, 64 say, got {text!r}")
    return int(gib * 1024 * MIB)


def shared_store() -> str:
    """Where this node sees the server's store, if not where the server does: ``$MODEL_FACTORY_SHARED_STORE``."""
    return os.environ.get("MODEL_FACTORY_SHARED_STORE", "")


def default_server() -> str:
    """The server that commands talk to: ``$MODEL_FACTORY_SERVER``, else one on this machine."""
    return os.environ.get("MODEL_FACTORY_SERVER") or DEFAULT_ADDRESS
