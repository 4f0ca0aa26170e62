"""Every private name of torch in use by the server's export; checked when this module is imported.

Private names change between torch versions without notice. If a name is missing, the import fails and names the name
and the version of torch.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.amp.autocast_mode import autocast

from model_factory.program.torch_private import SUPPORTED

try:
    from torch import _assert as check_function
    from torch import _is_all_true
    from torch._dispatch.python import enable_python_dispatcher
    from torch._dynamo.source import ConstantSource
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensor,
        FakeTensorMode,
    )
    from torch._subclasses.fake_tensor import unset_fake_temporarily as without_fakes
    from torch.autograd.function import _SingleLevelFunction
    from torch.fx.experimental import _config as _symbolic_config
    from torch.fx.experimental.symbolic_shapes import (
        DimDynamic,
        GuardOnDataDependentSymNode,
        ShapeEnv,
        StatelessSymbolicContext,
        has_free_unbacked_symbols,
    )
    from torch.utils import _pytree as pytree
except ImportError as error:
    raise ImportError(f"torch {torch.__version__}: {error}. Remedy: install '{SUPPORTED}'") from error

__all__ = [
    "CHECKS",
    "ConstantSource",
    "DataDependentOutputException",
    "DimDynamic",
    "DynamicOutputShapeException",
    "FakeTensor",
    "FakeTensorMode",
    "GuardOnDataDependentSymNode",
    "ShapeEnv",
    "StatelessSymbolicContext",
    "check_function",
    "detach_op",
    "empty_op",
    "enable_python_dispatcher",
    "fake_log",
    "fake_tensors",
    "formula",
    "function_base",
    "grouped_op",
    "has_free_unbacked_symbols",
    "is_all_true",
    "lift_op",
    "memory_id",
    "pytree",
    "recorded_number",
    "recorded_size",
    "size_oblivious",
    "version",
    "wants_autocast",
    "without_fakes",
    "world_classes",
]

fake_tensors: Any = torch._subclasses
"""The module with the ``FakeTensor`` seen by libraries."""

fake_log: logging.Logger = torch._subclasses.fake_tensor.log
"""Receives errors of kernels on fake tensors, also where another way to run them succeeds."""

function_base: Any = _SingleLevelFunction
"""The base of ``torch.autograd.Function``, with the ``apply`` that every call of a function comes to."""

world_classes: list[Any] = [
    type(item) for item in [getattr(torch.distributed, "GroupMember", None)] if item is not None
]
"""The class with the group of all processes as ``WORLD``; none in builds of torch without ``torch.distributed``."""

lift_op = torch.ops.aten.lift_fresh.default
"""Called by older constructors such as ``torch.FloatTensor([1, 2])``, and by ``torch.from_numpy``, with the tensor."""

empty_op = torch.ops.aten.empty.memory_format
"""Called by older constructors with sizes, such as ``torch.FloatTensor(2, 3)``."""

detach_op = torch.ops.aten.detach.default
"""Called by ``torch.autograd.Variable``."""

grouped_op = getattr(getattr(torch.ops.aten, "_grouped_mm", None), "default", None)
"""Called by ``torch._grouped_mm``; None in older versions of torch."""

is_all_true = (_is_all_true, torch.Tensor._is_all_true)
"""Private forms of ``torch.all``, called by ``torch.distributions`` and ``torch._check_tensor_all``."""

CHECKS: Mapping[Any, int] = {
    check_function: 1,
    torch._check: 1,
    torch._check_with: 2,
    torch._check_tensor_all: 1,
    torch._check_tensor_all_with: 2,
}
"""Functions that check a condition, with the position of the message."""

SymbolicNumber = torch.SymInt | torch.SymFloat | torch.SymBool

_OVERRIDDEN = ("evaluate_expr", "guard_or_defer_runtime_assert", "_get_user_frame")

_ATTRIBUTES = (
    *((ShapeEnv, name) for name in (*_OVERRIDDEN, "create_symbol", "create_symintnode")),
    *((torch.Tensor, name) for name in ("_is_all_true", "_version", "_is_view", "_backward_hooks")),
    (torch.UntypedStorage, "_cdata"),
    *((nn.Module(), name) for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")),
    (FakeTensorMode, "from_tensor"),
    (fake_tensors, "FakeTensor"),
    *((item, "WORLD") for item in world_classes),
    (_symbolic_config, "backed_size_oblivious"),
    *((pytree, name) for name in ("tree_flatten", "tree_leaves", "is_structseq_instance")),
)
"""Objects and their required attributes."""


def _check() -> None:
    for owner, name in _ATTRIBUTES:
        if not hasattr(owner, name):
            raise ImportError(
                f"torch {torch.__version__}: {owner!r} has no attribute {name!r}. Remedy: install '{SUPPORTED}'"
            )


_check()


def _note_wanted_autocast() -> None:
    """Let each autocast region note the wanted state, which torch changes for a missing GPU.

    A decorator makes a region when a plug-in is imported, so the replacement stays from the import of this module on.
    """
    owner: Any = autocast
    make: Any = owner.__init__

    @functools.wraps(make)
    def noting(
        region: Any, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: bool | None = None
    ) -> None:
        region.is_wanted = enabled
        make(region, device_type, dtype, enabled, cache_enabled)

    owner.__init__ = noting


_note_wanted_autocast()


def wants_autocast(region: Any) -> bool:
    """Whether a region was made to turn autocast on, on any kind of device.

    Example:
        >>> wants_autocast(torch.autocast("cpu")), wants_autocast(torch.autocast("cuda", enabled=False))
        (True, False)
    """
    # A region from before the import of this module has the wanted state of the CPU only.
    return bool(getattr(region, "is_wanted", region._enabled or region.device != "cpu"))


def size_oblivious() -> AbstractContextManager[None]:
    """Return a context in which an op's broadcasting does not distinguish size 1 from other symbolic sizes."""
    config: Any = _symbolic_config  # a module whose type torch does not declare
    found: AbstractContextManager[None] = config.patch(backed_size_oblivious=True)
    return found


def formula(number: SymbolicNumber) -> Any:
    """Return the sympy expression of a symbolic number."""
    return number.node.expr


def recorded_size(size: int | torch.SymInt) -> int:
    """Return the value of a size, symbolic or not, in the recorded call.

    Example:
        >>> recorded_size(3)
        3
    """
    return size.node.hint if isinstance(size, torch.SymInt) else size


def recorded_number(number: SymbolicNumber) -> float:
    """Return the value of a symbolic number in the recorded call; 0 for a number from a tensor's values."""
    value = None if has_free_unbacked_symbols(number) else number.node.hint
    return 0 if value is None else value


def version(tensor: torch.Tensor) -> int:
    """Return how often a tensor has been written to in place.

    Example:
        >>> tensor = torch.zeros(2)
        >>> version(tensor), version(tensor.add_(1))
        (0, 1)
    """
    return tensor._version


def memory_id(tensor: torch.Tensor) -> int:
    """Return a number, equal for tensors over the same memory.

    Example:
        >>> tensor = torch.zeros(2)
        >>> memory_id(tensor) == memory_id(tensor[1:])
        True
    """
    storage: Any = tensor.untyped_storage()
    return int(storage._cdata)
