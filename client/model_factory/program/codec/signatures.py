"""Call signatures and forward signatures as JSON data."""

from __future__ import annotations

import math

import numpy as np

from model_factory.documents import expect_name, expect_str, expect_type
from model_factory.errors import FormatError
from model_factory.program.arguments.kinds import LISTED, NAMED
from model_factory.program.call_signature import (
    ANY,
    CONSTANT_TYPES,
    GENERATOR,
    NUMPY_TYPES,
    OMITTED,
    ArgumentSignature,
    CallSignature,
    constant_signature,
)
from model_factory.program.codec.json_fields import Json, expect_int, expect_items, expect_list, expect_pairs, tagged
from model_factory.program.codec.values import decode_value, encode_value
from model_factory.program.forward_signature import KINDS, ForwardParameter, ForwardSignature

_ATTRIBUTES = ("named_tuple", "dataclass", "record")

_OMITTED = {"omitted": True}
"""Default that is no plain data, and argument of a call with this default."""


def encode_call_signature(signature: CallSignature) -> Json:
    """Write a call signature as JSON data."""
    return [[name, _encode_argument(item)] for name, item in signature]


def decode_call_signature(data: Json) -> CallSignature:
    """The inverse of :func:`encode_call_signature`."""
    return tuple((expect_str(name), _decode_argument(item)) for name, item in expect_pairs(data))


def _encode_argument(signature: ArgumentSignature) -> Json:  # noqa: C901  one arm for each kind
    match signature[0]:
        case "tensor" | "array":
            kind, rank, dtype, empty = signature
            return {kind: [rank, dtype, list(empty)] if dtype or empty else rank}
        case "const":
            return {"const": encode_value(signature[2])}
        case "nan":
            return {"const": encode_value(math.nan)}
        case "any":
            return {"any": signature[1]}
        case "object":
            return {"object": signature[1]}
        case "omitted":
            return _OMITTED
        case "generator":
            return {"generator": True}
        case "numpy":
            return {"numpy": [signature[1], encode_value(signature[2])]}
        case "tensor_dict":
            return {"tensor_dict": [signature[2], _encode_entries(signature[1])]}
        case kind if kind in NAMED:
            return {kind: _encode_entries(signature[1])}
        case kind:
            return {kind: [_encode_argument(item) for item in signature[1]]}


def _encode_entries(entries: CallSignature) -> Json:
    return [[key, _encode_argument(item)] for key, item in entries]


def _decode_argument(data: Json) -> ArgumentSignature:  # noqa: C901  one arm for each kind
    kind, body = tagged(data)
    match kind:
        case "tensor" | "array":
            rank, dtype, empty = expect_items(body, 3) if isinstance(body, list) else (body, "", [])
            axes = tuple(expect_int(axis) for axis in expect_list(empty))
            return (kind, expect_int(rank), expect_str(dtype), axes)
        case "const":
            value = decode_value(body)
            if type(value) not in CONSTANT_TYPES:
                raise FormatError(f"a call signature's constant is a {type(value).__name__}")
            return constant_signature(value)
        case "numpy":
            return _decode_scalar(body)
        case "any":
            return (ANY, expect_str(body))
        case "object":
            return ("object", expect_str(body))
        case "omitted" if body is True:
            return ("omitted",)
        case "generator" if body is True:
            return GENERATOR
        case "tensor_dict":
            axes, entries = expect_items(body, 2)
            return (kind, _decode_entries(entries, kind), expect_int(axes))
        case _ if kind in NAMED:
            return (kind, _decode_entries(body, kind))
        case _ if kind in LISTED:
            return (kind, tuple(_decode_argument(item) for item in expect_list(body)))
    raise FormatError(f"unknown kind of call signature {kind!r}")


def _decode_entries(data: Json, kind: str) -> CallSignature:
    entries = tuple((expect_str(key), _decode_argument(item)) for key, item in expect_pairs(data))
    if kind in _ATTRIBUTES and not all(name.isidentifier() and not name.startswith("__") for name, _ in entries):
        raise FormatError(f"a {kind} of a call signature has an impossible field")
    return entries


def _decode_scalar(data: Json) -> ArgumentSignature:
    name, encoded = expect_items(data, 2)
    value = expect_type(decode_value(encoded), bool, int, float)
    if name not in NUMPY_TYPES or type(np.dtype(name).type(0).item()) is not type(value):
        raise FormatError(f"a call signature has an impossible NumPy scalar of type {name!r}")
    return ("numpy", name, value)


def encode_forward_signature(signature: ForwardSignature) -> Json:
    """Write a forward's signature as JSON data."""
    return [
        [item.name, item.kind, item.required, _OMITTED if item.default is OMITTED else encode_value(item.default)]
        for item in signature.parameters
    ]


def decode_forward_signature(data: Json) -> ForwardSignature:
    """The inverse of :func:`encode_forward_signature`."""
    parameters = []
    for entry in expect_list(data):
        name, kind, required, default = expect_items(entry, 4)
        if kind not in KINDS.values():
            raise FormatError(f"unknown kind of parameter {kind!r}")
        value = OMITTED if default == _OMITTED else decode_value(default)
        parameters.append(ForwardParameter(expect_name(name), kind, expect_type(required, bool), value))
    return ForwardSignature(tuple(parameters))
