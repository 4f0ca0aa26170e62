"""Torch calls that are recorded as other calls: older forms, private forms, and ``torch.einsum`` with an order.

If the package opt_einsum is installed, torch takes the order of contraction of three and more operands from opt_einsum,
otherwise from left to right. Another order rounds differently. So the order in the recording process is part of a
program, and the comparisons of sizes that lead to the order are conditions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import as_tensor, asarray  # the attributes of torch are replaced during a recording
from torch import tensor as make_tensor
from torch.backends import opt_einsum

from model_factory.errors import NotPortableError
from model_factory.program.ops import einsum
from model_factory_server.export.torch_private import is_all_true, recorded_size

_SETTINGS: Any = opt_einsum  # a module whose type torch does not declare

_MAX_COMPARED = 4
"""Maximum number of operands whose order is found by comparisons of sizes; for more, the sizes are conditions."""

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""Function, arguments and keyword arguments."""


def as_recorded(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Return the call in the place of a torch call; usually the call itself.

    Example:
        >>> as_recorded(torch.Tensor.new, (torch.ones(1), 2, 3), {})[1][1:]
        ((2, 3),)
    """
    if func in is_all_true:
        return torch.all, args, kwargs
    if func is torch.einsum:
        return einsum, args, {"path": contraction_order(*args)}
    if func is torch.Tensor.new:
        return _new(*args, **kwargs)
    if func is torch.Tensor.type:
        return _type(*args, **kwargs)
    if func is asarray:
        return _asarray(*args, **kwargs)
    return func, args, kwargs


def _new(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Call:
    """The older form of ``new_empty`` and ``new_tensor``."""
    if len(args) == 1 and isinstance(args[0], list | tuple) and not isinstance(args[0], torch.Size):
        return torch.Tensor.new_tensor, (tensor, *args), kwargs
    sizes = args[0] if len(args) == 1 and isinstance(args[0], torch.Size) else args or (0,)
    if all(isinstance(size, int | torch.SymInt) for size in sizes):
        return torch.Tensor.new_empty, (tensor, tuple(sizes)), kwargs
    return torch.Tensor.new, (tensor, *args), kwargs


def _asarray(value: Any, *, copy: bool | None = None, **kwargs: Any) -> Call:
    if not isinstance(value, torch.Tensor):
        return make_tensor, (value,), kwargs
    if copy or kwargs.get("requires_grad"):
        return asarray, (value,), {"copy": copy, **kwargs}
    return as_tensor, (value,), {key: item for key, item in kwargs.items() if key in {"dtype", "device"}}


def _type(tensor: torch.Tensor, dtype: Any = None, non_blocking: bool = False) -> Call:
    """The older form of ``to``; without a dtype, a question for the text of a kind."""
    if dtype is None:
        return torch.Tensor.type, (tensor,), {}
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype.removeprefix("torch."), None)
    wanted = getattr(dtype, "dtype", dtype)
    if not isinstance(wanted, torch.dtype) or getattr(dtype, "is_cuda", False):
        raise NotPortableError(f"the forward converts a tensor to the kind {dtype!r}. Remedy: tensor.to(dtype)")
    return torch.Tensor.to, (tensor, wanted), {"non_blocking": True} if non_blocking else {}


def contraction_order(equation: str, *operands: Any) -> tuple[int, ...]:
    """Return the positions of both operands of each contraction, in order; empty for left to right.

    Example:
        >>> import torch
        >>> contraction_order("ij,jk->ik", torch.ones(2, 3), torch.ones(3, 4))
        ()
    """
    package = _SETTINGS.get_opt_einsum()
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    if len(operands) <= 2 or package is None or not _SETTINGS.enabled:
        return ()
    shapes = [tuple(recorded_size(size) for size in operand.shape) for operand in operands]
    pairs, _ = package.contract_path(equation, *shapes, shapes=True, optimize=_SETTINGS.strategy)
    _rely_on_order(package, equation, operands, pairs)
    return tuple(itertools.chain.from_iterable(pairs))


def _rely_on_order(package: Any, equation: str, operands: Any, pairs: Sequence[tuple[int, ...]]) -> None:
    """Decide the comparisons of sizes that lead opt_einsum to an order: other sizes can lead to another order."""
    shapes = [tuple(recorded_size(size) for size in operand.shape) for operand in operands]
    inputs, output, _ = package.parser.parse_einsum_input((equation, *shapes), shapes=True)
    sizes: dict[str, Any] = {}
    for term, operand in zip(inputs.split(","), operands, strict=True):
        sizes |= {letter: size for letter, size in zip(term, operand.shape, strict=True) if not _is_one(size)}
    sets = [frozenset(term) for term in inputs.split(",")]
    letters = frozenset("".join(inputs.split(",")))
    if len(operands) <= _MAX_COMPARED and _SETTINGS.strategy == "auto":
        found = package.paths.optimal(sets, frozenset(output), dict.fromkeys(letters, 1) | sizes, None)
        if [tuple(pair) for pair in found] == [tuple(pair) for pair in pairs]:
            return
    for size in sizes.values():
        int(size)  # makes the size a condition


def _is_one(size: Any) -> bool:
    return bool(size == 1)
