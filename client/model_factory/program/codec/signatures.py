"""Call signatures and forward signatures as JSON data."""

from __future__ import annotations

import math

from model_factory.documents import expect_str, expect_type
from model_factory.errors import FormatError
from model_factory.program.call_signature import (
    ANY,
    CONSTANT_TYPES,
    ArgumentSignature,
    CallSignature,
    constant_signature,
)
from model_factory.program.codec.json_fields import Json, expect_int, expect_items, expect_list, expect_pairs, tagged
from model_factory.program.codec.values import decode_value, encode_value
from model_factory.program.forward_signature import KINDS, ForwardParameter, ForwardSignature


def encode_call_signature(signature: CallSignature) -> Json:
    """Write a call signature as JSON data."""
    return [[name, _encode_argument(item)] for name, item in signature]


def decode_call_signature(data: Json) -> CallSignature:
    """The inverse of :func:`encode_call_signature`."""
    return tuple((expect_str(name), _decode_argument(item)) for name, item in expect_pairs(data))


def _encode_argument(signature: ArgumentSignature) -> Json:
    match signature[0]:
        case "tensor":
            _, rank, dtype, empty = signature
            return {"tensor": [rank, dtype, list(empty)] if dtype or empty else rank}
        case "const":
            return {"const": encode_value(signature[2])}
        case "nan":
            return {"const": encode_value(math.nan)}
        case "any":
            return {"any": signature[1]}
        case "object":
            return {"object": signature[1]}
        case "dict":
            return {"dict": [[key, _encode_argument(item)] for key, item in signature[1]]}
        case kind:
            return {kind: [_encode_argument(item) for item in signature[1]]}


def _decode_argument(data: Json) -> ArgumentSignature:
    kind, body = tagged(data)
    match kind:
        case "tensor":
            rank, dtype, empty = expect_items(body, 3) if isinstance(body, list) else (body, "", [])
            return (
                "tensor",
                expect_int(rank),
                expect_str(dtype),
                tuple(expect_int(axis) for axis in expect_list(empty)),
            )
        case "const":
            value = decode_value(body)
            if type(value) not in CONSTANT_TYPES:
                raise FormatError(f"a call signature's constant is a {type(value).__name__}")
            return constant_signature(value)
        case "any":
            return (ANY, expect_str(body))
        case "object":
            return ("object", expect_str(body))
        case "dict":
            return ("dict", tuple((expect_str(key), _decode_argument(item)) for key, item in expect_pairs(body)))
        case "list" | "tuple":
            return (kind, tuple(_decode_argument(item) for item in expect_list(body)))
    raise FormatError(f"unknown kind of call signature {kind!r}")


def encode_forward_signature(signature: ForwardSignature) -> Json:
    """Write a forward's signature as JSON data."""
    return [[item.name, item.kind, item.required, encode_value(item.default)] for item in signature.parameters]


def decode_forward_signature(data: Json) -> ForwardSignature:
    """The inverse of :func:`encode_forward_signature`."""
    parameters = []
    for entry in expect_list(data):
        name, kind, required, default = expect_items(entry, 4)
        if kind not in KINDS.values():
            raise FormatError(f"unknown kind of parameter {kind!r}")
        parameters.append(ForwardParameter(expect_str(name), kind, expect_type(required, bool), decode_value(default)))
    return ForwardSignature(tuple(parameters))
