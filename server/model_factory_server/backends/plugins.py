"""Plug-ins: modules with a function ``register(registry)``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from model_factory.errors import ServerError
from model_factory_server.backends.redaction import without_paths


def load_register(plugin: str) -> Callable[[Any], object]:
    """Import a plug-in and return the function ``register``.

    Raises:
        ServerError: the import fails, or the plug-in has no function ``register``.

    Example:
        >>> load_register("json")
        Traceback (most recent call last):
        ...
        model_factory.errors.ServerError: plug-in 'json' has no function register(registry)
    """
    with plugin_errors(plugin):
        register: Callable[[Any], object] | None = getattr(importlib.import_module(plugin), "register", None)
    if not callable(register):
        raise ServerError(f"plug-in {plugin!r} has no function register(registry)")
    return register


@contextmanager
def plugin_errors(plugin: str) -> Iterator[None]:
    """Turn every exception inside into a ``ServerError`` with the name of the plug-in."""
    try:
        yield
    except (Exception, SystemExit) as error:
        detail = without_paths(f"{type(error).__name__}: {error}")
        raise ServerError(f"plug-in {plugin!r} cannot be used: {detail}") from error
