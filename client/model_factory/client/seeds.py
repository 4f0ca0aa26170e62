"""The seed of a build without an explicit seed: a number from torch's default generator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_DRAWN_RANGE = (1 << 63) - 1


@contextmanager
def build_seed(seed: int | None) -> Iterator[int]:
    """Provide the seed of a build: ``seed`` if given, else a number from torch's default generator on the CPU.

    A single number is drawn for all components of a build. A failed build restores the generator: after a retry, a rank
    has the same seed as the other ranks.

    >>> _ = torch.manual_seed(3)
    >>> with build_seed(None) as first, build_seed(None) as second:
    ...     first == second
    False
    """
    if seed is not None:
        yield seed
        return
    before = torch.get_rng_state()
    drawn = torch.randint(_DRAWN_RANGE, (), generator=torch.default_generator, device="cpu")
    try:
        yield int(drawn)
    except BaseException:
        torch.set_rng_state(before)
        raise
