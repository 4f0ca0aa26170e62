"""Running a module without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from model_factory.descriptor.describe import plain_tensors
from model_factory.errors import NotPortableError

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


@contextmanager
def attributes_kept(module: nn.Module) -> Iterator[None]:
    """Undo afterwards what happens to attributes and training flags meanwhile: a mask that a forward caches, say."""
    before = [(item.__dict__, dict(item.__dict__)) for item in module.modules()]
    try:
        yield
    finally:
        for attributes, kept in before:
            attributes.clear()
            attributes.update(kept)


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Undo afterwards what running a module does to its attributes, buffers and plain tensors.

    Parameters are not copied, for they are large; torch's own forwards write to them only in embeddings with a
    ``max_norm``, which are.

    Raises:
        NotPortableError: a forward has written to another parameter.
    """
    renormed = [item.weight for item in module.modules() if isinstance(item, _EMBEDDINGS) and item.max_norm is not None]
    tensors = [*module.buffers(), *plain_tensors(module).values(), *renormed]
    before = [(tensor, tensor.detach().clone()) for tensor in tensors if not is_lazy(tensor)]
    known = {id(tensor) for tensor, _ in before}
    versions = [(name, item, item._version) for name, item in module.named_parameters() if id(item) not in known]  # noqa: SLF001
    with attributes_kept(module):
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in before:
                    tensor.copy_(value)
    for name, parameter, version in versions:
        if parameter._version != version and not is_lazy(parameter):  # noqa: SLF001
            raise NotPortableError(
                f"its forward writes to the parameter {name!r}. Remedy: keep what the forward writes in a buffer"
            )
