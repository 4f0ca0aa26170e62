"""Fake tensors with symbols for the sizes that a layer or parameter gives.

A forward may read the width of a layer's result and scale by the width. If the program reads the width on the trainer,
the program holds for any width. So a fake result of a torch module has symbols in the place of the layer's numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from model_factory_server.export.torch_private import recorded_size


def with_sizes(tensor: torch.Tensor, symbol: Callable[[int, Any], Any | None]) -> torch.Tensor:
    """Return a fake tensor like ``tensor`` with other sizes.

    ``symbol(axis, size)`` returns the symbol in the place of a size, or None to keep the size. Sizes of 0 and 1 are
    kept, since torch's ops treat these sizes specially. The order of the axes in memory is kept. A tensor with gaps in
    memory is returned unchanged.

    Example:
        >>> with_sizes(torch.zeros(2, 3), lambda axis, size: size + 1 if axis else None).shape
        torch.Size([2, 4])
    """
    if not _is_dense(tensor):
        return tensor
    found = [None if _is_unit(size) else symbol(axis, size) for axis, size in enumerate(tensor.shape)]
    if all(size is None for size in found):
        return tensor
    sizes = [old if new is None else new for old, new in zip(tensor.shape, found, strict=True)]
    return empty_in_order(sizes, _by_stride(tensor), tensor.dtype, tensor.device)


def empty_in_order(
    sizes: Sequence[Any], order: Sequence[int], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Return a tensor without gaps in memory; ``order`` has the axes from the innermost in memory to the outermost.

    Example:
        >>> empty_in_order((2, 3), (0, 1), torch.float32, torch.device("cpu")).stride()
        (1, 2)
    """
    strides: list[Any] = [1] * len(sizes)
    step: Any = 1
    for axis in order:
        strides[axis] = step
        step = step * sizes[axis]
    return torch.empty_strided(sizes, strides, dtype=dtype, device=device)


def memory_order(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """Return the axes from the innermost in memory to the outermost; None for a tensor with gaps in memory.

    Example:
        >>> memory_order(torch.zeros(2, 3)), memory_order(torch.zeros(2, 3)[:, :1])
        ((1, 0), None)
    """
    return tuple(_by_stride(tensor)) if _is_dense(tensor) else None


def plain_axes(tensor: torch.Tensor) -> list[int]:
    """Return the axes with a number, not a symbol, as the size.

    Example:
        >>> plain_axes(torch.zeros(2, 3))
        [0, 1]
    """
    return [axis for axis, size in enumerate(tensor.shape) if type(size) is int]


def _is_unit(size: Any) -> bool:
    return type(size) is int and size in {0, 1}


def _by_stride(tensor: torch.Tensor) -> list[int]:
    """The axes from the innermost in memory to the outermost."""
    strides = [recorded_size(stride) for stride in tensor.stride()]
    return sorted(range(tensor.dim()), key=lambda axis: (strides[axis], -axis))


def _is_dense(tensor: torch.Tensor) -> bool:
    expected = 1
    for axis in _by_stride(tensor):
        size, stride = recorded_size(tensor.shape[axis]), recorded_size(tensor.stride(axis))
        if size is None or stride is None or (size != 1 and stride != expected):
            return False
        expected *= max(size, 1)
    return tensor.layout == torch.strided
