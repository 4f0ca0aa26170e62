"""Fake tensors with symbols for the sizes that a layer or parameter gives.

A forward may read the width of a layer's result and scale by the width. If the program reads the width on the trainer,
the program holds for any width. So a fake result of a torch module has symbols in the place of the layer's numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
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
    sizes: Sequence[Any],
    order: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    gaps: Collection[int] = (),
) -> torch.Tensor:
    """Return an empty tensor; ``order`` has the axes from the innermost in memory to the outermost.

    ``gaps`` are axes with gaps in memory between the entries, as in a part of a larger tensor.

    Example:
        >>> empty_in_order((2, 3), (0, 1), torch.float32, torch.device("cpu")).stride()
        (1, 2)
    """
    strides: list[Any] = [1] * len(sizes)
    step: Any = 1
    for axis in order:
        strides[axis] = step = 2 * step if axis in gaps else step
        step = step * sizes[axis]
    return torch.empty_strided(sizes, strides, dtype=dtype, device=device)


def memory_order(tensor: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the axes from the innermost in memory to the outermost, and the axes with gaps between the entries.

    None for a tensor with several entries in the same memory.

    Example:
        >>> memory_order(torch.zeros(2, 3)), memory_order(torch.zeros(2, 3)[:, :1])
        (((1, 0), ()), ((1, 0), (0,)))
        >>> memory_order(torch.zeros(2, 1).expand(2, 3))
    """
    order, gaps = tuple(_by_stride(tensor)), []
    expected = 1
    for axis in order:
        size, stride = recorded_size(tensor.shape[axis]), recorded_size(tensor.stride(axis))
        if tensor.layout != torch.strided or size is None or stride is None or (size > 1 and stride < expected):
            return None
        if size > 1 and stride > expected:
            gaps.append(axis)
            expected = stride
        expected *= max(size, 1)
    return order, tuple(gaps)


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
    found = memory_order(tensor)
    return found is not None and not found[1]
