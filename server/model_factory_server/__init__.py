"""model-factory's server: builds models from component configs and serves weights, descriptors and programs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model_factory_server.in_process import PolicyConstructorModelFactory
    from model_factory_server.testing import local_server

    __version__: str

__all__ = ["PolicyConstructorModelFactory", "local_server"]

_LAZY_MODULES = {
    "PolicyConstructorModelFactory": "model_factory_server.in_process",
    "local_server": "model_factory_server.testing",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that the server process does not import torch.
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("model-factory-server")
    if name not in _LAZY_MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
