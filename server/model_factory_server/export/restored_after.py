"""Context managers to run a module and afterwards restore the module and the random generators."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakIdKeyDictionary

from model_factory.describe.assignments import attributes_restored_after, module_tables, plain_containers
from model_factory.errors import NotPortableError
from model_factory_server.export.torch_private import version

_WRITTEN: MutableMapping[torch.Tensor, bool] = WeakIdKeyDictionary()
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_CACHE = functools._lru_cache_wrapper  # noqa: SLF001  there is no other name


def plain_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors below a module in plain attributes, neither parameters nor buffers, by path.

    Example:
        >>> layer = nn.ReLU()
        >>> layer.mask = torch.ones(2)
        >>> plain_tensors(nn.Sequential(layer))
        {'0.mask': tensor([1., 1.])}
    """
    return {
        f"{path}.{name}" if path else name: value
        for path, item in module.named_modules()
        for name, value in item.__dict__.items()
        if isinstance(value, torch.Tensor)
    }


@contextmanager
def tensors_as(module: nn.Module, convert: Callable[[str, torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Put ``convert(path, tensor)`` in the place of each parameter, buffer and plain tensor; restore them afterwards.

    Unlike ``torch.func.functional_call``, this function handles shared modules, plain tensors, and lists and dicts in
    attributes that also have the tensors, as torch's recurrent layers have a list of their weights.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> with tensors_as(layer, lambda path, tensor: tensor.to("meta")):
        ...     layer.weight.device
        device(type='meta')
    """
    converted: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # with the tensor, whose id stays taken
    with attributes_restored_after(module):
        for path, item in module.named_modules():
            for table in module_tables(item):
                for name, value in table.items():
                    if isinstance(value, torch.Tensor):
                        table[name] = convert(f"{path}.{name}" if path else name, value)
                        converted[id(value)] = value, table[name]
        for _, container in plain_containers(module):
            entries = container.items() if isinstance(container, dict) else enumerate(container)
            for key, value in entries if isinstance(container, dict | list) else ():
                if id(value) in converted:
                    container[key] = converted[id(value)][1]
        yield


@contextmanager
def restored_after(module: nn.Module, *, parameters: bool = False) -> Iterator[None]:
    """Restore a module's attributes, buffers and plain tensors afterwards.

    Parameters are large, and are copied and restored only with ``parameters``; :func:`written_parameters` always are.

    Raises:
        NotPortableError: a forward has written to a parameter without a copy.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with restored_after(norm):
        ...     _ = norm(torch.rand(4, 2))
        >>> norm.num_batches_tracked
        tensor(0)
    """
    chosen = module.parameters() if parameters else written_parameters(module).values()
    tensors = [*module.buffers(), *plain_tensors(module).values(), *chosen]
    before = [
        (tensor, tensor.detach().clone(), tensor.requires_grad)
        for tensor in tensors
        if not is_lazy(tensor) and _is_writable(tensor)
    ]
    known = {id(tensor) for tensor, _, _ in before}
    versions = [(name, item, version(item)) for name, item in module.named_parameters() if id(item) not in known]
    with attributes_restored_after(module):
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value, requires_grad in before:
                    tensor.copy_(value)
                    if tensor.grad_fn is not None and not tensor._is_view():  # noqa: SLF001
                        tensor.detach_()  # from the graph of the values written
                    if tensor.is_leaf:
                        tensor.requires_grad_(requires_grad)
    for name, parameter, old_version in versions:
        if version(parameter) != old_version and not is_lazy(parameter):
            raise NotPortableError(
                f"the forward writes to the parameter {name!r}, and its recording does not show it. Remedy: write with "
                "torch's functions"
            )


def note_written(module: nn.Module, paths: Iterable[str]) -> None:
    """Note parameters that a recorded forward writes to, for :func:`written_parameters`."""
    _WRITTEN.update((module.get_parameter(path), True) for path in paths)


def written_parameters(module: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters, by path, that forwards write to: noted ones, and weights of embeddings with a ``max_norm``.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> note_written(layer, ["bias"])
        >>> list(written_parameters(nn.Sequential(layer, nn.Embedding(2, 2, max_norm=1.0))))
        ['0.bias', '1.weight']
    """
    renormed = {
        id(item.weight) for item in module.modules() if isinstance(item, _EMBEDDINGS) and item.max_norm is not None
    }
    return {path: item for path, item in module.named_parameters() if id(item) in renormed or item in _WRITTEN}


def _is_writable(tensor: torch.Tensor) -> bool:
    """Whether torch can write to a tensor; not to an expanded tensor, with several elements in the same memory."""
    return all(stride or size == 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


@contextmanager
def caches_cleared_after(module: nn.Module) -> Iterator[None]:
    """Clear the caches of ``functools.lru_cache`` afterwards, if the forward has added entries: tensors of a recording.

    Caches on the classes of the modules below ``module``, and in the Python modules of the classes and beside, are
    found.

    Example:
        >>> with caches_cleared_after(nn.Linear(2, 2)):
        ...     pass
    """
    before = [(cache, cache.cache_info().misses) for cache in _caches(module)]
    try:
        yield
    finally:
        for cache, misses in before:
            if cache.cache_info().misses != misses:
                cache.cache_clear()


def _caches(module: nn.Module) -> Iterator[Any]:
    kinds = {cls for item in module.modules() for cls in type(item).__mro__}
    classes = [vars(cls) for cls in kinds if cls.__module__.partition(".")[0] not in {"torch", "builtins"}]
    functions = [item for table in classes for item in table.values() if isinstance(item, FunctionType)]
    homes = {id(item.__globals__): item.__globals__ for item in functions}
    beside = {
        id(vars(item)): vars(item)
        for home in homes.values()
        for item in tuple(home.values())
        if isinstance(item, ModuleType) and _package(item.__name__) == _package(str(home.get("__name__")))
    }
    tables = [dict(table) for table in (*classes, *(homes | beside).values())]
    yield from {id(value): value for table in tables for value in table.values() if type(value) is _CACHE}.values()


def _package(name: str) -> str:
    return name.partition(".")[0]


def seed_torch(seed: int) -> None:
    """Seed torch's generators in use. ``torch.manual_seed`` also formats the stack, for GPUs that are not in use."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)


@contextmanager
def generators_seeded(seed: int) -> Iterator[None]:
    """Seed the generators of torch, Python and NumPy; restore the generators' states afterwards.

    A forward may draw from each generator, so compared runs begin with the same seeds.

    Example:
        >>> with generators_seeded(1):
        ...     first = torch.rand(1)
        >>> with generators_seeded(1):
        ...     assert first == torch.rand(1)
    """
    numpy_random: Any = sys.modules.get("numpy.random")
    python_state = random.getstate()
    numpy_state = None if numpy_random is None else numpy_random.get_state(legacy=False)
    try:
        with torch.random.fork_rng():
            seed_torch(seed)
            random.seed(seed)
            if numpy_random is not None:
                numpy_random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python_state)
        if numpy_random is not None:
            numpy_random.set_state(numpy_state)
