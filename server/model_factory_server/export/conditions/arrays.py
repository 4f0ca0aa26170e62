"""NumPy arrays among the arguments of a recorded forward: sizes and a dtype without values.

On the trainer an array is a tensor that shares the array's memory. A forward makes the tensor by ``torch.from_numpy``,
``torch.as_tensor``, ``torch.asarray`` or ``torch.tensor``. NumPy's own computations are no steps of a program.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import tensor as make_tensor  # the attribute of torch is replaced during a recording

from model_factory.errors import NotPortableError
from model_factory.program.torch_names import torch_name

_SIZES = frozenset(("shape", "ndim", "size", "dtype", "__class__", "__len__"))


class _Unknown:
    """A number of an array, which only the trainer knows."""

    def __float__(self) -> float:
        raise _computes("numbers")

    __int__ = __index__ = __bool__ = __complex__ = __float__


class TracedArray(np.ndarray):
    """An array argument during a recording; NumPy's own functions find an object without a value inside."""

    def __new__(cls, tensor: torch.Tensor) -> TracedArray:
        """Make an array with the sizes and the dtype of a fake tensor."""
        array = np.ndarray.__new__(
            cls, 1, object
        )  # the owner of its memory, so that a plain view has this object as base
        np.ndarray.fill(array, _Unknown())
        object.__getattribute__(array, "__dict__")["tensor"] = tensor
        return array

    def __getattribute__(self, name: str) -> Any:
        if name not in _SIZES:
            raise _computes(name)
        if name == "__class__":
            return TracedArray
        tensor = tensor_of(self)
        match name:
            case "dtype":
                return np.dtype(torch_name(tensor.dtype))
            case "shape":
                return tuple(tensor.shape)
            case "ndim":
                return tensor.dim()
            case "size":
                return tensor.numel()
        return functools.partial(len, tensor)

    def __len__(self) -> int:
        return len(tensor_of(self))


def _refuse(name: str) -> Callable[..., Any]:
    def refuse(_array: TracedArray, *_args: Any, **_kwargs: Any) -> Any:
        raise _computes(name)

    return refuse


for _name in (
    "array_ufunc array_function getitem setitem iter contains bool int float complex index repr str format eq ne lt le "
    "gt ge hash"
).split():
    setattr(TracedArray, f"__{_name}__", _refuse(f"__{_name}__"))


def tensor_of(array: TracedArray) -> torch.Tensor:
    """Return the fake tensor of an array.

    Example:
        >>> tensor_of(TracedArray(torch.ones(2)))
        tensor([1., 1.])
    """
    tensor: torch.Tensor = object.__getattribute__(array, "__dict__")["tensor"]
    return tensor


def converting(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``torch.from_numpy`` or a relative that takes traced arrays, too.

    Example:
        >>> converting(torch.as_tensor)(TracedArray(torch.ones(2)), dtype=torch.float64)
        tensor([1., 1.], dtype=torch.float64)
    """

    @functools.wraps(original)
    def convert(*args: Any, **kwargs: Any) -> Any:
        if not args or type(args[0]) is not TracedArray:
            if args and isinstance(args[0], np.ndarray) and type(args[0].base) is TracedArray:
                raise _computes("np.asarray")
            return original(*args, **kwargs)
        changes = dict(zip(("dtype", "device"), args[1:], strict=False)) | kwargs
        unknown = set(changes) - {"dtype", "device", "copy"}
        if unknown:
            raise NotPortableError(
                f"the forward makes a tensor of a NumPy array with {min(unknown)}. Remedy: leave the option out"
            )
        tensor = tensor_of(args[0]).detach()  # shares the memory, and gets no gradient
        if original is make_tensor or changes.pop("copy", None):
            tensor = tensor.clone()
        changes = {name: item for name, item in changes.items() if item is not None}
        return tensor.to(**changes) if changes else tensor

    return convert


def _computes(name: str) -> NotPortableError:
    return NotPortableError(
        f"the forward computes with a NumPy array ({name}), and a program computes with tensors. Remedy: make a tensor "
        "first, with torch.from_numpy(array) or torch.as_tensor(array)"
    )
