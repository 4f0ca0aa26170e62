"""The models of the zoo as a plug-in of a server: ``--plugin zoo.plugin``, then ``_type_: zoo`` with a ``name``."""

from __future__ import annotations

from typing import Any

from torch import nn

from zoo.model import Model


def build(name: str) -> nn.Module:
    """Make a model of the zoo with the seed of the build."""
    from zoo.libraries import models_of  # noqa: PLC0415  imports a library

    library = name.partition("/")[0]
    model: Model = next(model for model in models_of(library) if model.name == name)
    return model.prepared(model.make())


def register(registry: Any) -> None:
    """Register the function that makes a model."""
    registry.register_module("zoo", build)
