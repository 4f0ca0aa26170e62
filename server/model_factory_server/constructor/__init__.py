"""The built-in backend: what component configs can name, and how their specs become modules."""

from __future__ import annotations

from model_factory_server.constructor.build import build_model
from model_factory_server.constructor.instantiate import instantiate, instantiate_module
from model_factory_server.constructor.policy import Policy
from model_factory_server.constructor.registry import Registry, default_registry

__all__ = ["Policy", "Registry", "build_model", "default_registry", "instantiate", "instantiate_module"]
