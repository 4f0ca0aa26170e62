"""The order in which ``torch.einsum`` contracts three and more operands.

Torch asks the package opt_einsum for the order where the package is installed, and goes from left to right elsewhere.
Other orders round otherwise. So the order that the recording's process takes is part of a program.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.backends import opt_einsum

from model_factory.program.ir import OpCall, Program
from model_factory.program.ops import EINSUM

_SETTINGS: Any = opt_einsum  # a module whose type torch does not declare


def contraction_order(equation: str, *operands: Any) -> tuple[int, ...]:
    """Return the places of the operands of each contraction, two by two; empty for left to right.

    Example:
        >>> contraction_order("ij,jk->ik", torch.ones(2, 3), torch.ones(3, 4))
        ()
    """
    package = _SETTINGS.get_opt_einsum()
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    if len(operands) <= 2 or package is None or not _SETTINGS.enabled:
        return ()
    shapes = [tuple(_number(size) for size in operand.shape) for operand in operands]
    pairs, _ = package.contract_path(equation, *shapes, shapes=True, optimize=_SETTINGS.strategy)
    return tuple(itertools.chain.from_iterable(pairs))


@contextmanager
def orders_of(program: Program) -> Iterator[None]:
    """Have ``torch.einsum`` take the orders of a program while this is entered, at whatever sizes."""
    steps = [step for step in program.steps if isinstance(step, OpCall) and step.name == EINSUM and step.kwargs["path"]]
    orders: dict[str, Iterator[tuple[int, ...]]] = {}
    for equation in {step.args[0] for step in steps}:  # the same one again and again, in a program's runs
        orders[equation] = itertools.cycle([step.kwargs["path"] for step in steps if step.args[0] == equation])
    if not orders:
        yield
        return
    package = _SETTINGS.get_opt_einsum()
    choose: Any = package.contract_path

    def contract_path(equation: str, *operands: Any, **options: Any) -> Any:
        if equation not in orders:
            return choose(equation, *operands, **options)
        flat = next(orders[equation])
        return [flat[place : place + 2] for place in range(0, len(flat), 2)], None

    with patch.object(package, "contract_path", contract_path):
        yield


def _number(size: Any) -> int:
    return size.node.hint if isinstance(size, torch.SymInt) else size  # type: ignore[no-any-return]
