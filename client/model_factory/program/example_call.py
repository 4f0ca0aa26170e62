"""An example call as JSON: tensors as dtype, shape and range only. A server records a program from an example call.

::

    {"call_signature": [["x", {"tensor": 3}], ["scale", {"const": 1.0}]],
     "tensors": [{"dtype": "float32", "shape": [2, 5, 16]}]}

Optional keys:

- ``outcomes``: outcomes of the call's first decisions by values, for a branch without a program: ``[true, 3]``
- ``method``: name of the called method, other than the forward
- ``reads``: attributes of torch modules that the trainer has set: ``[["drop", "p", 0.25]]``
- ``without_values``: true for a call without values: constants have a kind only, ``{"any": "str"}``, and integer
  tensors have no range. The server records programs for the values that the server can find without the trainer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from model_factory.documents import decode_document, encode_document
from model_factory.errors import CallSignatureError, FormatError, plain_text
from model_factory.limits import MAX_EXAMPLE_RANK
from model_factory.program.call_signature import (
    ANY,
    NUMPY,
    ArgumentSignature,
    CallSignature,
    call_signature,
    parts_of,
    rebuild_arguments,
    with_parts,
    without_values,
)
from model_factory.program.codec.programs import decode_reads, encode_reads
from model_factory.program.codec.signatures import decode_call_signature, encode_call_signature
from model_factory.program.ir import Outcome
from model_factory.program.recorded_program import FORWARD, Read
from model_factory.program.torch_names import torch_dtype, torch_name
from model_factory.program.torch_private import is_fake

MAX_EXAMPLE_ELEMENTS = 1 << 28
"""Maximum of numbers in all tensors of one call."""
MAX_EXAMPLE_TENSORS = 1000
"""Maximum of tensors in one call."""

_MAX_TRUTHS = 3  # of a call without values: each doubles the number of recordings

_CONSTANTS: Mapping[str, Any] = {"int": 1, "float": 1.0, "str": ""}
"""Constants in a call without values. A program that depends on such a constant fits no call of the trainer."""

_MALFORMED = (
    *(ArithmeticError, AttributeError, LookupError, RecursionError, RuntimeError, StopIteration, TypeError),
    ValueError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleCall:
    """A call to record."""

    arguments: Mapping[str, Any]
    """Arguments by name."""
    outcomes: tuple[Outcome, ...] = ()
    """Outcomes of the call's first decisions by values."""
    method: str = FORWARD
    """Name of the called method."""
    reads: tuple[Read, ...] = ()
    """Attributes of torch modules that the trainer has set to other values than the config."""
    others: tuple[Mapping[str, Any], ...] = ()
    """Arguments with other truth values, for a call without values."""
    without_values: bool = False
    """Whether constants and integers are the server's own choice, in place of the trainer's values."""


def is_integral(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds integers or truth values.

    Example:
        >>> is_integral(torch.tensor([1])), is_integral(torch.tensor([1.0]))
        (True, False)
    """
    return not (tensor.is_floating_point() or tensor.is_complex())


def encode_call_without_values(
    arguments: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    method: str = FORWARD,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> bytes:
    """Write bound arguments as a document with names, kinds, dtypes and sizes only.

    Args:
        arguments: Arguments by name.
        dtype: Dtype for floating tensors, if given.
        method: Name of the called method.
        defaults: Defaults of parameters, by name. The server knows the defaults, so that an argument equal to its
            default is written.

    Raises:
        CallSignatureError: an argument cannot be described.

    Example:
        >>> encode_call_without_values({"ids": torch.tensor([7, 3])})
        b'{"call_signature":[["ids",{"tensor":[1,"int64",[]]}]],"tensors":[{"dtype":"int64","shape":[2]}],"without_values":true}'
    """
    signature, leaves = call_signature(arguments)
    document = {
        "call_signature": encode_call_signature(without_values(signature, defaults)),
        "tensors": [_encode_size(leaf, dtype) for leaf in leaves],
        "without_values": True,
    }
    return encode_document(document | ({} if method == FORWARD else {"method": method}))


def encode_call(
    arguments: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    outcomes: tuple[Outcome, ...] = (),
    method: str = FORWARD,
    reads: Sequence[Read] = (),
) -> bytes:
    """Write bound arguments as a document with constants and ranges; floating tensors with ``dtype``, if given.

    Raises:
        CallSignatureError: an argument cannot be described.

    Example:
        >>> encode_call({"x": torch.zeros(2, 3)})
        b'{"call_signature":[["x",{"tensor":2}]],"tensors":[{"dtype":"float32","shape":[2,3]}]}'
    """
    signature, leaves = call_signature(arguments)
    document: dict[str, Any] = {
        "call_signature": encode_call_signature(signature),
        "tensors": [_encode_tensor(leaf, dtype, with_range=bool(outcomes)) for leaf in leaves],
    }
    document |= {"outcomes": list(outcomes)} if outcomes else {}
    document |= {"reads": encode_reads(reads)} if reads else {}
    return encode_document(document | ({} if method == FORWARD else {"method": method}))


def decode_call(data: bytes) -> ExampleCall:
    """Make arguments of the described signature, with random tensors.

    Raises:
        FormatError: the document is malformed, or its tensors are too large.
    """
    document = decode_document(data, "the call")
    try:
        signature = decode_call_signature(document["call_signature"])
        if len(document["tensors"]) > MAX_EXAMPLE_TENSORS:
            raise FormatError(f"the call has {len(document['tensors'])} tensors; at most {MAX_EXAMPLE_TENSORS}")
        shapes = [[int(size) for size in entry["shape"]] for entry in document["tensors"]]
        if any(len(shape) > MAX_EXAMPLE_RANK for shape in shapes):
            raise FormatError(f"a tensor of the call has {max(map(len, shapes))} axes; at most {MAX_EXAMPLE_RANK}")
        elements = sum(_elements(shape) for shape in shapes)
        if elements > MAX_EXAMPLE_ELEMENTS:
            raise FormatError(f"the call's tensors hold {elements} numbers; at most {MAX_EXAMPLE_ELEMENTS} are allowed")
        make = _make_without_range if (without := document.get("without_values") is True) else _make_tensor
        leaves = [make(entry, shape) for entry, shape in zip(document["tensors"], shapes, strict=True)]
        arguments, *others = [rebuild_arguments(item, leaves) for item in _with_constants(signature)]
        outcomes = tuple(document.get("outcomes", ()))
        method = str(document.get("method", FORWARD))
        reads = decode_reads(document.get("reads", []))
    except _MALFORMED as error:
        raise FormatError(f"malformed call: {type(error).__name__}: {plain_text(error)}") from None
    if len(call_signature(arguments)[1]) != len(leaves):
        raise FormatError("malformed call: the number of tensors does not match the call signature")
    if not all(type(outcome) in {bool, int} for outcome in outcomes):
        raise FormatError("malformed call: an outcome is neither a truth value nor an integer")
    return ExampleCall(
        arguments=arguments,
        outcomes=outcomes,
        method=method,
        reads=reads,
        others=tuple(others),
        without_values=without,
    )


def _with_constants(signature: CallSignature) -> Iterator[CallSignature]:
    """Yield signatures with a constant for each kind: every combination of truth values, up to a bound."""
    truths = sum(kind == "bool" for _, item in signature for kind in _kinds(item))
    combinations = itertools.product(*[(False, True) if index < _MAX_TRUTHS else (False,) for index in range(truths)])
    for combination in combinations:
        values = iter(combination)
        yield tuple((name, _with_constant(item, values)) for name, item in signature)


def _kinds(signature: ArgumentSignature) -> Iterator[str]:
    """Yield the kinds of a signature without values, in order."""
    if signature[0] == ANY:
        yield signature[1]
    for _, item in parts_of(signature) or ():
        yield from _kinds(item)


def _with_constant(signature: ArgumentSignature, truths: Iterator[bool]) -> ArgumentSignature:
    if signature[0] == ANY and signature[1].startswith(NUMPY):
        name = signature[1].removeprefix(NUMPY)
        return ("numpy", name, np.dtype(name).type(1).item())
    if signature[0] == ANY:
        value = next(truths) if signature[1] == "bool" else _CONSTANTS[signature[1]]
        return ("const", type(value).__name__, value)
    parts = parts_of(signature)
    return signature if parts is None else with_parts(signature, [_with_constant(item, truths) for _, item in parts])


def _elements(shape: list[int]) -> int:
    total = 1
    for size in shape:
        if size < 0:
            raise FormatError(f"{size} is not a size")
        total *= size
    return total


def _encode_size(tensor: torch.Tensor, floating: torch.dtype | None) -> dict[str, Any]:
    dtype = floating if floating is not None and tensor.is_floating_point() else tensor.dtype
    return {"dtype": torch_name(dtype), "shape": [_size_hint(size) for size in tensor.shape]}


def _size_hint(size: Any) -> int:
    """Return a size as a number; for a symbolic size of ``torch.export``, the size of the example.

    Raises:
        CallSignatureError: the size follows from values, so no number is known.
    """
    if not isinstance(size, torch.SymInt):
        return int(size)
    if not size.node.has_hint():
        raise CallSignatureError(
            "a size of the call follows from the values of a tensor, and the call is traced without values. Remedy: "
            "make the same call once before the trace"
        )
    return int(size.node.hint)


def _encode_tensor(tensor: torch.Tensor, floating: torch.dtype | None, *, with_range: bool) -> dict[str, Any]:
    entry = _encode_size(tensor, floating)
    if tensor.is_meta or is_fake(tensor):
        return entry
    if not (tensor.is_floating_point() or tensor.is_complex()) and tensor.numel():
        # Index tensors: the range keeps indices inside an embedding.
        entry["range"] = [int(tensor.min()), int(tensor.max())]
    elif with_range and tensor.is_floating_point() and tensor.isfinite().all() and tensor.numel():
        entry["range"] = [float(tensor.detach().min()), float(tensor.detach().max())]
    return entry


def _make_without_range(entry: Mapping[str, Any], shape: list[int]) -> torch.Tensor:
    """Make a tensor for a call without values: integers are 0 and 1, which are indices of most tables."""
    dtype = torch_dtype(entry["dtype"])
    is_integral = not (dtype.is_floating_point or dtype.is_complex)
    return torch.randint(0, 2, shape).to(dtype) if is_integral else torch.randn(shape).to(dtype)


def _make_tensor(entry: Mapping[str, Any], shape: list[int]) -> torch.Tensor:
    dtype = torch_dtype(entry["dtype"])
    if "range" not in entry or dtype.is_complex:
        return (
            torch.randn(shape).to(dtype)
            if dtype.is_floating_point or dtype.is_complex
            else torch.zeros(shape, dtype=dtype)
        )
    low, high = entry["range"]
    if dtype.is_floating_point:
        tensor = float(low) + (float(high) - float(low)) * torch.rand(shape)
    else:
        tensor = torch.randint(int(low), int(high) + 1, shape)
    # Both ends of the range occur: other example values are made from this tensor.
    tensor.view(-1)[:1], tensor.view(-1)[-1:] = low, high
    return tensor.to(dtype)
