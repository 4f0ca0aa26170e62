"""Comparison of an exported program with the module, at several sizes, before anything is written."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from model_factory.errors import ModelFactoryError
from model_factory.exported.inputs import ExampleInputs, Sizes
from model_factory.program.torch_private import tree_leaves

Run = Callable[[dict[str, Any]], list[torch.Tensor]]
"""Runs an exported program on the keyword arguments of a call; returns the tensors of the result, in order."""

_TOLERANCES = {torch.float64: 1e-7, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference of results with values around 1, absolute and relative."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The result of a comparison."""

    sizes: tuple[Sizes, ...]
    """Sizes of the named axes, one entry for each compared call."""
    largest_difference: float
    """Largest absolute difference between two numbers of the results."""


def compare(model: nn.Module, run: Run, inputs: ExampleInputs, dtype: torch.dtype) -> Compared:
    """Compare an exported program with the module: at the sizes of the export, at other sizes, and at size 1.

    Sizes that the module itself refuses are left out.

    Raises:
        ModelFactoryError: the program fails or differs.
    """
    first = inputs.first_sizes()
    candidates = [first]
    if first:
        candidates += [{name: size + 1 for name, size in first.items()}, dict.fromkeys(first, 1)]
    compared, largest = [], 0.0
    for number, sizes in enumerate(candidates):
        given = inputs.example(sizes, dtype, seed=number)
        try:
            expected = tensors_of(seeded(functools.partial(model, **given)))
        except Exception:
            if number == 0:
                raise
            continue
        largest = max(largest, _difference(functools.partial(run, given), expected, sizes))
        compared.append(sizes)
    return Compared(sizes=tuple(compared), largest_difference=largest)


def seeded(function: Callable[[], Any]) -> Any:
    """Run a function without gradients, from a fixed seed of torch; other code sees no change of the seed."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        return function()


def tensors_of(result: Any) -> list[torch.Tensor]:
    """Return the tensors of a result, in the order of torch.export."""
    return [item for item in tree_leaves(result) if isinstance(item, torch.Tensor)]


def _difference(run: Callable[[], list[torch.Tensor]], expected: list[torch.Tensor], sizes: Sizes) -> float:
    at = f" at {sizes_text(sizes)}" if sizes else ""
    try:
        actual = seeded(run)
    except Exception as error:
        text = str(error).strip().partition("\n")[0]
        raise ModelFactoryError(
            f"the exported program fails{at}, and the module does not: {type(error).__name__}: {text}. Remedy: give "
            "the axis a number instead of a name, as many axes as the robot needs fixed"
        ) from error
    if [item.shape for item in actual] != [item.shape for item in expected]:
        raise ModelFactoryError(f"the exported program has results of other shapes{at} than the module")
    largest = 0.0
    for one, other in zip(actual, expected, strict=True):
        tolerance = _TOLERANCES.get(other.dtype, 0.0)
        if one.dtype != other.dtype or not torch.allclose(one, other, tolerance, tolerance, equal_nan=True):
            raise ModelFactoryError(
                f"the exported program differs from the module{at}, by up to {_largest(one, other):.3g}. Remedy: a "
                "forward that draws random numbers needs the numbers as an input; for other forwards, another format"
            )
        largest = max(largest, _largest(one, other))
    return largest


def _largest(one: torch.Tensor, other: torch.Tensor) -> float:
    if not other.numel():
        return 0.0
    kind = torch.complex128 if other.is_complex() else torch.float64
    return float((one.to(kind) - other.to(kind)).abs().nan_to_num().max())


def sizes_text(sizes: Mapping[str, int]) -> str:
    """Return sizes for display.

    >>> sizes_text({"batch": 3, "steps": 4})
    'batch 3, steps 4'
    """
    return ", ".join(f"{name} {size}" for name, size in sizes.items())
