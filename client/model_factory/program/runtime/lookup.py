"""Modules and tensors of a model by dotted paths, looked up on every call so that a replaced child takes effect."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from model_factory.errors import GraphExecutionError
from model_factory.program.ir import OWN
from model_factory.program.recorded_program import TABLES, Read, is_plain

_MISSING: Any = object()
PARAMETRIZATIONS = "parametrizations"


def get_module(root: nn.Module, path: str) -> nn.Module:
    """Return the descendant of ``root`` at a dotted path; ``""`` is ``root`` itself."""
    module = find_module(root, path)
    if module is None:
        raise GraphExecutionError(f"the module has no child {path!r}")
    return module


def find_module(root: nn.Module, path: str) -> nn.Module | None:
    """As :func:`get_module`, or None if there is no such descendant."""
    module: nn.Module | None = root
    for part in path.split(".") if path else ():
        module = module._modules.get(part) if module is not None else None  # noqa: SLF001  get_submodule without checks
    return module


def get_tensor(root: nn.Module, path: str) -> torch.Tensor | None:
    """Return the parameter or buffer at a dotted path."""
    owner, _, name = path.rpartition(".")
    value = getattr(get_module(root, owner), name)
    if value is not None and not isinstance(value, torch.Tensor):
        raise GraphExecutionError(f"{path!r} is a {type(value).__name__}, not a parameter or buffer")
    return value


def has_read(root: nn.Module, path: str, name: str, value: Any) -> bool:
    """Whether the module at ``path`` has an attribute with this value, as when its forward was recorded."""
    module = find_module(root, path)
    if module is None:
        return False
    found = plain_read(getattr(module, name, _MISSING))
    return type(found) is type(value) and bool(found == value)


def changed_reads(root: nn.Module, reads: Iterable[Read]) -> dict[tuple[str, str], Any]:
    """Return the plain attributes that have another value than a recording read, by module path and name."""
    changed: dict[tuple[str, str], Any] = {}
    for path, name, value in reads:
        module = find_module(root, path)
        if module is not None and name not in TABLES and not has_read(root, path, name, value):
            found = getattr(module, name, _MISSING)
            if is_plain(found):
                changed[path, name] = found
    return changed


def plain_read(value: Any) -> Any:
    """Return what is noted of an attribute: of a table its names, of a shape its numbers."""
    return tuple(value) if isinstance(value, dict | torch.Size) else value


def is_shared(root: nn.Module, path: str, other: str) -> bool:
    """Whether there is one module, or one tensor, at two paths."""
    return _find(root, path) is _find(root, other)


def _find(root: nn.Module, path: str) -> object:
    owner, _, name = path.rpartition(".")
    module = find_module(root, owner)
    if module is None:
        return _MISSING
    tables = (module._modules, module._parameters, module._buffers)  # noqa: SLF001
    return next((table[name] for table in tables if name in table), _MISSING)


def is_absent(root: nn.Module, path: str) -> bool:
    """Whether there is no parameter, buffer or child at a dotted path."""
    owner, _, name = path.rpartition(".")
    module = find_module(root, owner)
    return module is not None and getattr(module, name, None) is None


def own_shape(root: nn.Module, name: str) -> torch.Size:
    """Return the shape of the parameter or buffer that a size names ``attr:PATH``.

    Raises:
        GraphExecutionError: the module has no tensor there.
    """
    path = name.removeprefix(OWN)
    owner, _, entry = path.rpartition(".")
    try:
        # A parametrised one is worked out anew at each look, with effects: its original has the same size.
        original = find_module(root, f"{owner}.{PARAMETRIZATIONS}.{entry}".removeprefix("."))
        tensor = None if original is None else getattr(original, "original", None)
        tensor = get_tensor(root, path) if tensor is None else tensor
    except AttributeError:
        tensor = None
    if tensor is None:
        raise GraphExecutionError(f"the module has no parameter or buffer {path!r}, whose size the forward reads")
    return tensor.shape
