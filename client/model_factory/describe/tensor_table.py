"""The descriptor's table of tensors: each tensor of a model once, under the first name."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from model_factory.describe.attributes import tensor_attributes
from model_factory.describe.refusals import Refusals, refuse_shared_memory, refuse_tensor
from model_factory.descriptor.tree import TensorNode
from model_factory.program.torch_names import torch_name


class TensorTable:
    """Collects tensors."""

    def __init__(self, refusals: Refusals, *, is_trained: bool = False) -> None:
        """With ``is_trained``, gradients are left out instead of refused."""
        self._refusals = refusals
        self._is_trained = is_trained
        self._positions: dict[int, int] = {}  # by id of the tensor
        self._dense: dict[str, torch.Tensor] = {}
        self.nodes: list[TensorNode] = []
        """The table."""

    def add(self, tensor: torch.Tensor | None, name: str) -> int | None:
        """Add a tensor, unless the table has the tensor already, and return the tensor's position."""
        if tensor is None:
            return None
        position = self._positions.get(id(tensor))
        if position is not None:
            return position
        owner = name.rpartition(".")[0]
        with self._refusals.noted(owner):
            refuse_tensor(tensor, name, is_trained=self._is_trained)
        node = _node(tensor, name)
        with self._refusals.noted(owner):
            node = replace(node, attributes=tensor_attributes(tensor, name))
        if node.shape is not None and tensor.layout is torch.strided:
            self._dense[name] = tensor
        position = self._positions[id(tensor)] = len(self.nodes)
        self.nodes.append(node)
        return position

    def finish(self) -> tuple[TensorNode, ...]:
        """Return the table.

        Raises:
            NotPortableError: two tensors share memory.
        """
        with self._refusals.noted(""):
            refuse_shared_memory(self._dense)
        return tuple(self.nodes)


def _node(tensor: torch.Tensor, name: str) -> TensorNode:
    lazy = is_lazy(tensor)
    return TensorNode(
        name=name,
        dtype=torch_name(tensor.dtype),
        shape=None if lazy else tuple(tensor.shape),
        requires_grad=tensor.requires_grad,
        parameter=isinstance(tensor, nn.Parameter),
        order=() if lazy else _memory_order(tensor),
        attributes={},
    )


def _memory_order(tensor: torch.Tensor) -> tuple[int, ...]:
    """The axes of a tensor in the order of memory; empty for a contiguous tensor or a tensor with gaps."""
    if tensor.layout is not torch.strided or tensor.is_contiguous():
        return ()
    strides = tensor.stride()
    order = tuple(sorted(range(tensor.dim()), key=lambda axis: -strides[axis]))
    return order if tensor.permute(order).is_contiguous() else ()
