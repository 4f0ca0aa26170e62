"""Converts a forward's result to plain data: tensors, numbers, texts and ``None`` in containers and records."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from torch import nn

from model_factory.errors import NotPortableError
from model_factory.program.call_signature import CONSTANT_TYPES
from model_factory.program.runtime.named_results import Record, RecordObject, RecordTuple
from model_factory_server.export.torch_private import pytree

_MAX_DEPTH = 32
"""Objects in attributes of each other; an object that holds itself has no end."""
_PYTHON_CLASS = 1 << 9  # the flag of classes that are made by a class statement
_PLAIN = (
    *(torch.Tensor, torch.Size, torch.SymInt, torch.SymFloat, torch.SymBool, torch.dtype, torch.device),
    *(bool, int, float, str, type(None)),
)


def portable_output(value: Any, where: str = "") -> Any:
    """Return a result with dataclasses and named tuples as records, mappings as dicts, objects by their attributes.

    Raises:
        NotPortableError: the result contains another kind of object; the message names the field.

    Example:
        >>> portable_output({"a": (1, None)})
        {'a': (1, None)}
    """
    if isinstance(value, _PLAIN):
        return value
    if pytree.is_structseq_instance(value):  # as torch.max(x, dim) returns
        return _tuple(type(value).__match_args__, value, where)
    if isinstance(value, tuple | list):
        if names := getattr(value, "_fields", ()):
            return _tuple(names, value, where)
        items = [portable_output(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _record(_fields(value), where)
    if isinstance(value, Mapping):
        entries: dict[Any, Any] = {
            plain_key(key, where): portable_output(item, f"{where}[{key!r}]") for key, item in value.items()
        }
        is_record = isinstance(value, OrderedDict) and all(isinstance(key, str) for key in entries)
        return Record(entries) if is_record else entries
    if isinstance(value, RecordObject):
        return value
    if _is_of_attributes(value) and where.count(".") < _MAX_DEPTH:
        attributes = {name: item for name, item in vars(value).items() if not name.startswith("_")}
        return RecordObject({name: portable_output(item, f"{where}.{name}") for name, item in attributes.items()})
    raise NotPortableError(
        f"the forward returns a {type(value).__module__}.{type(value).__qualname__}"
        f"{f' in {where}' if where else ''}, which is not plain data. Remedy: return tensors, numbers, texts and None, "
        "in lists, tuples, mappings, dataclasses, named tuples and public attributes of objects"
    )


def _is_of_attributes(value: Any) -> bool:
    """Whether an object's attributes are all of the object: no module, no function, nothing of torch's own."""
    kinds = type(value).__mro__[:-1]  # without ``object``
    return (
        all(kind.__flags__ & _PYTHON_CLASS and not getattr(kind, "__slots__", ()) for kind in kinds)
        and not isinstance(value, nn.Module | Enum | type)
        and not callable(value)
        and kinds[0].__module__.partition(".")[0] not in {"torch", "model_factory", "model_factory_server"}
        and any(not name.startswith("_") for name in getattr(value, "__dict__", ()))
    )


def plain_key(key: Any, where: str = "") -> bool | float | str | None:
    """Return the key of a mapping as plain data; ``where`` is the place of the mapping in the result.

    Raises:
        NotPortableError: the key is not a text, a finite number or ``None``.

    Example:
        >>> plain_key("a"), plain_key(1)
        ('a', 1)
    """
    if isinstance(key, str) and str(key) == key:
        return str(key)  # also for a member of an enum of texts
    if type(key) in CONSTANT_TYPES and not (isinstance(key, float) and not math.isfinite(key)):
        return key  # type: ignore[no-any-return]
    raise NotPortableError(
        f"the forward has a mapping with the {type(key).__name__} {key!r} as a key{f' in {where}' if where else ''}. "
        "Remedy: use texts, finite numbers or None as keys"
    )


def _fields(value: Any) -> dict[str, Any]:
    entries = value if isinstance(value, Mapping) else ()
    names = dict.fromkeys([*entries, *(field.name for field in dataclasses.fields(value))])
    return {name: getattr(value, name) for name in names}


def _record(fields: Mapping[str, Any], where: str) -> Record:
    for name in fields:
        if hasattr(Record, name):
            raise NotPortableError(
                f"the forward returns a dataclass with the field {name!r}, which hides a method of mappings. "
                "Remedy: rename the field"
            )
    return Record((name, portable_output(item, f"{where}.{name}")) for name, item in fields.items())


def _tuple(names: Any, value: Any, where: str) -> RecordTuple:
    return RecordTuple(
        names, [portable_output(item, f"{where}.{name}") for name, item in zip(names, value, strict=True)]
    )
