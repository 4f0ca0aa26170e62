"""An example call as JSON: tensors as dtype, shape and range only. A server records a program from an example call.

::

    {"call_signature": [["x", {"tensor": 3}], ["scale", {"const": 1.0}]],
     "tensors": [{"dtype": "float32", "shape": [2, 5, 16]}]}

Optional keys:

- ``outcomes``: outcomes of the call's first decisions by values, for a branch without a program: ``[true, 3]``
- ``method``: name of the called method, other than the forward
- ``reads``: attributes of torch modules that the trainer has set: ``[["drop", "p", 0.25]]``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from model_factory.documents import decode_document, encode_document
from model_factory.errors import FormatError, plain_text
from model_factory.limits import MAX_EXAMPLE_RANK
from model_factory.program.call_signature import call_signature, rebuild_arguments
from model_factory.program.codec.programs import decode_reads, encode_reads
from model_factory.program.codec.signatures import decode_call_signature, encode_call_signature
from model_factory.program.ir import Outcome
from model_factory.program.recorded_program import FORWARD, Read
from model_factory.program.torch_names import torch_dtype, torch_name

MAX_EXAMPLE_ELEMENTS = 1 << 28
"""Maximum of numbers in all tensors of one call."""
MAX_EXAMPLE_TENSORS = 1000
"""Maximum of tensors in one call."""

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


def encode_call(
    arguments: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    outcomes: tuple[Outcome, ...] = (),
    method: str = FORWARD,
    reads: Sequence[Read] = (),
) -> bytes:
    """Write bound arguments as a document, floating tensors with ``dtype``, if given.

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
        leaves = [_make_tensor(entry, shape) for entry, shape in zip(document["tensors"], shapes, strict=True)]
        arguments = rebuild_arguments(signature, leaves)
        outcomes = tuple(document.get("outcomes", ()))
        method = str(document.get("method", FORWARD))
        reads = decode_reads(document.get("reads", []))
    except _MALFORMED as error:
        raise FormatError(f"malformed call: {type(error).__name__}: {plain_text(error)}") from None
    if len(call_signature(arguments)[1]) != len(leaves):
        raise FormatError("malformed call: the number of tensors does not match the call signature")
    if not all(type(outcome) in {bool, int} for outcome in outcomes):
        raise FormatError("malformed call: an outcome is neither a truth value nor an integer")
    return ExampleCall(arguments=arguments, outcomes=outcomes, method=method, reads=reads)


def _elements(shape: list[int]) -> int:
    total = 1
    for size in shape:
        if size < 0:
            raise FormatError(f"{size} is not a size")
        total *= size
    return total


def _encode_tensor(tensor: torch.Tensor, floating: torch.dtype | None, *, with_range: bool) -> dict[str, Any]:
    dtype = floating if floating is not None and tensor.is_floating_point() else tensor.dtype
    entry: dict[str, Any] = {"dtype": torch_name(dtype), "shape": list(tensor.shape)}
    if not (tensor.is_floating_point() or tensor.is_complex()) and tensor.numel():
        # Index tensors: the range keeps indices inside an embedding.
        entry["range"] = [int(tensor.min()), int(tensor.max())]
    elif with_range and tensor.is_floating_point() and tensor.isfinite().all() and tensor.numel():
        entry["range"] = [float(tensor.detach().min()), float(tensor.detach().max())]
    return entry


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
