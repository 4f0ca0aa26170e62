"""model-factory: trainable torch modules from a model server, without the model code on the trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model_factory.errors import (
    AccessError,
    BuildError,
    BusyError,
    CallSignatureError,
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
    from model_factory.client.credentials import Credentials
    from model_factory.client.factory import RemoteModelFactory
    from model_factory.program.runtime.modules import GraphModel
    from model_factory.protocol import ModelFactory

__all__ = [
    "AccessError",
    "BuildError",
    "BusyError",
    "CallSignatureError",
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
    "Credentials": "model_factory.client.credentials",
    "GraphModel": "model_factory.program.runtime.modules",
    "ModelFactory": "model_factory.protocol",
    "RemoteModelFactory": "model_factory.client.factory",
}


def __getattr__(name: str) -> Any:
    # Looked up late, so that what needs no torch (the server's own process, `validate`) does not import it.
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415

    return getattr(importlib.import_module(_LATE[name]), name)
