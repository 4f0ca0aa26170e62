"""Programs, call signatures and plain values as JSON data, and back.

JSON scalars and lists are written directly. Every other value is a mapping with one key, the kind of the value:
``{"ref": "v1"}``, ``{"tuple": [...]}``, ``{"size": {"op": ["add", {"dim": ["x", 1]}, 1]}}``. A program has no other
values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from model_factory.documents import expect_str, expect_type, mapping, named_float
from model_factory.errors import FormatError
from model_factory.limits import MAX_STEPS
from model_factory.program.call_signature import (
    ANY,
    CONSTANT_TYPES,
    ArgumentSignature,
    CallSignature,
    constant_signature,
)
from model_factory.program.forward_signature import KINDS, ForwardParameter, ForwardSignature
from model_factory.program.ir import (
    Argument,
    AttributeRead,
    Device,
    Dim,
    DtypeOf,
    Expr,
    Expression,
    Fields,
    Guard,
    LimitOf,
    ModuleCall,
    OpCall,
    Out,
    Program,
    Rank,
    Ref,
    Require,
    Size,
    Step,
    TorchConst,
    step_text,
)
from model_factory.program.recorded_program import TABLES, Read, RecordedProgram, is_plain

Json: TypeAlias = Any


def encode_value(value: Argument) -> Json:  # noqa: C901, PLR0912  one arm per kind of value
    """Write a value or a program's argument as JSON data.

    Raises:
        FormatError: a part of the value cannot be written.

    Example:
        >>> encode_value([Ref("x"), (1, 2.5), slice(None, 3, None)])
        [{'ref': 'x'}, {'tuple': [1, 2.5]}, {'slice': [None, 3, None]}]
    """
    if value is None or type(value) in {bool, int, str}:
        return value
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
    if isinstance(value, Fields):
        entries = [[name, encode_value(item)] for name, item in zip(value.names, value.values, strict=True)]
        return {"named_tuple" if value.is_tuple else "record": entries}
    raise FormatError(f"a {type(value).__module__}.{type(value).__qualname__} cannot be written in a program")


def decode_value(data: Json) -> Argument:
    """The inverse of :func:`encode_value`.

    Raises:
        FormatError: the data is malformed.
    """
    if data is None or isinstance(data, bool | int | float | str):
        return data
    if isinstance(data, list):
        return [decode_value(item) for item in data]
    kind, body = _tagged(data)
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
    return expr


def decode_expression(data: Json) -> Expression:
    """The inverse of :func:`encode_expression`."""
    if isinstance(data, int | float):
        return data
    kind, body = _tagged(data)
    if kind == "dim":
        name, axis = _items(body, 2)
        return Dim(expect_str(name), _axis(axis))
    if kind == "rank":
        return Rank(expect_str(body))
    if kind == "ref":
        return Ref(expect_str(body))
    if kind == "op" and isinstance(body, list) and body:
        return Expr(expect_str(body[0]), tuple(decode_expression(arg) for arg in body[1:]))
    raise FormatError(f"unknown kind of expression {kind!r}")


def encode_program(program: Program) -> Json:
    """Write a program as JSON data."""
    return {
        "inputs": list(program.inputs),
        "steps": [_encode_step(step) for step in program.steps],
        "result": encode_value(program.result),
    }


def _encode_step(step: Step) -> Json:
    args: tuple[Argument, ...] = ()
    kwargs: Mapping[str, Argument] = {}
    out: Out = ""
    match step:
        case ModuleCall() | OpCall():
            args, kwargs, out = step.args, step.kwargs, step.out
        case AttributeRead():
            out = step.out
        case Guard():
            args = (step.value, step.outcome)
        case Require():
            args = (step.condition,)
    return {
        "call": step_text(step),
        "args": [encode_value(arg) for arg in args],
        "kwargs": [[name, encode_value(arg)] for name, arg in kwargs.items()],
        "out": out if isinstance(out, str) else encode_value(out),
    }


def decode_program(data: Json) -> Program:
    """The inverse of :func:`encode_program`."""
    fields = _fields(data, "inputs", "steps", "result")
    steps = _list(fields["steps"])
    if len(steps) > MAX_STEPS:
        raise FormatError(f"a program has {len(steps)} steps; at most {MAX_STEPS} are allowed")
    return Program(
        inputs=tuple(expect_str(name) for name in _list(fields["inputs"])),
        steps=tuple(_decode_step(step) for step in steps),
        result=decode_value(fields["result"]),
    )


def _decode_step(data: Json) -> Step:
    fields = _fields(data, "call", "args", "kwargs", "out")
    call = expect_str(fields["call"])
    args = tuple(decode_value(arg) for arg in _list(fields["args"]))
    kwargs = {expect_str(name): decode_value(arg) for name, arg in _pairs(fields["kwargs"])}
    out = _decode_out(fields["out"])
    kind, _, target = call.partition(":")
    if kind == "module":
        return ModuleCall(path=target, args=args, kwargs=kwargs, out=out)
    if kind == "op":
        return OpCall(name=target, args=args, kwargs=kwargs, out=out)
    if kind == "attr" and not args and not kwargs and isinstance(out, str):
        return AttributeRead(path=target, out=out)
    if not kwargs and out == "":
        match kind, target, args:
            case ("guard", "bool", (value, bool() as outcome)):
                return Guard(value=value, outcome=outcome)
            case ("guard", "int", (value, int() as outcome)) if not isinstance(outcome, bool):
                return Guard(value=value, outcome=outcome)
            case ("require", "", (Size() as condition,)):
                return Require(condition=condition)
    raise FormatError(f"a program makes a call of unknown kind: {call!r}")


def _decode_out(data: Json) -> Out:
    if isinstance(data, str):
        return data
    out = decode_value(data)
    if isinstance(out, tuple):
        return tuple(expect_str(name) for name in out)
    if isinstance(out, dict):
        return {expect_str(key): expect_str(name) for key, name in out.items()}
    raise FormatError("a step's out must be a name, a tuple of names or a mapping to names")


def encode_recorded(recorded: RecordedProgram) -> Json:
    """Write a recorded program with its conditions as JSON data."""
    return {
        "call_signature": encode_call_signature(recorded.call_signature),
        "training": [list(entry) for entry in recorded.training],
        "dtypes": [list(entry) for entry in recorded.dtypes],
        "guards": [encode_expression(guard) for guard in recorded.guards],
        "reads": encode_reads(recorded.reads),
        "absent": list(recorded.absent),
        "shared": [list(pair) for pair in recorded.shared],
        "program": encode_program(recorded.program),
        "method": recorded.method,
    }


_RECORDED_KEYS = ("call_signature", "training", "dtypes", "guards", "reads", "absent", "shared", "program", "method")


def decode_recorded(data: Json) -> RecordedProgram:
    """The inverse of :func:`encode_recorded`."""
    fields = _fields(
        data, "call_signature", "training", "dtypes", "guards", "reads", "absent", "shared", "program", "method"
    )
    return RecordedProgram(
        call_signature=decode_call_signature(fields["call_signature"]),
        training=tuple((expect_str(path), expect_type(flag, bool)) for path, flag in _pairs(fields["training"])),
        dtypes=tuple((expect_str(name), expect_str(dtype)) for name, dtype in _pairs(fields["dtypes"])),
        guards=tuple(decode_expression(guard) for guard in _list(fields["guards"])),
        reads=decode_reads(fields["reads"]),
        absent=tuple(expect_str(path) for path in _list(fields["absent"])),
        shared=tuple((expect_str(path), expect_str(other)) for path, other in _pairs(fields["shared"])),
        program=decode_program(fields["program"]),
        method=expect_str(fields["method"]),
    )


def encode_reads(reads: Iterable[Read]) -> Json:
    """Write attributes of torch modules as JSON data."""
    return [[path, name, encode_value(value)] for path, name, value in reads]


def decode_reads(data: Json) -> tuple[Read, ...]:
    """The inverse of :func:`encode_reads`."""
    return tuple(_decode_read(entry) for entry in _list(data))


def _decode_read(data: Json) -> Read:
    path, name, encoded = _items(data, 3)
    value = decode_value(encoded)
    if not is_plain(value):
        raise FormatError(f"the value of the attribute {name!r} is not a constant")
    if expect_str(name).startswith("_") and name not in TABLES:
        raise FormatError(f"a recorded program has a condition on the private attribute {name!r}")
    return expect_str(path), name, value


def encode_call_signature(signature: CallSignature) -> Json:
    """Write a call signature as JSON data."""
    return [[name, _encode_argument(item)] for name, item in signature]


def decode_call_signature(data: Json) -> CallSignature:
    """The inverse of :func:`encode_call_signature`."""
    return tuple((expect_str(name), _decode_argument(item)) for name, item in _pairs(data))


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
    kind, body = _tagged(data)
    match kind:
        case "tensor":
            rank, dtype, empty = _items(body, 3) if isinstance(body, list) else (body, "", [])
            return ("tensor", _integer(rank), expect_str(dtype), tuple(_integer(axis) for axis in _list(empty)))
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
            return ("dict", tuple((expect_str(key), _decode_argument(item)) for key, item in _pairs(body)))
        case "list" | "tuple":
            return (kind, tuple(_decode_argument(item) for item in _list(body)))
    raise FormatError(f"unknown kind of call signature {kind!r}")


def encode_signature(signature: ForwardSignature) -> Json:
    """Write a forward's signature as JSON data."""
    return [[item.name, item.kind, item.required, encode_value(item.default)] for item in signature.parameters]


def decode_signature(data: Json) -> ForwardSignature:
    """The inverse of :func:`encode_signature`."""
    parameters = []
    for entry in _list(data):
        name, kind, required, default = _items(entry, 4)
        if kind not in KINDS.values():
            raise FormatError(f"unknown kind of parameter {kind!r}")
        parameters.append(ForwardParameter(expect_str(name), kind, expect_type(required, bool), decode_value(default)))
    return ForwardSignature(tuple(parameters))


def _decode_dict(body: Json) -> dict[Any, Argument]:
    pairs = ((expect_type(key, *CONSTANT_TYPES), decode_value(item)) for key, item in _pairs(body))
    return mapping(pairs, "a key of a mapping")


def _decode_slice(body: Json) -> slice:
    start, stop, step = (decode_value(bound) for bound in _items(body, 3))
    return slice(start, stop, step)


def _decode_fields(body: Json, *, is_tuple: bool) -> Fields:
    entries = mapping(((expect_str(name), decode_value(item)) for name, item in _pairs(body)), "a field of a record")
    return Fields(tuple(entries), tuple(entries.values()), is_tuple)


_VALUES: Mapping[str, Callable[[Json], Argument]] = {
    "float": named_float,
    "tuple": lambda body: tuple(decode_value(item) for item in _list(body)),
    "dict": _decode_dict,
    "slice": _decode_slice,
    "ellipsis": lambda _body: Ellipsis,
    "ref": lambda body: Ref(expect_str(body)),
    "size": lambda body: Size(decode_expression(body)),
    "torch": lambda body: TorchConst(expect_str(body)),
    "dtype_of": lambda body: DtypeOf(expect_str(body)),
    "limit_of": lambda body: LimitOf(*map(expect_str, _items(body, 2))),
    "device": lambda _body: Device(),
    "record": lambda body: _decode_fields(body, is_tuple=False),
    "named_tuple": lambda body: _decode_fields(body, is_tuple=True),
}


def _tagged(data: Json) -> tuple[str, Json]:
    if not isinstance(data, dict) or len(data) != 1:
        raise FormatError("a value must be a scalar, a list or a mapping with one key")
    return next(iter(data.items()))


def _fields(data: Json, *names: str) -> dict[str, Json]:
    if not isinstance(data, dict) or data.keys() != set(names):
        raise FormatError(f"expected a mapping with exactly the keys {', '.join(names)}")
    return data


def _integer(data: Json) -> int:
    return expect_type(data, int)  # type: ignore[no-any-return]


def _axis(data: Json) -> int:
    axis = _integer(data)
    if axis < 0:
        raise FormatError(f"{axis} is not an axis; axes are counted from 0")
    return axis


def _list(data: Json) -> list[Json]:
    return expect_type(data, list)  # type: ignore[no-any-return]


def _items(data: Json, count: int) -> list[Json]:
    items = _list(data)
    if len(items) != count:
        raise FormatError(f"expected {count} items, got {len(items)}")
    return items


def _pairs(data: Json) -> list[list[Json]]:
    return [_items(entry, 2) for entry in _list(data)]
