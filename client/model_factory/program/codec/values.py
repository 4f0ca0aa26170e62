"""Plain values, arguments and sizes as JSON data.

JSON scalars and lists are written directly. Every other value is a mapping with one key, the kind of the value:
``{"ref": "v1"}``, ``{"tuple": [...]}``, ``{"size": {"op": ["add", {"dim": ["x", 1]}, 1]}}``. A program has no other
values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from model_factory.documents import expect_str, expect_type, mapping, named_float
from model_factory.errors import FormatError
from model_factory.program.bounds import bounded_integer
from model_factory.program.call_signature import CONSTANT_TYPES
from model_factory.program.codec.json_fields import Json, expect_axis, expect_items, expect_list, expect_pairs, tagged
from model_factory.program.ir import (
    Argument,
    Device,
    Dim,
    DtypeOf,
    Expr,
    Expression,
    Fields,
    FieldsKind,
    GeneratorOf,
    LimitOf,
    Rank,
    Ref,
    Size,
    TorchConst,
)


def encode_value(value: Argument) -> Json:  # noqa: C901, PLR0912  one arm per kind of value
    """Write a value or a program's argument as JSON data.

    Raises:
        FormatError: a part of the value cannot be written.

    Example:
        >>> encode_value([Ref("x"), (1, 2.5), slice(None, 3, None)])
        [{'ref': 'x'}, {'tuple': [1, 2.5]}, {'slice': [None, 3, None]}]
    """
    if value is None or type(value) in {bool, str}:
        return value
    if type(value) is int:
        return bounded_integer(value)
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if type(value) is list:
        return [encode_value(item) for item in value]
    if type(value) is tuple:
        return {"tuple": [encode_value(item) for item in value]}
    if isinstance(value, Mapping):
        return {"dict": [[encode_value(key), encode_value(item)] for key, item in value.items()]}
    if isinstance(value, slice):
        return {"slice": [encode_value(bound) for bound in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, Ref):
        return {"ref": value.name}
    if isinstance(value, Size):
        return {"size": encode_expression(value.expr)}
    if isinstance(value, TorchConst):
        return {"torch": value.name}
    if isinstance(value, DtypeOf):
        return {"dtype_of": value.name}
    if isinstance(value, LimitOf):
        return {"limit_of": [value.name, value.limit]}
    if isinstance(value, Device):
        return {"device": True}
    if isinstance(value, GeneratorOf):
        return {"generator_of": value.name}
    if isinstance(value, Fields):
        entries = [[name, encode_value(item)] for name, item in zip(value.names, value.values, strict=True)]
        return {value.kind: entries}
    raise FormatError(f"a {type(value).__module__}.{type(value).__qualname__} cannot be written in a program")


def decode_value(data: Json) -> Argument:
    """The inverse of :func:`encode_value`.

    Raises:
        FormatError: the data is malformed.
    """
    if data is None or isinstance(data, bool | float | str):
        return data
    if isinstance(data, int):
        return bounded_integer(data)
    if isinstance(data, list):
        return [decode_value(item) for item in data]
    kind, body = tagged(data)
    decode = _VALUES.get(kind)
    if decode is None:
        raise FormatError(f"unknown kind of value {kind!r}")
    return decode(body)


def encode_expression(expr: Expression) -> Json:
    """Write an expression on sizes as JSON data."""
    if isinstance(expr, Dim):
        return {"dim": [expr.name, expr.axis]}
    if isinstance(expr, Rank):
        return {"rank": expr.name}
    if isinstance(expr, Ref):
        return {"ref": expr.name}
    if isinstance(expr, Expr):
        return {"op": [expr.op, *[encode_expression(arg) for arg in expr.args]]}
    return bounded_integer(expr) if isinstance(expr, int) else expr


def decode_expression(data: Json) -> Expression:
    """The inverse of :func:`encode_expression`."""
    if isinstance(data, int | float):
        return bounded_integer(data) if isinstance(data, int) else data
    kind, body = tagged(data)
    if kind == "dim":
        name, axis = expect_items(body, 2)
        return Dim(expect_str(name), expect_axis(axis))
    if kind == "rank":
        return Rank(expect_str(body))
    if kind == "ref":
        return Ref(expect_str(body))
    if kind == "op" and isinstance(body, list) and body:
        return Expr(expect_str(body[0]), tuple(decode_expression(arg) for arg in body[1:]))
    raise FormatError(f"unknown kind of expression {kind!r}")


def _decode_dict(body: Json) -> dict[Any, Argument]:
    pairs = ((expect_type(key, *CONSTANT_TYPES), decode_value(item)) for key, item in expect_pairs(body))
    return mapping(pairs, "a key of a mapping")


def _decode_slice(body: Json) -> slice:
    start, stop, step = (decode_value(bound) for bound in expect_items(body, 3))
    return slice(start, stop, step)


def _decode_fields(body: Json, kind: FieldsKind) -> Fields:
    entries = mapping(
        ((expect_str(name), decode_value(item)) for name, item in expect_pairs(body)), "a field of a record"
    )
    return Fields(tuple(entries), tuple(entries.values()), kind)


def _decode_object(body: Json) -> Fields:
    """Decode an object with attributes; a private attribute could speak for the object, as ``__array_interface__``."""
    fields = _decode_fields(body, "object")
    if private := [name for name in fields.names if not name.isidentifier() or name.startswith("_")]:
        raise FormatError(f"an object has the attribute {private[0]!r}; names of attributes are public")
    return fields


_VALUES: Mapping[str, Callable[[Json], Argument]] = {
    "float": named_float,
    "tuple": lambda body: tuple(decode_value(item) for item in expect_list(body)),
    "dict": _decode_dict,
    "slice": _decode_slice,
    "ellipsis": lambda _body: Ellipsis,
    "ref": lambda body: Ref(expect_str(body)),
    "size": lambda body: Size(decode_expression(body)),
    "torch": lambda body: TorchConst(expect_str(body)),
    "dtype_of": lambda body: DtypeOf(expect_str(body)),
    "limit_of": lambda body: LimitOf(*map(expect_str, expect_items(body, 2))),
    "device": lambda _body: Device(),
    "generator_of": lambda body: GeneratorOf(expect_str(body)),
    "record": lambda body: _decode_fields(body, "record"),
    "named_tuple": lambda body: _decode_fields(body, "named_tuple"),
    "object": _decode_object,
}
