"""The one place where this package reads its process's environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

DEFAULT_ADDRESS = "127.0.0.1:50051"
"""Where a server listens and commands look for it, unless told otherwise."""

VARIABLES = ("MODEL_FACTORY_CACHE", "MODEL_FACTORY_SERVER")
"""What this package reads beside the variables that configs name."""


def environment() -> Mapping[str, str]:
    """The variables that ``${env:...}`` in a config may name."""
    return os.environ


def default_cache_dir() -> Path:
    """Where a node keeps blobs: ``$MODEL_FACTORY_CACHE``, else ``model-factory`` in the user's cache folder."""
    explicit = os.environ.get("MODEL_FACTORY_CACHE")
    if explicit:
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "model-factory"


def default_server() -> str:
    """The server that commands talk to: ``$MODEL_FACTORY_SERVER``, else one on this machine."""
    return os.environ.get("MODEL_FACTORY_SERVER") or DEFAULT_ADDRESS
