"""The operator's plug-ins: modules with a function ``register(registry)``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from model_factory.errors import ServerError
from model_factory_server.backends.redaction import without_paths


def load_register(plugin: str) -> Callable[[Any], object]:
    """Import a plug-in and return its ``register``.

    Raises:
        ServerError: it cannot be imported, or has no such function.
    """
    with plugin_errors(plugin):
        register: Callable[[Any], object] | None = getattr(importlib.import_module(plugin), "register", None)
    if not callable(register):
        raise ServerError(f"plug-in {plugin!r} has no function register(registry)")
    return register


@contextmanager
def plugin_errors(plugin: str) -> Iterator[None]:
    """Say of every error inside which plug-in it is about."""
    try:
        yield
    except (Exception, SystemExit) as error:
        detail = without_paths(f"{type(error).__name__}: {error}")
        raise ServerError(f"plug-in {plugin!r} cannot be used: {detail}") from error
