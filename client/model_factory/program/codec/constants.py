"""Constants of programs: tensors of fixed values, as bytes."""

from __future__ import annotations

import math

import torch

from model_factory.errors import FormatError
from model_factory.limits import MAX_CONSTANT_BYTES, MAX_RANK, MAX_RESULT_ELEMENTS
from model_factory.program.ir import Constant
from model_factory.program.torch_names import torch_dtype, torch_name


def constant_step(tensor: torch.Tensor, out: str) -> Constant:
    r"""Return the step that makes a tensor with the values of ``tensor``.

    Example:
        >>> constant_step(torch.tensor([1, 2], dtype=torch.int8), "v0").data
        b'\x01\x02'
    """
    flat = tensor.detach().contiguous().view(-1)
    data = bytes(flat.view(torch.uint8).tolist())
    return Constant(dtype=torch_name(tensor.dtype), shape=tuple(tensor.shape), data=data, out=out)


def constant_tensor(step: Constant) -> torch.Tensor:
    """Return the tensor of a step.

    Raises:
        FormatError: the number of bytes does not fit the sizes and the dtype, or is too large.

    Example:
        >>> constant_tensor(constant_step(torch.tensor([0.5, -0.0]), "v0"))
        tensor([0.5000, -0.0000])
    """
    dtype, shape = torch_dtype(step.dtype), step.shape
    if len(shape) > MAX_RANK or any(size < 0 for size in shape):
        raise FormatError(f"a constant of a program has the sizes {shape}")
    if len(step.data) > MAX_CONSTANT_BYTES or len(step.data) != math.prod(shape) * dtype.itemsize:
        raise FormatError(
            f"a constant of a program has {len(step.data)} bytes for the sizes {shape} and the dtype {dtype}; at most "
            f"{MAX_CONSTANT_BYTES} bytes are allowed"
        )
    if not step.data:
        if math.prod(max(1, size) for size in shape) > MAX_RESULT_ELEMENTS:  # strides are products of the sizes
            raise FormatError(f"a constant of a program has the sizes {shape}")
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(bytearray(step.data), dtype=torch.uint8)
    if dtype is torch.bool:
        return flat.ne(0).view(shape)  # other bytes than 0 and 1 are no truth values
    return flat.view(dtype).view(shape)
