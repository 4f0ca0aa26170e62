"""What cannot travel, refused by name: each message names the module or tensor, the thing and the remedy."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from model_factory.descriptor.weights import DTYPES
from model_factory.errors import NotPortableError

REFUSED_CLASSES: Mapping[str, str] = {
    "torch.nn.parallel.data_parallel.DataParallel": "it spreads a module over devices: wrap the rebuilt module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "it ties a module to processes: wrap the rebuilt module",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": (
        "it ties a module to processes: wrap the rebuilt module"
    ),
    "torch._dynamo.eval_frame.OptimizedModule": "it holds compiled code: compile the rebuilt module",
    "torch.jit._script.ScriptModule": "it is TorchScript code: give the module it was made from",
}
"""Classes of torch's own that are refused -> why, and what to do. By name, so that none of them is imported."""

_METHODS: Mapping[str, str] = {
    "get_extra_state": "keep the state in buffers",
    "set_extra_state": "keep the state in buffers",
    "state_dict": "keep the state in parameters and buffers",
    "_save_to_state_dict": "keep the state in parameters and buffers",
    "parameters": "set requires_grad",
    "named_parameters": "set requires_grad",
    "requires_grad_": "set requires_grad in the constructor",
    "zero_grad": "let the optimiser clear the gradients",
}
"""Methods that a trainer calls, and that would do something else after the rebuild -> what to do instead."""

_HOOK_REMEDIES: Mapping[str, str] = {
    "torch.nn.utils.weight_norm": "use torch.nn.utils.parametrizations.weight_norm",
    "torch.nn.utils.spectral_norm": "use torch.nn.utils.parametrizations.spectral_norm",
    "torch.nn.utils.prune": "make the pruning permanent with torch.nn.utils.prune.remove",
}
_TENSOR_TYPES = frozenset(
    {torch.Tensor, nn.Parameter, nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer}
)
_HOOKS = tuple(name for name in sorted(nn.Module().__dict__) if name.endswith("_hooks"))


def refuse_class(module: nn.Module, where: str) -> None:
    """Refuse wrappers that make no sense elsewhere.

    Raises:
        NotPortableError: it is one.
    """
    for cls in type(module).__mro__:
        reason = REFUSED_CLASSES.get(f"{cls.__module__}.{cls.__qualname__}")
        if reason is not None:
            raise NotPortableError(f"{where} cannot travel; {reason}")


def refuse_methods(module: nn.Module, where: str) -> None:
    """Refuse a class of someone's own that changes what ``nn.Module`` does with state, or is lazy.

    Raises:
        NotPortableError: it does; its forward alone would travel.
    """
    if isinstance(module, LazyModuleMixin):
        raise NotPortableError(
            f"{where} is a lazy module of its own, and methods do not travel. Remedy: have lazy modules of torch.nn as "
            "children, or give it its sizes"
        )
    for name, remedy in _METHODS.items():
        if getattr(type(module), name) is not getattr(nn.Module, name) or name in module.__dict__:
            raise NotPortableError(f"{where} has a {name}() of its own, and methods do not travel. Remedy: {remedy}")


def refuse_slots(cls: type[nn.Module], where: str) -> None:
    """Refuse a class that keeps attributes outside ``__dict__``: they would be lost.

    Raises:
        NotPortableError: it does.
    """
    for base in cls.__mro__:
        if vars(base).get("__slots__"):
            raise NotPortableError(f"{where}: {base.__name__} has __slots__. Remedy: remove them")


def refuse_hooks(module: nn.Module, where: str, kept: Collection[Any]) -> None:
    """Refuse hooks, those ``kept`` aside, which the rebuild makes again.

    Raises:
        NotPortableError: there is another one.
    """
    for table in _HOOKS:
        for hook in getattr(module, table).values():
            if not any(hook is item for item in kept):
                home = str(getattr(hook, "__module__", ""))
                remedy = _HOOK_REMEDIES.get(home, "register the hook on the rebuilt module")
                raise NotPortableError(f"{where} has a hook in {table}, and hooks are code. Remedy: {remedy}")


def refuse_tensor(tensor: torch.Tensor, name: str) -> None:
    """Refuse a tensor that is more than values.

    Raises:
        NotPortableError: it is.
    """
    what = f"the tensor {name!r}"
    if type(tensor) not in _TENSOR_TYPES:
        kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
        raise NotPortableError(f"{what} is a {kind}. Remedy: keep its values in a torch.Tensor")
    if tensor.layout is not torch.strided:
        raise NotPortableError(f"{what} has the layout {tensor.layout}. Remedy: call to_dense()")
    if tensor.dtype not in DTYPES:
        raise NotPortableError(f"{what} has the {tensor.dtype}, which weights files lack. Remedy: keep another dtype")
    if not tensor.is_leaf:
        raise NotPortableError(f"{what} has an autograd history. Remedy: call detach()")
    if tensor.grad is not None:
        raise NotPortableError(f"{what} has a gradient already. Remedy: call zero_grad() in the constructor")
    if tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None):
        raise NotPortableError(f"{what} has a hook, and hooks are code. Remedy: register it on the rebuilt tensor")


def refuse_shared_memory(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse different tensors over the same memory: apart, an update of one would no longer be one of the other.

    Tensors side by side in one memory block, as cuDNN wants the weights of an RNN, are fine.

    Raises:
        NotPortableError: two of them overlap.
    """
    blocks: dict[int, list[tuple[int, int, str]]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            start = int(tensor.storage_offset()) * tensor.itemsize
            span = (start, start + int(last + 1) * tensor.itemsize, name)
            blocks.setdefault(tensor.untyped_storage()._cdata, []).append(span)
    for spans in blocks.values():
        spans.sort()
        for (_, end, first), (start, _, second) in itertools.pairwise(spans):
            if start < end:
                raise NotPortableError(
                    f"the tensors {first!r} and {second!r} are two views of the same memory. Remedy: assign the same "
                    "tensor object to both names, or clone() one of them"
                )
