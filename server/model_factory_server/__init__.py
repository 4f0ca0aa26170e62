"""model-factory's server: builds models from component configs and hands out weights, descriptors and programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model_factory_server.local import PolicyConstructorModelFactory

__all__ = ["PolicyConstructorModelFactory"]


def __getattr__(name: str) -> Any:
    # Looked up late: the gRPC process imports this package and never torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from model_factory_server.local import PolicyConstructorModelFactory  # noqa: PLC0415

    return PolicyConstructorModelFactory
