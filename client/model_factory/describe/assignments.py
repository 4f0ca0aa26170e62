"""Undoes assignments to the attributes of modules."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import nn

from model_factory.descriptor.stock import is_stock

_INTERNALS = frozenset(nn.Module().__dict__)
_CONTAINERS = frozenset({list, dict, set, deque, OrderedDict, defaultdict})


def plain_containers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Lists, dicts, sets and deques, also nested, in attributes of modules other than torch's own, by path.

    The attributes of an object with tensors, for example of a noise scheduler, are a dict, too.
    """
    pending = [
        (f"{path}.{name}" if path else name, value if type(value) in _CONTAINERS else value.__dict__)
        for path, item in module.named_modules()
        if not is_stock(item)
        for name, value in item.__dict__.items()
        if name not in _INTERNALS and (type(value) in _CONTAINERS or _holds_tensors(value))
    ]
    seen: set[int] = set()
    while pending:
        path, value = pending.pop()
        if id(value) not in seen:
            seen.add(id(value))
            yield path, value
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            pending += [(f"{path}[{key!r}]", entry) for key, entry in entries if type(entry) in _CONTAINERS]


def _holds_tensors(value: Any) -> bool:
    """Whether a value is an object with tensors in attributes of its own, and no tensor and no module."""
    attributes = getattr(value, "__dict__", None)
    if type(attributes) is not dict or isinstance(value, torch.Tensor | nn.Module | ModuleType):
        return False
    return any(isinstance(item, torch.Tensor) for item in attributes.values())


@contextmanager
def attributes_restored_after(module: nn.Module) -> Iterator[None]:
    """Undo assignments afterwards: training flags, a mask that a forward caches, another parameter, hooks.

    Some libraries register hooks at the first call with hidden states in the result.

    Example:
        >>> layer = nn.Dropout()
        >>> with attributes_restored_after(layer):
        ...     _ = layer.eval()
        >>> layer.training
        True
    """
    tables = [table for item in module.modules() for table in (*module_tables(item), *_hooks(item))]
    tables += [container for _, container in plain_containers(module)]
    before = [(table, table.copy() if table else ()) for table in tables]  # most tables of hooks are empty
    try:
        yield
    finally:
        for table, entries in before:
            table.clear()
            (table.extend if isinstance(table, list | deque) else table.update)(entries)


def module_tables(module: nn.Module) -> list[dict[str, Any]]:
    """Return a module's tables of parameters, buffers, children and attributes."""
    return [module._parameters, module._buffers, module._modules, module.__dict__]


def _hooks(module: nn.Module) -> list[dict[Any, Any]]:
    return [table for name, table in module.__dict__.items() if name.endswith("_hooks") and isinstance(table, dict)]
