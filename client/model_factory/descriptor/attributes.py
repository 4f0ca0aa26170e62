"""Attributes: the portable values of a module's ``__dict__``.

An attribute has three forms: the live value; the described value in a ``ModuleNode`` (plain data, ``TorchConst``,
``StockValue``, ``TensorRef``); and JSON. In JSON, scalars and lists are written directly, and every other value as a
mapping with one key.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from model_factory.descriptor.tree import StockValue, TensorRef
from model_factory.documents import expect_type, mapping, named_float
from model_factory.errors import FormatError
from model_factory.limits import MAX_INTEGER
from model_factory.program.ir import TorchConst
from model_factory.program.ops import OPS
from model_factory.program.torch_names import torch_const, torch_name
from model_factory.program.torch_private import ORTHOGONAL_MAPS

_FUNCTIONS = """celu elu elu_ gelu glu gumbel_softmax hardshrink hardsigmoid hardswish hardtanh hardtanh_ leaky_relu
leaky_relu_ log_softmax logsigmoid mish normalize relu relu6 relu_ rrelu rrelu_ selu selu_ sigmoid silu softmax softmin
softplus softshrink softsign tanh tanhshrink threshold threshold_
alpha_dropout dropout dropout1d dropout2d dropout3d feature_alpha_dropout
cosine_similarity pairwise_distance
binary_cross_entropy binary_cross_entropy_with_logits cross_entropy huber_loss kl_div l1_loss mse_loss nll_loss
smooth_l1_loss soft_margin_loss"""
_SPECIAL = """digamma entr erf erfc erfcx erfinv exp2 expit expm1 gammaln i0 i0e i1 i1e log1p log_ndtr log_softmax logit
ndtr ndtri psi round sinc softmax"""
_ACTIVATIONS = "relu gelu silu elu selu celu leaky_relu mish hardswish softplus sigmoid tanh"

_NAMESPACES = (("torch.nn.functional", _FUNCTIONS), ("torch.special", _SPECIAL), ("torch", _ACTIVATIONS))

STOCK_VALUES: Mapping[str, Any] = MappingProxyType(
    {
        f"{prefix}.{name}": OPS[f"{prefix}.{name}"]
        for prefix, names in _NAMESPACES
        for name in names.split()
        if f"{prefix}.{name}" in OPS
    }
    | {f"torch.nn.utils.parametrizations._OrthMaps.{item.name}": item for item in ORTHOGONAL_MAPS}
)
"""Functions and constants by name, for attributes like the activation of ``nn.TransformerEncoderLayer``.

Activations, distances and losses only: a module calls an attribute without the checks of a program's ops.
"""

_NAMES: Mapping[int, str] = {id(value): name for name, value in reversed(list(STOCK_VALUES.items()))}

_SCALARS = frozenset({bool, int, float, str, type(None)})


def settable(cls: type[nn.Module], taken: Mapping[str, Any] | frozenset[str], name: str) -> bool:
    """Whether plain data may be set as the attribute ``name`` of a module, without hiding a member of the class.

    ``taken`` has the attributes of a bare instance.
    """
    return name not in taken and _is_free(cls, name)  # type: ignore[arg-type]  # mypy: a class is hashable


@functools.lru_cache(maxsize=4096)
def _is_free(cls: type[nn.Module], name: str) -> bool:
    if name.startswith("__") or callable(getattr(cls, name, None)):
        return False
    return name == "_version" or not hasattr(nn.Module, name)


def described(value: Any) -> Any:
    """Return the described form of a live value, as a copy.

    Raises:
        FormatError: the value is not portable. Types are exact: an instance of a subclass is not portable.

    Example:
        >>> described({"dtype": torch.float32, "act": torch.relu})
        {'dtype': TorchConst(name='float32'), 'act': StockValue(name='torch.relu')}
    """
    try:
        return _described(value)
    except RecursionError:
        raise FormatError("the value contains itself, or is nested too deeply") from None


def _described(value: Any) -> Any:
    kind = type(value)
    if isinstance(value, np.generic):  # treated as the plain number
        value = value.item()
        kind = type(value)
    if kind in _SCALARS:
        _check_scalar(value)
        return value
    if kind is list or kind is tuple:
        return kind([_described(item) for item in value])
    if kind is torch.Size:
        for size in value:
            _check_scalar(size)
        return value
    if kind is dict:
        return {_described_key(key): _described(item) for key, item in value.items()}
    if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
        torch_const(torch_name(value))
        return TorchConst(torch_name(value))
    name = _NAMES.get(id(value))
    if name is None:
        raise FormatError(f"a {kind.__module__}.{kind.__qualname__} is not plain data")
    return StockValue(name)


def _described_key(key: Any) -> Any:
    if type(key) not in _SCALARS:
        raise FormatError(f"a mapping with a {type(key).__name__} key is not plain data")
    return _described(key)


def _check_scalar(value: Any) -> None:
    if type(value) is int and not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise FormatError(f"an integer of {value.bit_length()} bits; allowed: -{MAX_INTEGER} to {MAX_INTEGER}")
    if type(value) is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise FormatError(f"{value!r} cannot be written in UTF-8") from None


def live(value: Any) -> Any:
    """Return the live value of a described value, with new containers.

    Raises:
        FormatError: the value names a constant or function outside of the closed tables.

    Example:
        >>> live([TorchConst("float16"), 2])
        [torch.float16, 2]
    """
    kind = type(value)
    if kind in _SCALARS or kind is torch.Size:
        return value
    if kind is list or kind is tuple:
        return kind([live(item) for item in value])
    if kind is dict:
        return {key: live(item) for key, item in value.items()}
    if kind is TorchConst:
        return torch_const(value.name)
    if kind is StockValue and value.name in STOCK_VALUES:
        return STOCK_VALUES[value.name]
    raise FormatError(f"{value!r} is not a value for an attribute")


def encode_attribute(value: Any) -> Any:
    """Write a described value as JSON data."""
    kind = type(value)
    if kind is float and not math.isfinite(value):
        return {"float": repr(value)}
    if kind is list:
        return [encode_attribute(item) for item in value]
    if kind is tuple:
        return {"tuple": [encode_attribute(item) for item in value]}
    if kind is torch.Size:
        return {"size": list(value)}
    if kind is dict:
        return {"dict": [[encode_attribute(key), encode_attribute(item)] for key, item in value.items()]}
    if kind is TorchConst:
        return {"torch": value.name}
    if kind is StockValue:
        return {"stock": value.name}
    if kind is TensorRef:
        return {"tensor": value.index}
    return value


def decode_attribute(data: Any) -> Any:
    """The inverse of :func:`encode_attribute`.

    Raises:
        FormatError: the data is malformed.
    """
    if type(data) in _SCALARS:
        _check_scalar(data)
        return data
    if type(data) is list:
        return [decode_attribute(item) for item in data]
    if type(data) is not dict or len(data) != 1:
        raise FormatError("an attribute must be a scalar, a list or a mapping with one key")
    ((kind, body),) = data.items()
    decode = _DECODERS.get(kind)
    if decode is None:
        raise FormatError(f"unknown kind of attribute {kind!r}")
    return decode(body)


def _decode_size(body: Any) -> torch.Size:
    sizes = [expect_type(size, int) for size in expect_type(body, list)]
    for size in sizes:
        _check_scalar(size)
    return torch.Size(sizes)


def _decode_dict(body: Any) -> dict[Any, Any]:
    pairs = ((_decode_key(key), decode_attribute(item)) for key, item in expect_type(body, list))
    return mapping(pairs, "a key of an attribute")


def _decode_key(data: Any) -> Any:
    key = decode_attribute(data)
    if type(key) not in _SCALARS:
        raise FormatError(f"a {type(key).__name__} is not the key of an attribute")
    return key


_DECODERS: Mapping[str, Callable[[Any], Any]] = {
    "float": named_float,
    "tuple": lambda body: tuple([decode_attribute(item) for item in expect_type(body, list)]),
    "size": _decode_size,
    "dict": _decode_dict,
    "torch": lambda body: TorchConst(expect_type(body, str)),
    "stock": lambda body: StockValue(expect_type(body, str)),
    "tensor": lambda body: TensorRef(expect_type(body, int)),
}
