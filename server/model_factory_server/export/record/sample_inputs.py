"""Sample inputs for forwards that decide by values: inputs that take a wanted branch of every decision."""

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
from model_factory_server.export.restored_after import restored_after, seed_torch
from model_factory_server.export.trace.decisions import UndecidedError

MAX_MIXED_SAMPLES = 200
"""Sample inputs with a random choice of values for each tensor, after the fixed choices."""

REFUSED_CALL = "the forward refused the call"
"""Beginning of the error text if the forward raises an error."""

VERIFY_SEED = 20
"""The first seed for random numbers of a forward."""

_Sample = Callable[[torch.Tensor, Sequence[int], torch.Generator], torch.Tensor]


def outcome_on(module: nn.Module, undecided: UndecidedError, examples: Sequence[torch.Tensor]) -> Outcome:
    """Return the outcome of a decision on ``examples``, or on sample inputs if ``examples`` do not reach the decision.

    Raises:
        NotPortableError: no sample inputs reach the decision.
    """
    runner = Runner(undecided.program)
    inputs = itertools.chain([examples], sample_inputs(examples, [leaf.shape for leaf in examples]))
    for seed, leaves in enumerate(inputs, VERIFY_SEED):
        try:
            value = _run(module, runner, leaves, seed)
        except BranchMissError:
            continue
        return bool(value) if undecided.kind == "bool" else int(value)
    raise unreached_branch()


def takes_branch(module: nn.Module, program: Program, leaves: Sequence[torch.Tensor]) -> bool:
    """Whether inputs take the program's branch of every decision."""
    if program.outcomes():
        try:
            _run(module, Runner(program), leaves, VERIFY_SEED)
        except BranchMissError:
            return False
    return True


def _run(module: nn.Module, runner: Runner, leaves: Sequence[torch.Tensor], seed: int) -> Any:
    with torch.random.fork_rng(), restored_after(module), torch.no_grad():
        seed_torch(seed)
        try:
            return runner.run(module, [leaf.clone() for leaf in leaves])
        except BranchMissError:
            raise
        except Exception as error:  # the operator's code may raise any error
            raise refused_call(f"{REFUSED_CALL}: {type(error).__name__}: {error}", error) from error


class UnreachedBranchError(NotPortableError):
    """No sample inputs take a branch of the forward."""


def unreached_branch() -> UnreachedBranchError:
    """Return the error for a branch that no sample inputs take."""
    return UnreachedBranchError(
        "the forward decides by the values of a tensor, and no sample inputs take this branch. Remedy: define "
        "example_inputs() with inputs that take the branch"
    )


def sample_inputs(
    examples: Sequence[torch.Tensor], shapes: Sequence[Sequence[int]], seed: int = VERIFY_SEED
) -> Iterator[list[torch.Tensor]]:
    """Yield inputs of given sizes with dtypes and ranges of ``examples``: normal values first, then others, then mixed.

    The second inputs are the examples, repeated or cut: a forward may count values, as the image tokens of a text.

    Equal arguments give equal inputs: programs must not depend on the seed of a build.

    Example:
        >>> first = next(sample_inputs([torch.ones(2)], [[3]]))
        >>> first[0].shape
        torch.Size([3])
    """
    kinds = [_FLOATING if example.is_floating_point() or example.is_complex() else _INTEGRAL for example in examples]
    numbers = torch.Generator(device="cpu").manual_seed(seed)
    chosen = random.Random(seed)  # noqa: S311  the same kinds every time
    most = max(map(len, kinds), default=1)
    for index in range(most + MAX_MIXED_SAMPLES):
        makers = [kind[index % len(kind)] if index < most else chosen.choice(kind) for kind in kinds]
        yield [
            make(like, shape, numbers).to(like.device)
            for make, like, shape in zip(makers, examples, shapes, strict=True)
        ]


def _normal(scale: float, signed: Callable[[torch.Tensor], torch.Tensor] = torch.clone) -> _Sample:
    return lambda like, shape, numbers: signed(torch.randn(tuple(shape), dtype=like.dtype, generator=numbers)) * scale


def repeated(like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return the values of a tensor, repeated or cut along each axis.

    Example:
        >>> repeated(torch.tensor([[1, 2]]), (2, 3))
        tensor([[1, 2, 1],
                [1, 2, 1]])
    """
    values = like.detach()
    if not like.numel():
        return torch.zeros(tuple(shape), dtype=like.dtype)
    for axis, size in enumerate(shape):
        values = values.index_select(axis, torch.arange(size, device=like.device) % like.shape[axis])
    return values.clone()


def _repeated(like: torch.Tensor, shape: Sequence[int], _numbers: torch.Generator) -> torch.Tensor:
    return repeated(like, shape)


def _between(like: torch.Tensor, shape: Sequence[int], numbers: torch.Generator) -> torch.Tensor:
    low, high = _range(like)
    return low + (high - low) * _uniform(like, shape, numbers)


def _uniform(like: torch.Tensor, shape: Sequence[int], numbers: torch.Generator) -> torch.Tensor:
    return torch.rand(tuple(shape), dtype=like.dtype, generator=numbers)


def _integers(like: torch.Tensor, shape: Sequence[int], numbers: torch.Generator) -> torch.Tensor:
    low, high = _range(like)
    return torch.randint(int(low), int(high) + 1, tuple(shape), generator=numbers).to(like.dtype)


def _filled(end: int) -> _Sample:
    return lambda like, shape, _numbers: torch.full(tuple(shape), _range(like)[end], dtype=like.dtype)


def _constant(value: float) -> _Sample:
    return lambda like, shape, _numbers: torch.full(tuple(shape), value, dtype=like.dtype)


def _range(like: torch.Tensor) -> tuple[float, float]:
    if not like.numel():
        return (0, 1)
    if like.is_complex():
        return (0.0, 1.0)
    if like.is_floating_point():
        return (float(like.min()), float(like.max()))
    return (int(like.min()), int(like.max()))


_FLOATING: Sequence[_Sample] = (
    *(_normal(1.0), _repeated, _between, _normal(0.1), _normal(10.0), _normal(100.0), _normal(1000.0)),
    *(_normal(1.0, torch.abs), _normal(-1.0, torch.abs), _uniform),
    *(_filled(0), _filled(1), _constant(0.0), _constant(1.0)),
)
_INTEGRAL: Sequence[_Sample] = (_integers, _repeated, _filled(1), _filled(0))
