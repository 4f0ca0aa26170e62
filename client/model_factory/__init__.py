"""model-factory: trainable torch modules from a model server, without the model code on the trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model_factory.errors import (
    AccessError,
    BuildError,
    BusyError,
    CallFormError,
    ConfigError,
    FormatError,
    GraphExecutionError,
    IntegrityError,
    LimitError,
    MissingBlobError,
    ModelFactoryError,
    NotPortableError,
    OutdatedBuildError,
    RangeError,
    ServerError,
    SourceError,
    StoreError,
    UnavailableError,
)

if TYPE_CHECKING:
    from model_factory.graph.modules import GraphModel
    from model_factory.protocol import ModelFactory
    from model_factory.remote.credentials import Credentials
    from model_factory.remote.factory import RemoteModelFactory

__all__ = [
    "AccessError",
    "BuildError",
    "BusyError",
    "CallFormError",
    "ConfigError",
    "Credentials",
    "FormatError",
    "GraphExecutionError",
    "GraphModel",
    "IntegrityError",
    "LimitError",
    "MissingBlobError",
    "ModelFactory",
    "ModelFactoryError",
    "NotPortableError",
    "OutdatedBuildError",
    "RangeError",
    "RemoteModelFactory",
    "ServerError",
    "SourceError",
    "StoreError",
    "UnavailableError",
]

_LATE = {
    "Credentials": "model_factory.remote.credentials",
    "GraphModel": "model_factory.graph.modules",
    "ModelFactory": "model_factory.protocol",
    "RemoteModelFactory": "model_factory.remote.factory",
}


def __getattr__(name: str) -> Any:
    # Looked up late, so that what needs no torch (the server's own process, `validate`) does not import it.
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415

    from model_factory.collection import importing  # noqa: PLC0415

    with importing():
        return getattr(importlib.import_module(_LATE[name]), name)
