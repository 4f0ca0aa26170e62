"""Look-ups of modules and tensors by dotted paths, on every call: a replaced child takes effect at the next call."""

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
GRADIENT = "grad"
"""Last part of the path of a buffer's gradient, as in ``counts.grad``."""

RUNS_PROGRAMS = "_runs_programs"
"""Attribute of the classes of modules whose forward is a recorded program."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def get_module(root: nn.Module, path: str) -> nn.Module:
    """Return the descendant of ``root`` at a dotted path; ``""`` is ``root`` itself.

    Raises:
        GraphExecutionError: ``root`` has no such descendant.
    """
    module = find_module(root, path)
    if module is None:
        raise GraphExecutionError(f"the module has no child {path!r}")
    return module


def find_module(root: nn.Module, path: str) -> nn.Module | None:
    """Return the descendant of ``root`` at a dotted path, or None.

    Example:
        >>> find_module(nn.Sequential(nn.ReLU()), "0"), find_module(nn.Sequential(), "0")
        (ReLU(), None)
    """
    module: nn.Module | None = root
    for part in path.split(".") if path else ():
        module = module._modules.get(part) if module is not None else None  # noqa: SLF001  get_submodule without checks
    return module


def get_tensor(root: nn.Module, path: str) -> torch.Tensor | None:
    """Return the parameter or buffer at a dotted path; None if the entry is None.

    Raises:
        AttributeError: the module has no attribute of the name.
        GraphExecutionError: the module has another kind of attribute there.
    """
    owner, _, name = path.rpartition(".")
    value = getattr(get_module(root, owner), name)
    if value is not None and not isinstance(value, torch.Tensor):
        raise GraphExecutionError(f"{path!r} is a {type(value).__name__}, not a parameter or buffer")
    return value


def assign_buffer(root: nn.Module, path: str, value: Any) -> None:
    """Put a tensor in the place of the buffer at a dotted path, or add the buffer.

    Buffers of a state dict are refused, and torch's own layers, whose kernels rely on the sizes of their buffers.

    Raises:
        GraphExecutionError: the value is no tensor, or no program may assign the buffer.

    Example:
        >>> class Block(nn.Module):
        ...     pass
        >>> block = Block()
        >>> assign_buffer(block, "table", torch.arange(2))
        >>> block.table, block.state_dict()
        (tensor([0, 1]), OrderedDict())
    """
    owner, _, name = path.rpartition(".")
    module = get_module(root, owner)
    is_free = name in module._buffers or (name.isidentifier() and not hasattr(module, name))  # noqa: SLF001
    is_saved = name in module._buffers and name not in module._non_persistent_buffers_set  # noqa: SLF001
    of_torch = type(module).__module__.partition(".")[0] == "torch"
    if of_torch or is_saved or not is_free or not isinstance(value, torch.Tensor):
        raise GraphExecutionError(
            f"a program assigns {path!r}; allowed is a tensor for a buffer that no state dict has, of a module other "
            "than torch's own"
        )
    module.register_buffer(name, value, persistent=False)


def has_read(root: nn.Module, path: str, name: str, value: Any) -> bool:
    """Whether an attribute of the module at ``path`` has the recorded value."""
    module = find_module(root, path)
    if module is None:
        return False
    found = plain_read(getattr(module, name, _MISSING))
    return type(found) is type(value) and bool(found == value)


def changed_reads(root: nn.Module, reads: Iterable[Read]) -> dict[tuple[str, str], Any]:
    """Return the plain attributes with another value than recorded, by module path and name."""
    changed: dict[tuple[str, str], Any] = {}
    for path, name, value in reads:
        module = find_module(root, path)
        if module is not None and name not in TABLES and not has_read(root, path, name, value):
            found = getattr(module, name, _MISSING)
            if is_plain(found):
                changed[path, name] = found
    return changed


def plain_read(value: Any) -> Any:
    """Return the recorded form of an attribute: the names of a table, the numbers of a shape, else the value."""
    return tuple(value) if isinstance(value, dict | torch.Size) else value


def join_path(owner: str, path: str) -> str:
    """Return the path from a root, of a module at ``path`` below ``owner``.

    >>> join_path("body", "0"), join_path("", "0"), join_path("body", "")
    ('body.0', '0', 'body')
    """
    return f"{owner}.{path}" if owner and path else owner or path


def is_shared(root: nn.Module, path: str, other: str) -> bool:
    """Whether two paths lead to the same module or tensor."""
    return _find(root, path) is _find(root, other)


def _find(root: nn.Module, path: str) -> object:
    owner, _, name = path.rpartition(".")
    module = find_module(root, owner)
    if module is None:
        return _MISSING
    tables = (module._modules, module._parameters, module._buffers)  # noqa: SLF001
    return next((table[name] for table in tables if name in table), _MISSING)


def is_absent(root: nn.Module, path: str) -> bool:
    """Whether a dotted path leads to no parameter, buffer or child, or to no gradient of a buffer."""
    owner, _, name = path.rpartition(".")
    if name == GRADIENT and isinstance(tensor := _find(root, owner), torch.Tensor):
        return not isinstance(tensor, nn.Parameter) and tensor.grad is None
    module = find_module(root, owner)
    return module is not None and getattr(module, name, None) is None


def inlined_change(module: nn.Module | None) -> str:
    """Return the change of a block that a caller's program passes over, or an empty text.

    Example:
        >>> layer = nn.ReLU()
        >>> inlined_change(layer)
        'was replaced by a ReLU'
    """
    if module is None:
        return "was removed"
    if not getattr(module, RUNS_PROGRAMS, False):
        return f"was replaced by a {type(module).__name__}"
    for table in _HOOKS:
        if getattr(module, table):
            return "has a hook"
    if "forward" in module.__dict__:
        return "has another forward"
    if getattr(module, "_compiled_call_impl", None) is not None:
        return "was compiled"
    return ""


def own_shape(root: nn.Module, name: str) -> torch.Size:
    """Return the shape of a parameter or buffer, named ``attr:PATH`` in a size.

    Raises:
        GraphExecutionError: the module has no tensor at the path.
    """
    path = name.removeprefix(OWN)
    owner, _, entry = path.rpartition(".")
    try:
        # Reading a parametrized tensor computes the tensor anew, with side effects; the original has the same size.
        original = find_module(root, f"{owner}.{PARAMETRIZATIONS}.{entry}".removeprefix("."))
        tensor = None if original is None else getattr(original, "original", None)
        tensor = get_tensor(root, path) if tensor is None else tensor
    except AttributeError:
        tensor = None
    if tensor is None:
        raise GraphExecutionError(f"the module has no parameter or buffer {path!r}; the forward reads the size")
    return tensor.shape
