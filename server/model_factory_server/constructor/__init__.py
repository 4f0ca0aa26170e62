"""The built-in backend: the registry of names, and the construction of modules from specs."""

from __future__ import annotations

from model_factory_server.constructor.build import build_model
from model_factory_server.constructor.instantiate import instantiate, instantiate_module
from model_factory_server.constructor.permissions import Permissions
from model_factory_server.constructor.registry import Registry, default_registry

__all__ = ["Permissions", "Registry", "build_model", "default_registry", "instantiate", "instantiate_module"]
