"""Private names of torch. No other module of the client takes a private name from torch.

Torch may rename private names in any version. A check at import therefore names the missing name and torch's version,
instead of a later ``AttributeError`` from the middle of a build.

Other modules read private attributes of module instances (``module._parameters``). The check covers these attributes.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, MappingProxyType
from typing import Any, TypeVar

import torch
from torch.nn.utils import parametrizations, parametrize

SUPPORTED = "torch>=2.4,<2.14"
"""Tested versions of torch; the same text is in the package's metadata."""

PRIVATE_NAMES = (
    "torch._C._set_grad_enabled",
    "torch._C._get_tracing_state",
    "torch._C._set_tracing_state",
    "torch._subclasses.fake_tensor.is_fake",
    "torch.utils._python_dispatch._disable_current_modes",
    "torch._VF.einsum",
    "torch._assert_async",
    "torch.utils._pytree.register_pytree_node",
    "torch.utils._pytree.tree_flatten_with_path",
    "torch.utils._pytree.tree_leaves",
    "torch.utils._pytree.tree_map_only",
    "torch.utils._pytree.MappingKey",
    "torch.utils._python_dispatch.TorchDispatchMode",
    "torch.nn.modules.linear.NonDynamicallyQuantizableLinear",
    "torch.nn.utils.parametrizations._OrthMaps",
    "torch.nn.utils.parametrizations._Orthogonal",
    "torch.nn.utils.parametrizations._SpectralNorm",
    "torch.nn.utils.parametrizations._WeightNorm",
    "torch.nn.utils.parametrize._inject_new_class",
    "torch.nn.utils.parametrize._inject_property",
    "torch.nn.Module._register_load_state_dict_pre_hook",
    "torch.nn.RNNBase._init_flat_weights",
    "torch.nn.modules.lazy.LazyModuleMixin._infer_parameters",
    "torch.nn.modules.lazy.LazyModuleMixin._lazy_load_hook",
    *(
        f"torch.nn.Module().{table}"
        for table in (
            "_parameters _buffers _modules _non_persistent_buffers_set _forward_pre_hooks _load_state_dict_pre_hooks"
        ).split()
    ),
)
"""Names for the check; ``()`` is a call without arguments."""

_MISSING = object()
_Result = TypeVar("_Result")


def check_torch(package: Any = torch) -> None:
    """Check that torch has every private name that model-factory needs.

    Raises:
        ImportError: a name is missing; the message has the name, torch's version and the supported versions.
    """
    for name in PRIVATE_NAMES:
        if _find(package, name) is _MISSING:
            raise ImportError(
                f"torch {package.__version__} has no {name}, which model-factory needs. Remedy: install '{SUPPORTED}'",
                name="torch",
            )


def _find(package: Any, name: str) -> Any:
    found = package
    for part in name.split(".")[1:]:
        found = getattr(found, part.removesuffix("()"), _MISSING)
        if found is _MISSING:
            return found
        found = found() if part.endswith("()") else found
    return found


check_torch()

set_grad_enabled = torch._C._set_grad_enabled  # noqa: SLF001
"""Set the grad mode; ``torch.set_grad_enabled`` without the context manager, as ``torch.no_grad`` calls."""

is_fake: Any = torch._subclasses.fake_tensor.is_fake  # noqa: SLF001
"""Whether a tensor has sizes, but no values: a tensor of ``torch.export`` or of a recording."""


def outside_of_jit_trace(function: Callable[..., _Result], *args: Any) -> _Result:
    """Call a function; ``torch.jit.trace`` records nothing, and sizes are numbers, and not tensors of the trace."""
    if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return function(*args)
    with _jit_trace_paused():
        return function(*args)


@contextmanager
def _jit_trace_paused() -> Iterator[None]:
    kernel: Any = torch._C  # noqa: SLF001
    state = kernel._get_tracing_state()  # noqa: SLF001
    kernel._set_tracing_state(None)  # noqa: SLF001
    try:
        yield
    finally:
        kernel._set_tracing_state(state)  # noqa: SLF001


def uncompiled(reason: str) -> Any:
    """Return ``torch.compiler.disable`` with a reason, which torch shows from version 2.7 on."""
    disable: Any = torch.compiler.disable
    return disable(reason=reason) if "reason" in inspect.signature(disable).parameters else disable()


def is_uncompiled_call(code: CodeType) -> bool:
    """Whether code is torch's function that calls a function without compilation, as ``torch.jit.trace`` does."""
    compiler: Any = sys.modules.get("torch._dynamo.eval_frame")  # not imported here: the import takes a second
    return compiler is not None and code in compiler.DisableContext.__call__.__code__.co_consts


@contextmanager
def outside_of_traces() -> Iterator[None]:
    """Leave the trace of ``torch.jit.trace``, and the modes of ``torch.export`` that record steps on tensors."""
    disabled = torch.utils._python_dispatch._disable_current_modes()  # noqa: SLF001
    with _jit_trace_paused(), disabled:
        yield


einsum: Any = torch._VF.einsum  # type: ignore[attr-defined]  # noqa: SLF001
"""``torch.einsum`` with an order of contraction."""

assert_async: Any = torch._assert_async  # noqa: SLF001
"""Assert the value of a tensor, also as a part of a compiled graph."""

register_pytree_node = torch.utils._pytree.register_pytree_node  # noqa: SLF001
"""Have ``DistributedDataParallel`` and ``torch.func`` find the tensors inside a container."""

MappingKey: Any = torch.utils._pytree.MappingKey  # noqa: SLF001
"""Key of an item in a mapping, for messages of torch about one item."""

tree_leaves: Any = torch.utils._pytree.tree_leaves  # noqa: SLF001
"""Return the objects inside nested containers."""

tree_flatten_with_path: Any = torch.utils._pytree.tree_flatten_with_path  # noqa: SLF001
"""Return the objects inside nested containers with their places, and the containers."""

tree_map_only: Any = torch.utils._pytree.tree_map_only  # noqa: SLF001
"""Replace the objects of one class inside nested containers."""

TorchDispatchMode: Any = torch.utils._python_dispatch.TorchDispatchMode  # noqa: SLF001
"""Base class of a context that sees every step on tensors."""

inject_new_class: Any = parametrize._inject_new_class  # noqa: SLF001
"""Give a module a class of its own, as ``register_parametrization`` does."""

inject_property: Any = parametrize._inject_property  # noqa: SLF001
"""Give the class of a module the property of a parametrized tensor."""

WeightNorm: type[torch.nn.Module] = parametrizations._WeightNorm  # noqa: SLF001

SpectralNorm: type[torch.nn.Module] = parametrizations._SpectralNorm  # noqa: SLF001

ORTHOGONAL_MAPS: Any = parametrizations._OrthMaps  # noqa: SLF001
"""Enum of the maps of ``parametrizations.orthogonal``."""

PRIVATE_MODULES: Mapping[str, type[torch.nn.Module]] = MappingProxyType(
    {
        "nn.modules.linear.NonDynamicallyQuantizableLinear": torch.nn.modules.linear.NonDynamicallyQuantizableLinear,
        "nn.utils.parametrizations._WeightNorm": WeightNorm,
        "nn.utils.parametrizations._SpectralNorm": SpectralNorm,
        "nn.utils.parametrizations._Orthogonal": parametrizations._Orthogonal,  # noqa: SLF001
    }
)
"""Module classes without an export, which torch itself creates: the ``out_proj`` of attention, parametrizations."""
