"""Results with a backward of their own: runs the program of a backward as a ``torch.autograd.Function`` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from model_factory.errors import FormatError, GraphExecutionError
from model_factory.program.ir import Constant, OpCall, OwnBackward, Program, Ref, out_names, step_text

Run = Callable[[list[Any]], Any]
"""Runs a program on values for the inputs."""

_NUMBERS = (int, float)

Apply = Callable[[Sequence[Any], Sequence[Any]], tuple[torch.Tensor, ...]]
"""Returns the results with a backward, given (the inputs and the results as computed) and the kept values."""


def own_function(step: OwnBackward, compile_program: Callable[[Program], Run]) -> Apply:
    """Return a function to give results a backward; ``compile_program`` compiles the program of the backward.

    The inputs and results among the kept values are saved as autograd's own, so that autograd notices changes in place,
    and differentiates the backward. Other kept values are constants of the backward.

    Raises:
        FormatError: the step is malformed.
    """
    _check(step)
    run = compile_program(step.backward)
    items = [*step.inputs, *step.results, *step.kept]
    first, end = len(step.inputs), len(step.inputs) + len(step.results)
    constant, others = step.constant, [None] * (len(items) - first)
    # Each value is passed once; a compiler refuses a tensor in two places.
    places = [items.index(item) if at >= first and isinstance(item, Ref) else at for at, item in enumerate(items)]

    def forward(*values: Any) -> tuple[torch.Tensor, ...]:
        return tuple([values[at] if at < first else _result(values[at]) for at in places[first:end]])

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*[output[position] for position in constant])
        saved = [*inputs[:first], *output, *inputs[end:]]
        kept = [saved[at] for at in places[end:]]
        ctx.save_for_backward(*[item if isinstance(item, torch.Tensor) else None for item in kept])
        ctx.others = [None if isinstance(item, torch.Tensor) else _own_number(item) for item in kept]

    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        kept = [other if item is None else item for item, other in zip(ctx.saved_tensors, ctx.others, strict=True)]
        return (*run([*gradients, *kept]), *others)

    def forward_with_context(ctx: Any, *values: Any) -> tuple[torch.Tensor, ...]:
        output = forward(*values)
        setup_context(ctx, values, output)
        return output

    backwards = staticmethod(once_differentiable(backward) if step.once else backward)
    for_compilers = {"forward": staticmethod(forward_with_context), "backward": backwards}
    for_transforms = {"forward": staticmethod(forward), "setup_context": staticmethod(setup_context)}  # torch.func
    compiled: Any = type("Own", (torch.autograd.Function,), for_compilers)
    function: Any = type("Own", (torch.autograd.Function,), {**for_transforms, "backward": backwards})

    def apply(given: Sequence[Any], kept: Sequence[Any]) -> tuple[torch.Tensor, ...]:
        values = [*given, *map(_without_gradient, kept)]
        once = [value if at == index else None for index, (value, at) in enumerate(zip(values, places, strict=True))]
        found: tuple[torch.Tensor, ...] = (compiled if torch.compiler.is_compiling() else function).apply(*once)
        return found

    return apply


def _check(step: OwnBackward) -> None:
    program = step.backward
    for inner in program.steps:
        if not isinstance(inner, OpCall | Constant):
            raise FormatError(
                f"the backward of a program has the step {step_text(inner)}; allowed are ops and constants"
            )
    if not all(isinstance(item, Ref) for item in (*step.inputs, *step.results)):
        raise FormatError("a program gives a backward to something other than values of steps")
    if len(program.inputs) != len(step.results) + len(step.kept) or len(out_names(step)) != len(step.results):
        raise FormatError("the backward of a program has a gradient for each result, and the kept values")
    if not isinstance(program.result, tuple) or len(program.result) != len(step.inputs):
        raise FormatError("the backward of a program returns a gradient for each input")
    if not all(position in range(len(step.results)) for position in step.constant):
        raise FormatError("a program names results that do not exist as results without gradients")


def _result(value: Any) -> torch.Tensor:
    """Return an alias of a result for autograd, which refuses changes in place of a view, as in the original."""
    if not isinstance(value, torch.Tensor):
        raise GraphExecutionError(f"a program gives a backward to a {type(value).__name__}")
    is_view = not torch.compiler.is_compiling() and value._is_view()  # noqa: SLF001
    return value.view_as(value) if is_view else value.detach()


def _own_number(value: Any) -> Any:
    """Return the value; for a compiler, a number that is made inside of the function, as the compiler requires."""
    return value * 1 if type(value) in _NUMBERS and torch.compiler.is_compiling() else value


def _without_gradient(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value
