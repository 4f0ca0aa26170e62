"""Checks of constructor and forward arguments. Every check raises a ``ValueError`` with the name of the argument."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import Tensor, nn

T = TypeVar("T")

log = logging.getLogger(__name__)


def check_count(name: str, value: object) -> int:
    """Return a positive integer.

    Example:
        >>> check_count("width", 3)
        3
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return value


def check_counts(name: str, value: object, least: int = 1) -> None:
    """Check a size of two axes: an integer for both axes, or a list of two; ``least`` is the minimum."""
    sizes = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
    if any(isinstance(size, bool) or not isinstance(size, int) or size < least for size in sizes):
        raise ValueError(f"{name} must be an integer, {least} or more, or a list of two, got {value!r}")


def check_probability(name: str, value: object) -> float:
    """Return a dropout probability in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}")
    return value


def check_flag(name: str, value: object) -> bool:
    """Return a bool; a string (from an environment variable) is refused."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")  # noqa: TRY004
    return value


def check_module(name: str, value: object) -> nn.Module:
    """Return a module."""
    if not isinstance(value, nn.Module):
        raise ValueError(f"{name} must be a module, written as {{_type_: nn.ReLU}}, got {value!r}")  # noqa: TRY004
    return value


def check_optional_dim(use_name: str, use: bool, dim_name: str, dim: int | None) -> int | None:
    """Return ``dim`` if switch and size agree: a positive integer with ``use``, None without."""
    if check_flag(use_name, use) and dim is None:
        raise ValueError(f"{use_name} is true, so {dim_name} must be a number, got None")
    if not use and dim is not None:
        raise ValueError(f"{use_name} is false, so {dim_name} must be None, got {dim!r}")
    return None if dim is None else check_count(dim_name, dim)


def check_given(name: str, value: T | None, why: str) -> T:
    """Return an argument of a forward; None is refused."""
    if value is None:
        raise ValueError(f"{name} must be given, since {why}; got None")
    return value


def check_rank(name: str, tensor: Tensor, layouts: Mapping[int, str]) -> None:
    """Check the rank of an argument of a forward; ``layouts`` gives a layout in words for each allowed rank."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(tensor).__name__}")  # noqa: TRY004
    if tensor.ndim not in layouts:
        allowed = " or ".join(f"{rank} {layout}" for rank, layout in layouts.items())
        raise ValueError(f"{name} has rank {tensor.ndim}, shape {tuple(tensor.shape)}; allowed ranks: {allowed}")


def note_ignored(block: str, ignored: Mapping[str, object], refused: Sequence[str] = ()) -> None:
    """Log the arguments of a constructor that ``block`` does not know and ignores; ``refused`` raise an error."""
    for name in refused:
        if name in ignored:
            raise ValueError(f"{name} is no argument of {block}. Remedy: leave it out of the config")
    if ignored:
        log.warning("%s ignores arguments without a meaning for this block: %s", block, ", ".join(sorted(ignored)))
