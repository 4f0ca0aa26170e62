"""Large tensors filled with torch's random numbers by several threads, bit for bit as by one."""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from model_factory_server.twister import STEP, jump, later

_FILLS = ("uniform_", "normal_")
_MOST_THREADS = 8
_LEAST_STEPS = 2  # of one thread: to get ahead takes it almost as long as a step
_BLOCK = 16  # numbers; fewer normally distributed ones are made by torch in another way


@contextmanager
def in_threads(count: int) -> Iterator[None]:
    """Have ``uniform_`` and ``normal_`` fill large tensors in ``count`` threads meanwhile, 8 at most.

    Those of the thread that enters this, that is, and where nobody else has put something in the place of torch's.
    """
    if count < 2 or vars(torch.Tensor).keys() & set(_FILLS) or not is_as_expected():
        yield
        return
    count = min(count, _MOST_THREADS)
    ours = {name: _in_parts(getattr(torch.Tensor, name), count, _do_together) for name in _FILLS}
    for name, fill in ours.items():
        setattr(torch.Tensor, name, fill)
    try:
        yield
    finally:
        for name, fill in ours.items():
            if vars(torch.Tensor).get(name) is fill:
                delattr(torch.Tensor, name)  # its base has torch's


def _do_together(part: Callable[..., Any], parts: Sequence[torch.Tensor], *arguments: Any) -> list[Any]:
    with ThreadPoolExecutor(len(parts)) as pool:  # of this fill alone, for a constructor may fork
        return list(pool.map(part, parts, *arguments))


def _in_parts(fill: Callable[..., Any], count: int, do: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``fill`` for large tensors in ``count`` parts at a time, which ``do`` does as ``map`` would."""
    owner = threading.get_ident()  # others may draw at the same time, and torch has a lock for that

    @functools.wraps(fill)
    def filled(tensor: torch.Tensor, /, *args: Any, generator: torch.Generator | None = None, **kwargs: Any) -> Any:
        def part(flat: torch.Tensor, state: torch.Tensor, steps: int) -> torch.Tensor:
            own = torch.Generator()
            own.set_state(later(state, steps))
            fill(flat, *args, generator=own, **kwargs)
            return own.get_state()

        rest = tensor
        if generator is None and threading.get_ident() == owner and _is_large_and_plain(tensor):
            rest = tensor.detach().view(-1)
            with suppress(RuntimeError, MemoryError):  # torch's own comes again below; threads may have no room
                while sizes := _parts(rest.numel(), count):
                    *parts, after = torch.split(rest, [*sizes, rest.numel() - sum(sizes)])
                    starts = itertools.count(0, sizes[0] // STEP)
                    *_, last = do(part, parts, itertools.repeat(torch.get_rng_state()), starts)
                    torch.set_rng_state(last)
                    rest = after
        fill(rest, *args, generator=generator, **kwargs)
        return tensor

    return filled


def _is_large_and_plain(tensor: torch.Tensor) -> bool:
    """Whether each number of a tensor takes one draw, in the order that they lie in, and any thread may write it."""
    return (
        type(tensor) in {torch.Tensor, nn.Parameter}
        and tensor.numel() > _LEAST_STEPS * STEP
        and not tensor.is_nested
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.is_contiguous()
        and not tensor.is_inference()
        and not (tensor.requires_grad and torch.is_grad_enabled())  # which is an error
        # Of transforms such as vmap, and of what looks at every op, other threads know nothing.
        and torch._C._functorch.peek_interpreter_stack() is None  # noqa: SLF001
        and not torch._C._len_torch_dispatch_stack()  # noqa: SLF001
    )


def _parts(numbers: int, count: int) -> list[int]:
    """How many of so many numbers each of ``count`` threads draws now; none where one thread draws what is left."""
    size = STEP * max(_LEAST_STEPS, min(-(-numbers // (count * STEP)), _most_steps(count)))
    whole, rest = divmod(numbers, size)
    if 0 < rest < _BLOCK:
        whole, rest = whole - 1, 0  # they are drawn with some that come before
    parts = [*[size] * whole, *([rest] if rest else [])][:count]
    return parts if len(parts) > 1 else []


def _most_steps(count: int) -> int:
    """How many steps one of ``count`` threads takes, for looking ahead far takes long the first time."""
    return max(4, 8 // (count - 1))


def prepare() -> None:
    """Find out what :func:`in_threads` has to know, as long as nobody waits."""
    threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    if threads > 1 and is_as_expected():
        jump(_most_steps(threads) * (threads - 1))


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
        found.append((way(torch.empty(_LEAST_STEPS * STEP + _BLOCK + 1)), torch.get_rng_state()))
    return all(torch.equal(one, other) for one, other in zip(*found, strict=True))
