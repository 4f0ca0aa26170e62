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
    LockError,
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
    from model_factory.checkpoint.checkpoint import Checkpoint
    from model_factory.client.credentials import Credentials
    from model_factory.client.factory import RemoteModelFactory
    from model_factory.identity import BuildInfo
    from model_factory.model_file.load import load
    from model_factory.model_file.save import save
    from model_factory.program.runtime.graph_model import GraphModel
    from model_factory.protocol import ModelFactory

    __version__: str

__all__ = [
    "AccessError",
    "BuildError",
    "BuildInfo",
    "BusyError",
    "CallSignatureError",
    "Checkpoint",
    "ConfigError",
    "Credentials",
    "FormatError",
    "GraphExecutionError",
    "GraphModel",
    "IntegrityError",
    "LimitError",
    "LockError",
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
    "load",
    "save",
]

_LAZY_MODULES = {
    "BuildInfo": "model_factory.identity",
    "Checkpoint": "model_factory.checkpoint.checkpoint",
    "Credentials": "model_factory.client.credentials",
    "GraphModel": "model_factory.program.runtime.graph_model",
    "ModelFactory": "model_factory.protocol",
    "RemoteModelFactory": "model_factory.client.factory",
    "load": "model_factory.model_file.load",
    "save": "model_factory.model_file.save",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that the server process and commands like `validate` do not import torch.
    import importlib  # noqa: PLC0415

    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("model-factory")
    if name not in _LAZY_MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
