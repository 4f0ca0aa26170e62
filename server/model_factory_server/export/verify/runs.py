"""A run of a forward or program, with all results to compare; and the comparison of two runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from model_factory.errors import NotPortableError
from model_factory_server.export.out_of_memory import is_out_of_memory
from model_factory_server.export.record.sample_inputs import VERIFY_SEED
from model_factory_server.export.restored_after import (
    generators_seeded,
    plain_tensors,
    restored_after,
    written_parameters,
)
from model_factory_server.export.torch_private import pytree
from model_factory_server.export.verify.state_diff import changed, state_of

Shapes: TypeAlias = list[list[int]]
"""Sizes of each input."""

Call: TypeAlias = Callable[[list[torch.Tensor]], Any]
"""Calls a forward, or a program, with the tensors of a call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run without an error."""

    observed: dict[str, Any]
    """Results to compare, by description."""
    changed_attribute: str
    """An attribute with another value after the run, or empty: the next call may differ."""


def run_once(
    call: Call,
    module: nn.Module,
    leaves: Sequence[torch.Tensor],
    seed: int = VERIFY_SEED,
    *,
    writes_parameters: bool = False,
    with_input_gradients: bool = True,
) -> Exception | Run:
    """Run once from a seed, with gradients, and return the results or the error. The module is restored.

    Without ``with_input_gradients``, the inputs get no gradients, as data gets no gradients in a training.
    ``writes_parameters`` is whether the forward may write to parameters, as modules sent as source code may.
    """
    inputs = [
        leaf.detach().clone().requires_grad_(with_input_gradients and leaf.is_floating_point()) for leaf in leaves
    ]
    given = [item.clone() for item in inputs]  # not leaves of autograd, since a forward may write to its inputs
    plain = plain_tensors(module)
    parameters = [item for item in [*module.parameters(), *plain.values()] if item.requires_grad]
    state = state_of(module)
    with generators_seeded(seed), torch.enable_grad(), restored_after(module, parameters=writes_parameters):
        try:
            outputs, structure = pytree.tree_flatten(call(given))
            gradients = _gradients(outputs, [*parameters, *[item for item in inputs if item.requires_grad]])
            tensors = [*module.named_buffers(), *plain.items()]
            tensors += module.named_parameters() if writes_parameters else written_parameters(module).items()
            after = {name: item.detach().clone() for name, item in tensors}
            random = torch.rand(2)
            changed_attribute = next((name for name, _, _ in changed(state)), "")
        except Exception as error:  # the operator's code may raise any error
            if is_out_of_memory(error):
                raise
            return error
    observed = {
        "output structure": str(structure),
        "outputs": outputs,
        "inputs after the call": [item.detach() for item in given],
        "gradients": gradients,
        "tensors after the call": after,
        "random numbers": random,
    }
    return Run(observed=observed, changed_attribute=changed_attribute)


def _gradients(outputs: Sequence[Any], inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
    differentiable = [item for item in outputs if isinstance(item, torch.Tensor) and item.requires_grad]
    if not differentiable or not inputs:
        return ()
    zero = torch.zeros((), dtype=torch.float64)
    loss = sum((item.abs().double().square().sum() for item in differentiable), zero)
    return torch.autograd.grad(loss, inputs, allow_unused=True)


def compare_runs(expected: Exception | Run, actual: Exception | Run, shapes: Shapes) -> bool:
    """Compare a run of the original with a run of the program at ``shapes``; return False if both raised errors.

    Raises:
        NotPortableError: the runs differ, or only one run failed.
    """
    if isinstance(expected, Exception) and isinstance(actual, Exception):
        return False
    if isinstance(expected, Exception):
        raise _not_reproduced(f"only the original failed at sizes {shapes}: {expected}")
    if isinstance(actual, Exception):
        raise _not_reproduced(f"only the program failed at sizes {shapes}: {actual}")
    compare_results(expected.observed, actual.observed, shapes)
    return True


def compare_results(expected: Mapping[str, Any], actual: Mapping[str, Any], shapes: Shapes) -> None:
    """Compare results of two runs, bit for bit on the CPU.

    Raises:
        NotPortableError: a result differs; the message names the result.

    Example:
        >>> compare_results({"outputs": [torch.ones(1)]}, {"outputs": [torch.ones(1)]}, [[1]])
    """
    for description, value in expected.items():
        other = actual[description]
        try:
            if description == "output structure":
                _compare_leaf(value, other)
                continue
            for one, another in zip(pytree.tree_leaves(value), pytree.tree_leaves(other), strict=True):
                _compare_leaf(one, another)
        except (AssertionError, ValueError) as error:
            raise _not_reproduced(f"{description} differ at sizes {shapes}: {error}") from None


def _compare_leaf(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        alike = all(getattr(one, name) == getattr(other, name) for name in ("device", "dtype", "shape", "layout"))
        if alike and one.layout == torch.strided and torch.equal(one, other):
            return  # assert_close needs temporary tensors of several times the size
        exact = {"rtol": 0.0, "atol": 0.0} if one.device.type == "cpu" else {}
        torch.testing.assert_close(other, one, equal_nan=True, **exact)  # type: ignore[arg-type]
    elif one != other and not (one != one and other != other):  # noqa: PLR0124  NaN equals NaN here
        raise AssertionError(f"{one!r} is not {other!r}")


def _not_reproduced(detail: str) -> NotPortableError:
    return NotPortableError(
        f"the recorded program does not reproduce the forward ({detail}). Remedy: make the forward depend on its "
        "arguments, parameters and buffers only"
    )
