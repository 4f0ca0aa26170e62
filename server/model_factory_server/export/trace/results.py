"""What a forward returns, in the types that a trainer gets."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from model_factory.errors import NotPortableError
from model_factory.program.call_signature import CONSTANT_TYPES
from model_factory.program.runtime.records import Record, RecordTuple

_PLAIN = (
    *(torch.Tensor, torch.Size, torch.SymInt, torch.SymFloat, torch.SymBool, torch.dtype, torch.device),
    *(bool, int, float, str, type(None)),
)


def portable_output(value: Any, where: str = "") -> Any:
    """Return a result with its objects with named fields as records, and other mappings as dicts.

    Raises:
        NotPortableError: it holds something that no program can return; the message says in which field.
    """
    if isinstance(value, _PLAIN):
        return value
    if pytree.is_structseq_instance(value):  # what torch.max(x, dim) returns
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
    raise NotPortableError(
        f"its forward returns a {type(value).__module__}.{type(value).__qualname__}"
        f"{f' in {where}' if where else ''}, which is not plain data. Remedy: return tensors, numbers, texts and None, "
        "in lists, tuples, mappings, dataclasses and named tuples"
    )


def plain_key(key: Any, where: str = "") -> bool | float | str | None:
    """Return the key of a mapping as a program has it.

    Raises:
        NotPortableError: it can have none such.
    """
    if isinstance(key, str) and str(key) == key:
        return str(key)  # of an enum of texts, say
    if type(key) in CONSTANT_TYPES and not (isinstance(key, float) and not math.isfinite(key)):
        return key  # type: ignore[no-any-return]
    raise NotPortableError(
        f"its forward has a mapping with the {type(key).__name__} {key!r} as a key{f' in {where}' if where else ''}. "
        "Remedy: keys that are texts, finite numbers or None"
    )


def _fields(value: Any) -> dict[str, Any]:
    entries = value if isinstance(value, Mapping) else ()
    names = dict.fromkeys([*entries, *(field.name for field in dataclasses.fields(value))])
    return {name: getattr(value, name) for name in names}


def _record(fields: Mapping[str, Any], where: str) -> Record:
    for name in fields:
        if hasattr(Record, name):
            raise NotPortableError(
                f"its forward returns a dataclass whose field {name!r} hides a method of mappings. Remedy: rename it"
            )
    return Record((name, portable_output(item, f"{where}.{name}")) for name, item in fields.items())


def _tuple(names: Any, value: Any, where: str) -> RecordTuple:
    return RecordTuple(
        names, [portable_output(item, f"{where}.{name}") for name, item in zip(names, value, strict=True)]
    )
