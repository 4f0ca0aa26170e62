"""Sizes of the results of torch's own modules, by formula.

Running these modules on symbols costs seconds. A wrong size is refused by the module itself when the program runs. An
RNN on symbols would also be unrolled, and so recorded for one length only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from model_factory.descriptor.stock import is_stock
from model_factory_server.export.torch_private import formula

_SAME_SIZES = (
    *(nn.TransformerEncoder, nn.TransformerDecoder, nn.Identity),
    *(nn.LayerNorm, nn.RMSNorm, nn.GroupNorm),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
    *(nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.SELU, nn.LeakyReLU, nn.PReLU, nn.Softplus),
    *(nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.Hardsigmoid, nn.Softmax, nn.LogSoftmax),
)
_KEEPS_LEADING = (nn.Linear, nn.Bilinear, nn.Embedding, nn.MultiheadAttention)
_CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_TRANSPOSED = {nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 2, nn.ConvTranspose3d: 3}
_MAX_POOLS = {nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3}

_FIRST = ("input", "src", "tgt")  # names of the argument that determines the result's sizes

_Sizes = Sequence[Any]


def result_by_rule(module: nn.Module, args: Sequence[Any], kwargs: Any) -> Any:
    """Return a fake result of a torch module, or None without a formula for the module.

    Example:
        >>> result_by_rule(nn.Linear(2, 5), [torch.zeros(3, 2)], {}).shape
        torch.Size([3, 5])
    """
    first: Any = args[0] if args else next((kwargs[name] for name in _FIRST if name in kwargs), None)
    if not isinstance(first, torch.Tensor):
        return None
    if type(module) is nn.LSTMCell and first.dim():
        return tuple(first.new_empty((*first.shape[:-1], module.hidden_size)) for _ in range(2))
    if type(module) in {nn.RNN, nn.GRU, nn.LSTM}:
        return _recurrent(module, first)
    if type(module) is nn.Embedding:
        return module.weight.new_empty((*first.shape, module.embedding_dim))
    if type(module) in _TRANSPOSED and (len(args) > 1 or len(kwargs) > (not args)):
        return None  # output_size is given
    sizes = _after(module, first.shape)
    return None if sizes is None else first.new_empty(sizes)


def keeps_size(module: nn.Module, axis: int, tensor: torch.Tensor, args: Sequence[Any], kwargs: Any) -> bool:
    """Whether a size of a torch module's result equals the input's, for every layer of the same kind."""
    if isinstance(module, _SAME_SIZES) and type(module) is not nn.Identity:
        return True
    first: Any = args[0] if args else next((kwargs[name] for name in _FIRST if name in kwargs), None)
    leading = tensor.dim() - 1 if isinstance(module, _KEEPS_LEADING) else 1
    if not isinstance(first, torch.Tensor) or axis >= min(leading, first.dim()):
        return False
    size, wanted = tensor.shape[axis], first.shape[axis]
    if isinstance(size, torch.SymInt) and isinstance(wanted, torch.SymInt):
        return bool(formula(size) == formula(wanted))
    return isinstance(module, _KEEPS_LEADING) and type(size) is type(wanted) and size == wanted


def _recurrent(module: Any, first: torch.Tensor) -> Any:
    if first.dim() not in {2, 3}:
        return None  # the module refuses the input
    directions = 2 if module.bidirectional else 1
    out = module.proj_size or module.hidden_size
    batch = () if first.dim() == 2 else (first.shape[0 if module.batch_first else 1],)
    states = [first.new_empty((directions * module.num_layers, *batch, size)) for size in (out, module.hidden_size)]
    outputs = first.new_empty((*first.shape[:-1], directions * out))
    return (outputs, tuple(states) if type(module) is nn.LSTM else states[0])


def _after(module: nn.Module, sizes: _Sizes) -> _Sizes | None:  # noqa: C901  one arm per kind of module
    kind = type(module)
    if isinstance(module, _SAME_SIZES):
        return sizes
    if isinstance(module, nn.Linear) and kind is nn.Linear and sizes:
        return (*sizes[:-1], module.out_features)
    if isinstance(module, nn.RNNCellBase) and kind in {nn.RNNCell, nn.GRUCell} and sizes:
        return (*sizes[:-1], module.hidden_size)
    if (kind in _CONVOLUTIONS or kind in _TRANSPOSED) and not module.weight.is_contiguous():  # type: ignore[operator]
        return None  # the result may have another memory order, too
    if kind in _CONVOLUTIONS and len(sizes) > _CONVOLUTIONS[kind]:
        return _after_convolution(module, sizes, _CONVOLUTIONS[kind])
    if kind in _TRANSPOSED and len(sizes) > _TRANSPOSED[kind]:
        return _after_transposed(module, sizes, _TRANSPOSED[kind])
    if kind in _MAX_POOLS and len(sizes) > _MAX_POOLS[kind]:
        return _after_max_pool(module, sizes, _MAX_POOLS[kind])
    if isinstance(module, nn.Sequential) and kind is nn.Sequential:
        for child in module:
            known = _after(child, sizes) if is_stock(child) else None
            if known is None:
                return None
            sizes = known
        return sizes
    return None


def _after_convolution(module: Any, sizes: _Sizes, axes: int) -> _Sizes:
    spatial = sizes[-axes:]
    if module.padding != "same":
        padding = (0,) * axes if module.padding == "valid" else module.padding
        spatial = [
            _slid(spatial[axis], module.kernel_size[axis], module.stride[axis], padding[axis], module.dilation[axis])
            for axis in range(axes)
        ]
    return (*sizes[: -axes - 1], module.out_channels, *spatial)


def _after_transposed(module: Any, sizes: _Sizes, axes: int) -> _Sizes:
    spatial = [
        (sizes[axis - axes] - 1) * module.stride[axis]
        - 2 * module.padding[axis]
        + module.dilation[axis] * (module.kernel_size[axis] - 1)
        + module.output_padding[axis]
        + 1
        for axis in range(axes)
    ]
    return (*sizes[: -axes - 1], module.out_channels, *spatial)


def _after_max_pool(module: Any, sizes: _Sizes, axes: int) -> _Sizes | None:
    if module.ceil_mode or module.return_indices:
        return None
    kernel, stride, padding, dilation = (
        _of_each(value, axes) for value in (module.kernel_size, module.stride, module.padding, module.dilation)
    )
    spatial = [
        _slid(sizes[axis - axes], kernel[axis], stride[axis], padding[axis], dilation[axis]) for axis in range(axes)
    ]
    return (*sizes[:-axes], *spatial)


def _of_each(value: int | Sequence[int], axes: int) -> Sequence[int]:
    """The number of each axis: a layer keeps a list as given, and one number holds for all axes."""
    numbers = [value] if isinstance(value, int) else value
    return numbers if len(numbers) == axes else (*numbers,) * axes


def _slid(size: Any, kernel: int, stride: int, padding: int, dilation: int) -> Any:
    """The number of positions of a window: the formula in the documentation of ``nn.Conv2d``."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
