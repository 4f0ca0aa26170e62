"""Whether two blocks are of one kind: equal classes and shapes, and equal values of the attributes that matter."""

from __future__ import annotations

from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from model_factory.descriptor.stock import is_stock
from model_factory.program.recorded_program import is_plain
from model_factory.program.runtime.lookup import find_module, plain_read

_MISSING = object()
_CONTAINERS = (list, tuple, dict)
ALL = "__dict__"
"""Name of a read that may show every attribute of a module."""


def structure(module: nn.Module) -> str:
    """Return a text, equal for blocks with equal classes, shapes and attributes of torch modules, and equal sharing.

    Example:
        >>> structure(nn.Linear(2, 2)) == structure(nn.Linear(2, 2)), structure(nn.Linear(2, 2)) == structure(nn.ReLU())
        (True, False)
    """
    positions: dict[int, int] = {}
    found = []
    for path, item in module.named_modules(remove_duplicate=False):
        cls = type(item)
        tables = (item._parameters, item._buffers, item.__dict__)  # noqa: SLF001
        tensors = [
            (
                name,
                positions.setdefault(id(value), len(positions)),
                () if is_lazy(value) else tuple(value.shape),
                value.dtype,
            )
            for table in tables
            for name, value in table.items()
            if isinstance(value, torch.Tensor)
        ]
        empty = [name for table in tables[:2] for name, value in table.items() if value is None]
        position = positions.setdefault(id(item), len(positions))
        found.append((path, cls.__qualname__, id(cls), position, tensors, empty, _plain_attributes(item)))
    return repr(found)


def _plain_attributes(module: nn.Module) -> list[tuple[str, Any]]:
    """The plain attributes of a torch module: sizes of results may depend on the attributes."""
    if not is_stock(module):
        return []
    values = ((name, plain_read(value)) for name, value in module.__dict__.items() if name[:1] != "_")
    return sorted((name, value) for name, value in values if name != "training" and is_plain(value))


def has_same_reads(one: nn.Module, other: nn.Module, reads: Iterable[tuple[str, str]]) -> bool:
    """Whether two blocks of equal structure have equal values of the attributes in ``reads`` (module path and name).

    Example:
        >>> one, other = nn.Dropout(0.1), nn.Dropout(0.2)
        >>> has_same_reads(one, other, [("", "inplace")]), has_same_reads(one, other, [("", "p")])
        (True, False)
    """
    for path, name in reads:
        left, right = find_module(one, path), find_module(other, path)
        if left is None or right is None:
            return False
        names = [name] if name != ALL else {*left.__dict__, *right.__dict__} - set(nn.Module().__dict__)
        for item in names:
            values = (left.__dict__.get(item, _MISSING), right.__dict__.get(item, _MISSING))
            is_in_structure = all(isinstance(value, torch.Tensor | nn.Module) for value in values)
            if not is_in_structure and not _is_same(*values, (left, right)):
                return False
    return True


def _is_same(one: Any, other: Any, owners: tuple[nn.Module, nn.Module]) -> bool:
    """Whether values of attributes of two owners are equal; objects other than plain data only if they are one."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, MethodType):
        return one.__func__ is other.__func__ and one.__self__ is owners[0] and other.__self__ is owners[1]
    if type(one) in _CONTAINERS:  # also tensors inside count as equal only if they are one object
        entries, others = (list(item.items()) if isinstance(item, dict) else list(item) for item in (one, other))
        if isinstance(one, dict):
            entries, others = ([part for entry in item for part in entry] for item in (entries, others))
        pairs = zip(entries, others, strict=False)
        return len(entries) == len(others) and all(_is_same(*pair, owners) for pair in pairs)
    return is_plain(one) and bool(one == other)
