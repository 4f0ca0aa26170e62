"""The order in which ``torch.einsum`` contracts three and more operands.

If the package opt_einsum is installed, torch takes the order from opt_einsum, otherwise from left to right. Another
order rounds differently. So the order in the recording process is part of a program.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch.backends import opt_einsum

from model_factory.program.ir import OpCall, Program
from model_factory.program.ops import EINSUM
from model_factory_server.export.torch_private import recorded_size

_SETTINGS: Any = opt_einsum  # a module whose type torch does not declare


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
    return tuple(itertools.chain.from_iterable(pairs))


@contextmanager
def use_recorded_orders(program: Program) -> Iterator[None]:
    """Make ``torch.einsum`` use the orders of a program, at all sizes, while this is entered."""
    steps = [step for step in program.steps if isinstance(step, OpCall) and step.name == EINSUM and step.kwargs["path"]]
    orders: dict[str, Iterator[tuple[int, ...]]] = {}
    for equation in {step.args[0] for step in steps}:  # repeated for several runs of the program
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
