"""Arguments with parts: how an object is taken apart into values with keys, and made again of other values.

A call signature describes the parts, so tensors in records, named tuples and objects of public packages are inputs of a
program. The classes of tensordict and omegaconf are found only if the caller has imported the package.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from model_factory.errors import CallSignatureError
from model_factory.program.runtime.named_results import Record, RecordObject, RecordTuple

LISTED = ("list", "tuple", "list_config")
"""Kinds whose parts have no keys."""

NAMED = ("dict", "named_tuple", "dataclass", "record", "dict_config", "tensor_dict")
"""Kinds whose parts have texts as keys."""

CLOSED = ("list_config", "dict_config", "tensor_dict")
"""Kinds that check their parts: an object other than plain data cannot be put in the place of a part."""

_PACKAGES = {"list_config": "omegaconf", "dict_config": "omegaconf", "tensor_dict": "tensordict"}


class ArraySizes(NamedTuple):
    """The sizes and the dtype of a NumPy array, in the place of the array."""

    tensor: torch.Tensor
    """A tensor of the meta device."""


class Parts(NamedTuple):
    """An object, taken apart."""

    kind: str
    entries: Sequence[tuple[Any, Any]]
    """Key and value of each part, in order."""
    detail: int = 0
    """For a ``tensor_dict`` the number of batch axes."""


def take_apart(value: Any) -> Parts | None:
    """Return the parts of an object, or None if the object has no parts that a program can read.

    Example:
        >>> take_apart([1, 2])
        Parts(kind='list', entries=((0, 1), (1, 2)), detail=0)
        >>> take_apart(Record({"mean": 1, "std": 2})).kind
        'record'
    """
    cls = type(value)
    if cls is list or cls is tuple or cls is torch.Size:
        return Parts("list" if cls is list else "tuple", tuple(enumerate(value)))
    # Ask the class: an object of a recording notes or refuses every use.
    if issubclass(cls, RecordTuple) or (issubclass(cls, tuple) and hasattr(cls, "_fields")):
        return Parts("named_tuple", tuple(zip(value._fields, value, strict=True)))
    if issubclass(cls, Record):
        return Parts("record", tuple(value.fields().items()))
    if hasattr(cls, "__dataclass_fields__"):
        kind = "record" if issubclass(cls, Mapping) else "dataclass"
        return Parts(kind, tuple([(name, getattr(value, name)) for name in cls.__dataclass_fields__]))
    if cls is SimpleNamespace or cls is RecordObject:
        return Parts("dataclass", tuple(vars(value).items()))
    if _is_of("omegaconf", "ListConfig", value):
        return Parts("list_config", tuple(enumerate(value)))
    if _is_of("tensordict", "TensorDict", value):
        return Parts("tensor_dict", tuple([(key, _plain_item(item)) for key, item in value.items()]), value.batch_dims)
    if issubclass(cls, Mapping) and all(isinstance(key, str) for key in value):
        return Parts("dict_config" if _is_of("omegaconf", "DictConfig", value) else "dict", tuple(value.items()))
    return None


def put_together(parts: Parts, like: Any = None) -> Any:
    """Return an object made of parts, of the class of ``like``, if given.

    Without ``like``, a dataclass is an object with the same attributes, and a named tuple a :class:`RecordTuple`.

    Raises:
        CallSignatureError: the package with the class is not installed.

    Example:
        >>> put_together(Parts("dataclass", [("obs", 1)])).obs
        1
        >>> put_together(Parts("named_tuple", [("mean", 0.5), ("std", 2.0)]))
        RecordTuple(mean=0.5, std=2.0)
    """
    entries = dict(parts.entries)
    match parts.kind:
        case "list":
            return list(entries.values())
        case "tuple":
            return tuple(entries.values())
        case "dict":
            return entries
        case "named_tuple":
            own = getattr(like, "_make", None)
            return own(entries.values()) if own is not None else RecordTuple(entries, entries.values())
        case "record" | "dataclass":
            return _record(parts.kind, entries, like)
        case "tensor_dict":
            return _tensor_dict(entries, parts.detail)
    if "${" in repr(parts.entries):  # an interpolation would read variables of the process
        raise CallSignatureError("an argument of the call is a config with ${...}. Remedy: resolve the config first")
    create = _package(parts.kind).OmegaConf.create
    return create(entries if parts.kind == "dict_config" else list(entries.values()))


def _record(kind: str, entries: dict[str, Any], like: Any) -> Any:
    if hasattr(type(like), "__dataclass_fields__"):
        if isinstance(like, Mapping):
            return type(like)(**entries)
        twin = copy.copy(like)  # without __post_init__, which may count or check
        for name, item in entries.items():
            object.__setattr__(twin, name, item)  # also of a frozen class
        return twin
    return Record(entries) if kind == "record" else SimpleNamespace(**entries)


def _tensor_dict(entries: dict[str, Any], batch_dims: int) -> Any:
    sized = (item.shape for item in entries.values() if hasattr(item, "shape"))
    return _package("tensor_dict").TensorDict(entries, batch_size=next(sized, torch.Size())[:batch_dims])


def _plain_item(item: Any) -> Any:
    """Return the text or number that tensordict keeps as an object of its own."""
    return item.data if type(item).__name__ == "NonTensorData" else item


def _is_of(package: str, name: str, value: Any) -> bool:
    """Whether a value is an instance of a package's class; the package of another value is not imported."""
    cls = type(value)
    return cls.__name__ == name and getattr(sys.modules.get(package), name, None) is cls


def _package(kind: str) -> Any:
    try:
        return importlib.import_module(_PACKAGES[kind])
    except ImportError:
        raise CallSignatureError(
            f"an argument of the call is of the package {_PACKAGES[kind]}, which is not installed on the server. "
            f"Remedy: install {_PACKAGES[kind]} on the server, or pass a dict or a list"
        ) from None
