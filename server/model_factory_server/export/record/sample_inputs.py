"""Forwards that decide by the values of their tensors: inputs that take a wanted side of every decision."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from model_factory.errors import NotPortableError, refused_call
from model_factory.program.ir import Outcome, Program
from model_factory.program.runtime.interpreter import Runner
from model_factory.program.runtime.step_compiler import BranchMissError
from model_factory_server.export.restored_after import restored_after
from model_factory_server.export.trace.tape import UndecidedError

MAX_DRAWS = 200
"""Inputs that are tried to find some that take one side of a decision."""

REFUSED_CALL = "the forward refused the call"
"""What an error says where it did."""

VERIFY_SEED = 20
"""The first of those that a forward draws its random numbers from."""

_Draw = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]


def outcome_on(module: nn.Module, question: UndecidedError, examples: Sequence[torch.Tensor]) -> Outcome:
    """Return how a decision turns out on ``examples`` or, where they take another side before it, on inputs like them.

    Raises:
        NotPortableError: no inputs were found that lead up to the decision.
    """
    inputs = itertools.chain([examples], draws(examples, [leaf.shape for leaf in examples]))
    for seed, leaves in enumerate(inputs, VERIFY_SEED):
        try:
            value = _run(module, question.program, leaves, seed)
        except BranchMissError:
            continue
        return bool(value) if question.kind == "bool" else int(value)
    raise unreached()


def takes_side(module: nn.Module, program: Program, leaves: Sequence[torch.Tensor]) -> bool:
    """Whether inputs take the side of every decision that a program is for."""
    if program.outcomes():
        try:
            _run(module, program, leaves, VERIFY_SEED)
        except BranchMissError:
            return False
    return True


def _run(module: nn.Module, program: Program, leaves: Sequence[torch.Tensor], seed: int) -> Any:
    with torch.random.fork_rng(), restored_after(module), torch.no_grad():
        torch.manual_seed(seed)
        try:
            return Runner(program).run(module, [leaf.clone() for leaf in leaves])
        except BranchMissError:
            raise
        except Exception as error:  # the forward is the operator's code: whatever its steps raise is its refusal
            raise refused_call(f"{REFUSED_CALL}: {type(error).__name__}: {error}", error) from error


def unreached() -> NotPortableError:
    """What to say of a side of a decision that no inputs take."""
    return NotPortableError(
        "its forward decides by the values of a tensor, and no inputs were found that take this side. Remedy: give it "
        "an example_inputs() with inputs that do"
    )


def draws(examples: Sequence[torch.Tensor], shapes: Sequence[Sequence[int]]) -> Iterator[list[torch.Tensor]]:
    """Inputs of other values and sizes than ``examples``: first normal ones, then others, then mixtures."""
    kinds = [_FLOATING if example.is_floating_point() or example.is_complex() else _INTEGRAL for example in examples]
    for index in range(max(map(len, kinds), default=1)):
        yield [kind[index % len(kind)](like, shape) for kind, like, shape in zip(kinds, examples, shapes, strict=True)]
    chosen = random.Random(VERIFY_SEED)  # noqa: S311  the same kinds every time
    for _ in range(MAX_DRAWS):
        yield [chosen.choice(kind)(like, shape) for kind, like, shape in zip(kinds, examples, shapes, strict=True)]


def _normal(scale: float) -> _Draw:
    return lambda like, shape: torch.randn(tuple(shape), dtype=like.dtype, device=like.device) * scale


def _between(like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    low, high = _range(like)
    return low + (high - low) * torch.rand(tuple(shape), dtype=like.dtype, device=like.device)


def _integers(like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    low, high = _range(like)
    return torch.randint(int(low), int(high) + 1, tuple(shape), device=like.device).to(like.dtype)


def _filled(end: int) -> _Draw:
    return lambda like, shape: torch.full(tuple(shape), _range(like)[end], dtype=like.dtype, device=like.device)


def _constant(value: float) -> _Draw:
    return lambda like, shape: torch.full(tuple(shape), value, dtype=like.dtype, device=like.device)


def _range(like: torch.Tensor) -> tuple[float, float]:
    if not like.numel():
        return (0, 1)
    if like.is_complex():
        return (0.0, 1.0)
    if like.is_floating_point():
        return (float(like.min()), float(like.max()))
    return (int(like.min()), int(like.max()))


_FLOATING: Sequence[_Draw] = (
    *(_normal(1.0), _between, _normal(0.1), _normal(10.0), _normal(100.0), _normal(1000.0)),
    lambda like, shape: torch.randn(tuple(shape), dtype=like.dtype, device=like.device).abs(),
    lambda like, shape: -torch.randn(tuple(shape), dtype=like.dtype, device=like.device).abs(),
    lambda like, shape: torch.rand(tuple(shape), dtype=like.dtype, device=like.device),
    *(_filled(0), _filled(1), _constant(0.0), _constant(1.0)),
)
_INTEGRAL: Sequence[_Draw] = (_integers, _filled(1), _filled(0))
