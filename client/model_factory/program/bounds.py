"""Bounds on integers, sizes and counts of a running program.

A program comes from an untrusted peer. Kernels of torch compute with sizes in 64 bits, partly without a check for
overflow. With the bounds here, products of two integers of a program fit into 64 bits.
"""

from __future__ import annotations

from typing import Any

import torch

from model_factory.errors import FormatError, GraphExecutionError
from model_factory.limits import MAX_INTEGER, MAX_PARTS, MAX_RESULT_ELEMENTS

_SEQUENCES = (list, tuple)


def bounded_integer(value: int) -> int:
    """Return an integer of a program.

    Raises:
        FormatError: the integer is too large.

    Example:
        >>> bounded_integer(-1)
        -1
    """
    if not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise FormatError(
            f"the integer {_short(value)} is out of bounds; integers of programs lie between -{MAX_INTEGER} and "
            f"{MAX_INTEGER}. Remedy: a smaller integer, or a float"
        )
    return value


def check_result(value: Any) -> None:
    """Check the result of a step, before other steps use the result.

    Raises:
        GraphExecutionError: an integer is out of bounds, a tensor has too many elements (a view can have any number,
            without memory), a list has too many items, or the result is a text.

    Example:
        >>> check_result(torch.ones(2, 3))
        >>> check_result(torch.ones(1).expand(2**20, 2**20))
        Traceback (most recent call last):
        model_factory.errors.GraphExecutionError: a step makes a tensor of the shape (1048576, 1048576); at most \
17179869184 elements are allowed
    """
    if isinstance(value, torch.Tensor):
        count = value.numel()
        # Sizes of a tensor that is traced are no integers; a comparison would become a condition of the trace.
        if type(count) is int and (count > MAX_RESULT_ELEMENTS or not count):
            _check_shape(value)
    elif isinstance(value, _SEQUENCES):
        _check_items(value)
    elif type(value) is int:
        if not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise GraphExecutionError(
                f"a step makes the integer {_short(value)}; the integers of a program lie between -{MAX_INTEGER} and "
                f"{MAX_INTEGER}"
            )
    elif isinstance(value, str):
        raise GraphExecutionError("a step makes a text; texts of a program are constants")


def _check_items(value: Any) -> None:
    """Check lists in lists. A list with itself inside, many times, is small in memory and endless for torch."""
    count, lists = 0, [value]
    while lists:
        items = lists.pop()
        count += len(items)
        if count > MAX_PARTS:
            raise GraphExecutionError(f"a step makes more than {MAX_PARTS} values, the most that is allowed")
        for item in items:
            if isinstance(item, _SEQUENCES):
                lists.append(item)
            else:
                check_result(item)


def _check_shape(tensor: torch.Tensor) -> None:
    """Check a shape with sizes of 0 counted as 1: strides are products of all sizes, also without elements."""
    count = 1
    for size in tensor.shape:
        count *= max(1, size)
    if count > MAX_RESULT_ELEMENTS:
        raise GraphExecutionError(
            f"a step makes a tensor of the shape {tuple(tensor.shape)}; at most {MAX_RESULT_ELEMENTS} elements are "
            "allowed"
        )


def _short(value: int) -> str:
    return str(value) if value.bit_length() <= 128 else f"of {value.bit_length()} bits"
