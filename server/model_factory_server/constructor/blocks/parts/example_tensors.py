"""Example tensors for ``example_inputs()``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BATCH = 2


def example(*shape: int) -> Tensor:
    """Return a float32 CPU tensor of normal values; the global generator is unchanged."""
    return torch.randn(shape, generator=torch.Generator(device="cpu").manual_seed(0), device="cpu", dtype=torch.float32)


def distinct_sizes(*taken: int | None) -> Iterator[int]:
    """Yield small sizes that differ from each other, from the batch and from the feature sizes ``taken``.

    Example:
        >>> sizes = distinct_sizes(3)
        >>> next(sizes), next(sizes)
        (4, 5)
    """
    size = BATCH
    while True:
        size += 1
        if size not in taken:
            yield size
