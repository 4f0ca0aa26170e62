"""Large tensors filled with torch's random numbers by several threads, bit for bit as by one."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from model_factory_server.twister import MOST_STEPS, STEP, later

_FILLS = ("uniform_", "normal_")
_MOST_THREADS = 8  # each may reserve address space, of which a build has so much
_BLOCK = 16  # numbers; fewer normally distributed ones are made by torch in another way


@contextmanager
def in_threads(count: int) -> Iterator[None]:
    """Have ``uniform_`` and ``normal_`` fill large tensors in ``count`` threads meanwhile, or a few if that is more.

    The generator draws on as it would, though the bytes of its state are others.
    """
    if count < 2 or not is_as_expected():
        yield
        return
    fills = {name: getattr(torch.Tensor, name) for name in _FILLS}
    count = min(count, _MOST_THREADS)
    with ThreadPoolExecutor(count) as pool:
        for name, fill in fills.items():
            setattr(torch.Tensor, name, _in_parts(fill, count, pool.map))
        try:
            yield
        finally:
            for name in fills:
                delattr(torch.Tensor, name)  # its base has it


def _in_parts(fill: Callable[..., Any], count: int, do: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``fill`` for large tensors in ``count`` parts at a time, which ``do`` does as ``map`` would."""

    @functools.wraps(fill)
    def filled(tensor: torch.Tensor, *args: Any, generator: torch.Generator | None = None, **kwargs: Any) -> Any:
        def part(flat: torch.Tensor, state: torch.Tensor, steps: int) -> torch.Tensor:
            own = torch.Generator()
            own.set_state(later(state, steps))
            fill(flat, *args, generator=own, **kwargs)
            return own.get_state()

        rest = tensor
        if generator is None and _is_plain(tensor):
            rest = tensor.detach().view(-1)
            while steps := _steps(rest.numel(), count):
                parts = torch.split(rest, steps * STEP)[: min(count, MOST_STEPS // steps + 1)]
                starts = range(0, steps * len(parts), steps)
                *_, last = do(part, parts, itertools.repeat(torch.get_rng_state()), starts)
                torch.set_rng_state(last)
                rest = rest[steps * STEP * len(parts) :]
        fill(rest, *args, generator=generator, **kwargs)
        return tensor

    return filled


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether each number of a tensor takes one draw, in the order that they lie in, and any thread may write it."""
    return (
        type(tensor) in {torch.Tensor, nn.Parameter}
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.is_contiguous()
        and not tensor.is_inference()
        and not (tensor.requires_grad and torch.is_grad_enabled())  # which is an error
    )


def _steps(numbers: int, count: int) -> int:
    """How many steps of so many numbers one of ``count`` threads takes; 0 where one thread takes all."""
    steps = min(-(-numbers // (count * STEP)), MOST_STEPS)
    return 0 if numbers <= steps * STEP or 0 < numbers % (steps * STEP) < _BLOCK else steps


@functools.cache
def is_as_expected() -> bool:
    """Whether this torch keeps its generator's state, and draws from it, as is relied on here."""
    before = torch.get_rng_state()
    try:
        return all(_is_same(getattr(torch.Tensor, name)) for name in _FILLS)
    except Exception:  # noqa: BLE001  whatever is otherwise than expected
        return False
    finally:
        torch.set_rng_state(before)


def _is_same(fill: Callable[..., Any]) -> bool:
    found = []
    for way in (fill, _in_parts(fill, 2, map)):
        torch.default_generator.manual_seed(0)
        torch.empty(3).normal_()  # so that it begins amid a state, with a number in reserve
        found.append((way(torch.empty(STEP + _BLOCK + 1)), torch.empty(3).normal_(), torch.empty(2000).uniform_()))
    return all(torch.equal(one, other) for one, other in zip(*found, strict=True))
