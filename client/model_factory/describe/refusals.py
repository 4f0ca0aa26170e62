"""Refuses modules and tensors. Each error names the module or tensor, the fault and a remedy."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from model_factory.describe.assignments import attributes_restored_after
from model_factory.descriptor.weights import DTYPES
from model_factory.errors import NotPortableError

REFUSED_CLASSES: Mapping[str, str] = {
    "torch.nn.parallel.data_parallel.DataParallel": (
        "the class spreads a module over devices. Remedy: wrap the rebuilt module"
    ),
    "torch.nn.parallel.distributed.DistributedDataParallel": (
        "the class ties a module to processes. Remedy: wrap the rebuilt module"
    ),
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": (
        "the class ties a module to processes. Remedy: wrap the rebuilt module"
    ),
    "torch._dynamo.eval_frame.OptimizedModule": "the class holds compiled code. Remedy: compile the rebuilt module",
    "torch.jit._script.ScriptModule": "the module is TorchScript code. Remedy: return the module that was scripted",
}
"""Refused classes of torch, with reason and remedy. The keys are names, to import no class."""

_METHODS: Mapping[str, str] = {
    "get_extra_state": "keep the state in buffers",
    "set_extra_state": "keep the state in buffers",
    "state_dict": "keep the state in parameters and buffers",
    "_save_to_state_dict": "keep the state in parameters and buffers",
    "parameters": "set requires_grad",
    "named_parameters": "set requires_grad",
    "requires_grad_": "set requires_grad in the constructor",
    "zero_grad": "clear the gradients with the optimiser",
}
"""Methods of ``nn.Module`` for trainers, which no class may override, with the remedy."""

_HOOK_REMEDIES: Mapping[str, str] = {
    "torch.nn.utils.weight_norm": "use torch.nn.utils.parametrizations.weight_norm",
    "torch.nn.utils.spectral_norm": "use torch.nn.utils.parametrizations.spectral_norm",
    "torch.nn.utils.prune": "make the pruning permanent with torch.nn.utils.prune.remove",
}
_TENSOR_TYPES = frozenset(
    {torch.Tensor, nn.Parameter, nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer}
)
_HOOKS = tuple(name for name in sorted(nn.Module().__dict__) if name.endswith("_hooks"))


class Refusals:
    """Collects refusals by path of the module, or raises the first refusal.

    Example:
        >>> notes = {}
        >>> with Refusals(notes).noted("layer"):
        ...     raise NotPortableError("the layer has a hook")
        >>> notes
        {'layer': 'the layer has a hook'}
    """

    def __init__(self, notes: dict[str, str] | None) -> None:
        """Add reasons to ``notes``, or raise errors without ``notes``."""
        self._notes = notes

    @contextmanager
    def noted(self, path: str) -> Iterator[None]:
        """Note a refusal inside the block; the first reason of a path counts."""
        try:
            yield
        except NotPortableError as error:
            if self._notes is None:
                raise
            self._notes.setdefault(path, str(error))


def refuse_class(module: nn.Module, where: str) -> None:
    """Refuse wrappers with a dependence on the process.

    Raises:
        NotPortableError: the module is an instance of a refused class.
    """
    for cls in type(module).__mro__:
        reason = REFUSED_CLASSES.get(f"{cls.__module__}.{cls.__qualname__}")
        if reason is not None:
            raise NotPortableError(f"{where} is not portable: {reason}")


def refuse_methods(module: nn.Module, where: str) -> None:
    """Refuse a custom class with overrides of ``nn.Module``'s state methods, and a custom lazy class.

    Raises:
        NotPortableError: the class does; the rebuilt module would lack the method.
    """
    if isinstance(module, LazyModuleMixin):
        raise NotPortableError(
            f"{where} is a custom lazy module, and the rebuilt module would lack its methods. Remedy: use lazy modules "
            "of torch.nn as children, or pass the sizes to the constructor"
        )
    for name, remedy in _METHODS.items():
        if getattr(type(module), name) is not getattr(nn.Module, name) or name in module.__dict__:
            if name == "_save_to_state_dict" and _saves_as_torch(module):
                continue
            raise NotPortableError(
                f"{where} overrides {name}(), and the rebuilt module would lack the override. Remedy: {remedy}"
            )


def _saves_as_torch(module: nn.Module) -> bool:
    """Whether a module's own ``_save_to_state_dict`` has the result of torch's."""
    own, torchs = OrderedDict[str, Any](), OrderedDict[str, Any]()
    try:
        module._save_to_state_dict(own, "", keep_vars=True)
        nn.Module._save_to_state_dict(module, torchs, "", keep_vars=True)
    except Exception:  # noqa: BLE001  the operator's code may raise any error
        return False
    return _is_same_state(own, torchs)


def _is_same_state(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return list(one) == list(other) and all(one[name] is other[name] for name in one)


def _may_be_left_behind(module: nn.Module, table: str, hook: Any) -> bool:
    """Whether a hook for loading has no effect on a state dict of this model: such hooks convert older state dicts."""
    if table != "_load_state_dict_pre_hooks":
        return False
    try:
        state = module.state_dict(keep_vars=True)
        before = dict(state)
        with attributes_restored_after(module):
            hook(state, "", {}, True, [], [], [])
    except Exception:  # noqa: BLE001  the operator's code may raise any error
        return False
    return _is_same_state(before, state)


def refuse_slots(cls: type[nn.Module], where: str) -> None:
    """Refuse a class with attributes outside ``__dict__``, since these attributes would be lost.

    Raises:
        NotPortableError: the class has ``__slots__``.
    """
    for base in cls.__mro__:
        if vars(base).get("__slots__"):
            raise NotPortableError(
                f"{where}: {base.__name__} has __slots__, and attributes in slots would be lost. "
                "Remedy: remove __slots__"
            )


def refuse_hooks(module: nn.Module, where: str, restored: Collection[Any]) -> None:
    """Refuse hooks, except hooks ``restored`` by the rebuild.

    A hook that converts older state dicts is left behind.

    Raises:
        NotPortableError: the module has another hook.
    """
    for table in _HOOKS:
        for hook in getattr(module, table).values():
            if not any(hook is item for item in restored) and not _may_be_left_behind(module, table, hook):
                home = str(getattr(hook, "__module__", ""))
                remedy = _HOOK_REMEDIES.get(home, "register the hook on the rebuilt module")
                raise NotPortableError(
                    f"{where} has a hook in {table}, and the code of a hook is not sent. Remedy: {remedy}"
                )


def refuse_tensor(tensor: torch.Tensor, name: str, *, is_trained: bool = False) -> None:
    """Refuse a tensor with more than values, or with a dtype or layout unknown to weights files.

    With ``is_trained``, a gradient is no reason.

    Raises:
        NotPortableError: the tensor is refused.

    Example:
        >>> refuse_tensor(torch.eye(2).to_sparse(), "w")
        Traceback (most recent call last):
        model_factory.errors.NotPortableError: the tensor 'w' has the layout torch.sparse_coo. Remedy: call to_dense()
    """
    where = f"the tensor {name!r}"
    if type(tensor) not in _TENSOR_TYPES:
        kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
        raise NotPortableError(f"{where} is a {kind}. Remedy: store the values in a torch.Tensor")
    if tensor.layout is not torch.strided:
        raise NotPortableError(f"{where} has the layout {tensor.layout}. Remedy: call to_dense()")
    if tensor.dtype not in DTYPES:
        raise NotPortableError(
            f"{where} has the dtype {tensor.dtype}, which weights files cannot store. Remedy: use another dtype"
        )
    if not tensor.is_leaf:
        raise NotPortableError(f"{where} has an autograd history. Remedy: call detach()")
    if tensor.grad is not None and not is_trained:
        raise NotPortableError(f"{where} has a gradient. Remedy: call zero_grad() in the constructor")
    if tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None):
        raise NotPortableError(
            f"{where} has a hook, and the code of a hook is not sent. Remedy: register the hook on the rebuilt tensor"
        )


def refuse_shared_memory(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse different tensors over the same memory, since a rebuild would give each tensor memory of its own.

    Tensors side by side in a memory block are allowed; cuDNN places the weights of an RNN side by side.

    Raises:
        NotPortableError: two tensors overlap.
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
