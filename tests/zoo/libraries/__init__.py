"""The models of the zoo, one module for each library. A library is imported by its own module only."""

from __future__ import annotations

import importlib
import pkgutil

from zoo.model import Model

LIBRARIES = sorted(module.name for module in pkgutil.iter_modules(__path__))
"""Names of the libraries, which are the first part of the names of models."""


def models_of(library: str) -> list[Model]:
    """Return the models of a library; imports the library."""
    models: list[Model] = importlib.import_module(f"zoo.libraries.{library}").models()
    return models
