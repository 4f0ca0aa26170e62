"""Bytes between the host and a device, through two buffers: while one is copied, the other is read or written.

On CUDA the buffers are pinned, so that copies run beside the processor; elsewhere they are plain memory, and each copy
is over when it returns.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import torch

from model_factory.errors import FormatError
from model_factory.limits import MIB

BUFFER_BYTES = 32 * MIB


class _Buffer:
    """Host memory with a copy from or to it under way, perhaps."""

    def __init__(self, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self.tensor = torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=is_cuda)
        self._stream = torch.cuda.current_stream(device) if is_cuda else None
        self._copied = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]

    def copy(self, to: torch.Tensor, source: torch.Tensor) -> None:
        """Begin a copy; one of the two is a part of this buffer."""
        to.copy_(source, non_blocking=self._copied is not None)
        if self._copied is not None:
            self._copied.record(self._stream)

    def part(self, size: int) -> torch.Tensor:
        """Its beginning, once no copy is under way."""
        if self._copied is not None:
            self._copied.synchronize()
        return self.tensor[:size]


def to_host(tensors: Iterable[torch.Tensor]) -> Iterator[memoryview]:
    """Yield the bytes of flat uint8 tensors on one device, in pieces; each is good until the next is asked for."""
    under_way: tuple[_Buffer, int] | None = None
    for buffer, piece in _in_turns(tensors):
        buffer.copy(buffer.part(piece.numel()), piece)
        if under_way is not None:
            yield _bytes(*under_way)
        under_way = buffer, piece.numel()
    if under_way is not None:
        yield _bytes(*under_way)


def to_device(file: BinaryIO, tensors: Iterable[torch.Tensor]) -> None:
    """Fill flat uint8 tensors on one device, one after the other, with what a file has from its position on.

    Raises:
        FormatError: the file ends too early.
    """
    used = set()
    for buffer, piece in _in_turns(tensors):
        used.add(buffer)
        part = buffer.part(piece.numel())
        _read(file, part.numpy().data)
        buffer.copy(piece, part)
    for buffer in used:
        buffer.part(0)


def _in_turns(tensors: Iterable[torch.Tensor]) -> Iterator[tuple[_Buffer, torch.Tensor]]:
    """Yield the tensors in pieces that fit into a buffer, each with one of two buffers on their device, in turns."""
    buffers: Iterator[_Buffer] | None = None
    for tensor in tensors:
        for piece in torch.split(tensor, BUFFER_BYTES) if tensor.numel() else ():
            buffers = buffers or itertools.cycle([_Buffer(piece.device), _Buffer(piece.device)])
            yield next(buffers), piece


def _bytes(buffer: _Buffer, size: int) -> memoryview:
    data: memoryview = buffer.part(size).numpy().data
    return data


def _read(file: BinaryIO, data: memoryview) -> None:
    while data:
        count = file.readinto(data)  # type: ignore[attr-defined]
        if not count:
            raise FormatError("the file ends before its last tensor does")
        data = data[count:]
