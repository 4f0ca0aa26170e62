"""Programs and recorded programs as JSON data."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping

from model_factory.documents import expect_name, expect_str, expect_type
from model_factory.errors import FormatError, safe_text
from model_factory.limits import MAX_STEPS
from model_factory.program.codec.json_fields import Json, exact_fields, expect_items, expect_list, expect_pairs
from model_factory.program.codec.signatures import decode_call_signature, encode_call_signature
from model_factory.program.codec.values import decode_expression, decode_value, encode_expression, encode_value
from model_factory.program.ir import (
    Argument,
    AttributeRead,
    BufferAssignment,
    Constant,
    Guard,
    ModuleCall,
    OpCall,
    Out,
    OwnBackward,
    Program,
    Ref,
    Require,
    Size,
    Step,
    step_text,
)
from model_factory.program.recorded_program import TABLES, Read, RecordedProgram, is_plain


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
        case BufferAssignment():
            args = (step.value,)
        case Constant():
            args, out = (list(step.shape), base64.b64encode(step.data).decode()), step.out
        case Guard():
            args = (step.value, step.outcome)
        case Require():
            args = (step.condition,)
        case OwnBackward():
            args, out = (step.inputs, step.results, step.kept, step.constant), step.out
    backward = [encode_program(step.backward)] if isinstance(step, OwnBackward) else []
    return {
        "call": step_text(step),
        "args": [encode_value(arg) for arg in args] + backward,
        "kwargs": [[name, encode_value(arg)] for name, arg in kwargs.items()],
        "out": out if isinstance(out, str) else encode_value(out),
    }


def decode_program(data: Json, *, is_backward: bool = False) -> Program:
    """The inverse of :func:`encode_program`; the program of a backward has no steps with a backward."""
    fields = exact_fields(data, "inputs", "steps", "result")
    steps = expect_list(fields["steps"])
    if len(steps) > MAX_STEPS:
        raise FormatError(f"a program has {len(steps)} steps; at most {MAX_STEPS} are allowed")
    return Program(
        inputs=tuple(expect_str(name) for name in expect_list(fields["inputs"])),
        steps=tuple(_decode_step(step, is_backward=is_backward) for step in steps),
        result=decode_value(fields["result"]),
    )


def _decode_step(data: Json, *, is_backward: bool) -> Step:
    fields = exact_fields(data, "call", "args", "kwargs", "out")
    call = expect_str(fields["call"])
    if call in {"backward", "backward:once"}:
        if is_backward:
            raise FormatError(f"the backward of a program has the step {call}; allowed are ops and constants")
        return _decode_own_backward(fields, once=call == "backward:once")
    args = tuple(decode_value(arg) for arg in expect_list(fields["args"]))
    kwargs = {expect_str(name): decode_value(arg) for name, arg in expect_pairs(fields["kwargs"])}
    out = _decode_out(fields["out"])
    kind, _, target = call.partition(":")
    if kind == "module":
        return ModuleCall(path=target, args=args, kwargs=kwargs, out=out)
    if kind == "op":
        _check_texts([args, kwargs])
        return OpCall(name=target, args=args, kwargs=kwargs, out=out)
    if kind == "attr" and not args and not kwargs and isinstance(out, str):
        return AttributeRead(path=target, out=out)
    if kind == "constant" and not kwargs and isinstance(out, str):
        return _decode_constant(target, args, out)
    without_result = None if kwargs or out != "" else _decode_without_result(kind, target, args)
    if without_result is None:
        raise FormatError(f"a program makes a call of unknown kind: {call!r}")
    return without_result


def _decode_without_result(
    kind: str, target: str, args: tuple[Argument, ...]
) -> Guard | Require | BufferAssignment | None:
    match kind, target, args:
        case ("assign", path, (Ref() as value,)):
            return BufferAssignment(path=path, value=value)
        case ("guard", "bool", (value, bool() as outcome)):
            return Guard(value=value, outcome=outcome)
        case ("guard", "assert", (value, True)):
            return Guard(value=value, outcome=True, asserts=True)
        case ("guard", "int", (value, int() as outcome)) if not isinstance(outcome, bool):
            return Guard(value=value, outcome=outcome)
        case ("require", "", (Size() as condition,)):
            return Require(condition=condition)
    return None


def _decode_own_backward(fields: Mapping[str, Json], *, once: bool) -> OwnBackward:
    *values, program = expect_items(fields["args"], 5)
    match [decode_value(value) for value in values], _decode_out(fields["out"]), fields["kwargs"]:
        case [tuple() as inputs, tuple() as results, tuple() as kept, tuple() as constant], tuple() as out, []:
            return OwnBackward(
                inputs=inputs,
                results=results,
                kept=kept,
                constant=tuple(expect_type(position, int) for position in constant),
                backward=decode_program(program, is_backward=True),
                once=once,
                out=out,
            )
    raise FormatError("a backward of a program has inputs, results, kept values, constant results and a program")


def _decode_constant(dtype: str, args: tuple[Argument, ...], out: str) -> Constant:
    match args:
        case (list() as shape, str() as text):
            try:
                data = base64.b64decode(text, validate=True)
            except binascii.Error as error:
                raise FormatError(f"the values of a constant are not written in base 64: {error}") from None
            return Constant(dtype=dtype, shape=tuple(expect_type(size, int) for size in shape), data=data, out=out)
    raise FormatError("a constant has sizes and values")


def _check_texts(value: Argument) -> None:
    """Refuse unprintable texts among the arguments of an op: torch's errors quote the texts unescaped."""
    if isinstance(value, str):
        expect_name(value)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_texts(item)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_texts([key, item])


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
        "size_conditions": [encode_expression(condition) for condition in recorded.size_conditions],
        "reads": encode_reads(recorded.reads),
        "absent": list(recorded.absent),
        "shared": [list(pair) for pair in recorded.shared],
        "inlined": [list(entry) for entry in recorded.inlined],
        "modes": [list(mode) for mode in recorded.modes],
        "program": encode_program(recorded.program),
        "method": recorded.method,
    }


_RECORDED_KEYS = (
    "call_signature",
    "training",
    "dtypes",
    "size_conditions",
    "reads",
    "absent",
    "shared",
    "inlined",
    "modes",
    "program",
    "method",
)


def decode_recorded(data: Json) -> RecordedProgram:
    """The inverse of :func:`encode_recorded`."""
    fields = exact_fields(data, *_RECORDED_KEYS)
    return RecordedProgram(
        call_signature=decode_call_signature(fields["call_signature"]),
        training=tuple((expect_str(path), expect_type(flag, bool)) for path, flag in expect_pairs(fields["training"])),
        dtypes=tuple((expect_str(name), expect_str(dtype)) for name, dtype in expect_pairs(fields["dtypes"])),
        size_conditions=tuple(decode_expression(condition) for condition in expect_list(fields["size_conditions"])),
        reads=decode_reads(fields["reads"]),
        absent=tuple(expect_str(path) for path in expect_list(fields["absent"])),
        shared=tuple((expect_str(path), expect_str(other)) for path, other in expect_pairs(fields["shared"])),
        inlined=tuple(
            (expect_str(path), safe_text(expect_str(reason))) for path, reason in expect_pairs(fields["inlined"])
        ),
        modes=tuple((expect_str(name), expect_type(value, bool, str)) for name, value in expect_pairs(fields["modes"])),
        program=decode_program(fields["program"]),
        method=expect_str(fields["method"]),
    )


def encode_reads(reads: Iterable[Read]) -> Json:
    """Write attributes of torch modules as JSON data."""
    return [[path, name, encode_value(value)] for path, name, value in reads]


def decode_reads(data: Json) -> tuple[Read, ...]:
    """The inverse of :func:`encode_reads`."""
    return tuple(_decode_read(entry) for entry in expect_list(data))


def _decode_read(data: Json) -> Read:
    path, name, encoded = expect_items(data, 3)
    value = decode_value(encoded)
    if not is_plain(value):
        raise FormatError(f"the value of the attribute {name!r} is not a constant")
    if expect_str(name).startswith("_") and name not in TABLES:
        raise FormatError(f"a recorded program has a condition on the private attribute {name!r}")
    return expect_str(path), name, value
