"""Checks of the values of tensors, in eager and in compiled code."""

from __future__ import annotations

import torch

from model_factory.errors import GraphExecutionError
from model_factory.program.torch_private import assert_async


def require(holds: torch.Tensor, requirement: str, *numbers: int) -> None:
    """Check a truth value. Compiled code asserts the truth value: a Python exception would break the graph.

    Args:
        holds: The truth value.
        requirement: The text of the error, with ``{}`` for each of the numbers.
        numbers: Numbers for the text; compiled code has the text alone, since a size has no number there.

    Raises:
        GraphExecutionError: the truth value is false.

    Example:
        >>> require((torch.tensor([0, 4]) < 5).all(), "indices must be less than {}", 5)
    """
    if torch.compiler.is_compiling():
        assert_async(holds, requirement)
    elif not bool(holds):
        raise GraphExecutionError(requirement.format(*numbers))
