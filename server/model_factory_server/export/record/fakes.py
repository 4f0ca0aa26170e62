"""Fake tensors for the parameters, buffers and plain tensors of a module: tensors without memory."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import torch
from torch import nn

from model_factory_server.export.restored_after import plain_tensors
from model_factory_server.export.torch_private import FakeTensor, FakeTensorMode, memory_id


class OwnFakes:
    """Makes fake tensors for a module's own tensors."""

    def __init__(self, module: nn.Module, mode: FakeTensorMode, dtype: torch.dtype | None) -> None:
        """Make fake tensors of ``mode``; floating tensors in ``dtype``, unless ``dtype`` is None."""
        self._mode = mode
        self._dtype = dtype
        own = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
        own |= {id(tensor): tensor for tensor in plain_tensors(module).values()}
        self._shares = Counter(memory_id(tensor) for tensor in own.values() if _has_memory(tensor))

    def make(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a fake tensor with the sizes, strides and gradient flag of ``tensor``.

        Example:
            >>> layer = nn.Linear(2, 3)
            >>> OwnFakes(layer, FakeTensorMode(), torch.float64).make(layer.weight)
            Parameter(FakeTensor(..., size=(3, 2), dtype=torch.float64, requires_grad=True))
        """
        if type(tensor) not in {torch.Tensor, nn.Parameter} or not _has_memory(tensor) or not tensor.is_leaf:
            return self._made_by_torch(tensor)
        if self._shares[memory_id(tensor)] != 1:  # fakes of two views share memory, too
            return self._made_by_torch(tensor)
        # Torch's own way is general, and ten times as slow.
        dtype = self._dtype if self._dtype is not None and tensor.is_floating_point() else tensor.dtype
        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device="meta")
        fake: torch.Tensor = FakeTensor(self._mode, empty, tensor.device)
        fake._is_param = isinstance(tensor, nn.Parameter)  # noqa: SLF001
        return fake.requires_grad_(tensor.requires_grad)

    def _made_by_torch(self, tensor: torch.Tensor) -> torch.Tensor:
        fake: torch.Tensor = self._mode.from_tensor(in_dtype(tensor, self._dtype), static_shapes=True)
        return fake


def in_dtype(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """Return an empty tensor in ``dtype`` for a floating tensor, unless ``dtype`` is None; other tensors as given.

    A fake tensor has no values, and memory without a write takes no room. A cast of the fake tensor takes ten times as
    long.

    Example:
        >>> in_dtype(torch.ones(2), torch.float64).dtype, in_dtype(torch.tensor([1]), torch.float64)
        (torch.float64, tensor([1]))
    """
    if dtype is None or not tensor.is_floating_point():
        return tensor
    return torch.empty_like(tensor, dtype=dtype, requires_grad=tensor.requires_grad)


def _has_memory(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_quantized and not nn.parameter.is_lazy(tensor)
