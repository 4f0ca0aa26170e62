"""The model-factory server: builds models from component configs; serves weights, descriptors and programs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model_factory_server.local import PolicyConstructorModelFactory
    from model_factory_server.testing import local_server

__all__ = ["PolicyConstructorModelFactory", "local_server"]

_HOMES = {
    "PolicyConstructorModelFactory": "model_factory_server.local",
    "local_server": "model_factory_server.testing",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: the gRPC process imports this package without torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
