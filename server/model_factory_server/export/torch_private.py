"""Every private name of torch in use by the server's export; checked when this module is imported.

Private names change between torch versions without notice. If a name is missing, the import fails and names the name
and the version of torch.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from model_factory.program.torch_private import SUPPORTED

try:
    from torch import _is_all_true as is_all_true  # called by torch.distributions
    from torch._dispatch.python import enable_python_dispatcher
    from torch._dynamo.source import ConstantSource
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensor,
        FakeTensorMode,
    )
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
    "ConstantSource",
    "DataDependentOutputException",
    "DimDynamic",
    "DynamicOutputShapeException",
    "FakeTensor",
    "FakeTensorMode",
    "GuardOnDataDependentSymNode",
    "ShapeEnv",
    "StatelessSymbolicContext",
    "enable_python_dispatcher",
    "fake_tensors",
    "formula",
    "has_free_unbacked_symbols",
    "is_all_true",
    "memory_id",
    "pytree",
    "recorded_size",
    "size_oblivious",
    "version",
]

fake_tensors: Any = torch._subclasses
"""The module with the ``FakeTensor`` seen by libraries."""

SymbolicNumber = torch.SymInt | torch.SymFloat | torch.SymBool

_ATTRIBUTES = (
    *((ShapeEnv, name) for name in ("create_symbol", "create_symintnode", "evaluate_expr", "_get_user_frame")),
    *((torch.Tensor, name) for name in ("_version", "_is_view", "_backward_hooks")),
    (torch.UntypedStorage, "_cdata"),
    *((nn.Module(), name) for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")),
    (FakeTensorMode, "from_tensor"),
    (fake_tensors, "FakeTensor"),
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
