"""Running a module without leaving a trace in it."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from model_factory.descriptor.stock import is_stock
from model_factory.errors import NotPortableError

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_INTERNALS = frozenset(nn.Module().__dict__)
_CONTAINERS = frozenset({list, dict, set, deque, OrderedDict, defaultdict})


def plain_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors below a module that are attributes, but neither parameters nor buffers, by path."""
    return {
        f"{path}.{name}" if path else name: value
        for path, item in module.named_modules()
        for name, value in item.__dict__.items()
        if isinstance(value, torch.Tensor)
    }


def plain_containers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Lists, dicts, sets and deques in attributes of modules that are none of torch's, and in each other, by path."""
    pending = [
        (f"{path}.{name}" if path else name, value)
        for path, item in module.named_modules()
        if not is_stock(item)
        for name, value in item.__dict__.items()
        if name not in _INTERNALS and type(value) in _CONTAINERS
    ]
    seen: set[int] = set()
    while pending:
        path, value = pending.pop()
        if id(value) not in seen:
            seen.add(id(value))
            yield path, value
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            pending += [(f"{path}[{key!r}]", entry) for key, entry in entries if type(entry) in _CONTAINERS]


@contextmanager
def attributes_kept(module: nn.Module) -> Iterator[None]:
    """Undo afterwards what is assigned meanwhile: training flags, a mask that a forward caches, another parameter.

    Hooks, too, which some libraries register when they are first asked for hidden states.
    """
    tables = [table for item in module.modules() for table in (*_tables(item), *_hooks(item))]
    before = [(table, table.copy()) for table in [*tables, *(container for _, container in plain_containers(module))]]
    try:
        yield
    finally:
        for table, kept in before:
            table.clear()
            (table.extend if isinstance(table, list | deque) else table.update)(kept)


@contextmanager
def tensors_as(module: nn.Module, convert: Callable[[str, torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Have ``convert(path, tensor)`` in the place of each parameter, buffer and plain tensor for a while.

    Unlike ``torch.func.functional_call`` this handles shared modules and plain tensors.
    """
    with attributes_kept(module):
        for path, item in module.named_modules():
            for table in _tables(item):
                for name, value in table.items():
                    if isinstance(value, torch.Tensor):
                        table[name] = convert(f"{path}.{name}" if path else name, value)
        yield


def _tables(module: nn.Module) -> list[dict[str, Any]]:
    return [module._parameters, module._buffers, module._modules, module.__dict__]  # noqa: SLF001


def _hooks(module: nn.Module) -> list[dict[Any, Any]]:
    return [table for name, table in module.__dict__.items() if name.endswith("_hooks") and isinstance(table, dict)]


@contextmanager
def restored_after(module: nn.Module, *, parameters: bool = False) -> Iterator[None]:
    """Undo afterwards what running a module does to its attributes, buffers and plain tensors.

    Parameters are copied only with ``parameters``, for they are large; torch's own forwards write to them only in
    embeddings with a ``max_norm``, which are copied always.

    Raises:
        NotPortableError: a forward has written to a parameter that is not copied.
    """
    renormed = [item.weight for item in module.modules() if isinstance(item, _EMBEDDINGS) and item.max_norm is not None]
    tensors = [*module.buffers(), *plain_tensors(module).values(), *(module.parameters() if parameters else renormed)]
    before = [(tensor, tensor.detach().clone()) for tensor in tensors if not is_lazy(tensor) and _is_writable(tensor)]
    known = {id(tensor) for tensor, _ in before}
    versions = [(name, item, item._version) for name, item in module.named_parameters() if id(item) not in known]  # noqa: SLF001
    with attributes_kept(module):
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in before:
                    tensor.copy_(value)
                    if tensor.grad_fn is not None and not tensor._is_view():  # noqa: SLF001
                        tensor.detach_()  # of what was written to it
    for name, parameter, version in versions:
        if parameter._version != version and not is_lazy(parameter):  # noqa: SLF001
            raise writes_to_parameter(name)


def writes_to_parameter(path: str) -> NotPortableError:
    """What to say of a forward that does."""
    return NotPortableError(
        f"its forward writes to the parameter {path!r}. Remedy: keep what the forward writes in a buffer"
    )


def _is_writable(tensor: torch.Tensor) -> bool:
    """Whether torch lets a forward write to it: not where several elements are the same memory."""
    return all(stride or size == 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
