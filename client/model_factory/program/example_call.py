"""A call's arguments as JSON, tensors as dtype, shape and range only: what a server needs to record the call's form.

::

    {"form": [["x", {"tensor": 3}], ["scale", {"const": 1.0}]], "tensors": [{"dtype": "float32", "shape": [2, 5, 16]}]}

Where the forward decides by values and the call has come to a side that there is no program for, ``outcomes`` has how
its decisions up to there turned out: ``"outcomes": [true, 3]``. Where another method than the forward is called,
``method`` names it. Attributes of torch modules that the trainer has set are in ``reads``:
``"reads": [["drop", "p", 0.25]]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from model_factory.documents import decode_document, encode_document
from model_factory.errors import FormatError, plain_text
from model_factory.limits import MAX_EXAMPLE_RANK
from model_factory.program.call_signature import FORWARD, Read, call_signature, rebuild
from model_factory.program.codec import decode_call_signature, decode_reads, encode_call_signature, encode_reads
from model_factory.program.ir import Outcome
from model_factory.program.torch_names import torch_dtype, torch_name

MAX_EXAMPLE_ELEMENTS = 1 << 28
"""Numbers in all tensors of one call."""
MAX_EXAMPLE_TENSORS = 1000
"""Tensors of one call."""

_MALFORMED = (
    *(ArithmeticError, AttributeError, LookupError, RecursionError, RuntimeError, StopIteration, TypeError),
    ValueError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleCall:
    """A call to record."""

    arguments: Mapping[str, Any]
    """Of the forward, by name."""
    outcomes: tuple[Outcome, ...] = ()
    """Of the first decisions by values in it."""
    method: str = FORWARD
    """What is called."""
    reads: tuple[Read, ...] = ()
    """Attributes of torch modules that the trainer has set to other values than the config."""


def encode_call(
    arguments: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    outcomes: tuple[Outcome, ...] = (),
    method: str = FORWARD,
    reads: Sequence[Read] = (),
) -> bytes:
    """Write bound arguments as a document, floating tensors as ones of ``dtype`` if it is given.

    Raises:
        CallSignatureError: an argument cannot be described.
    """
    form, leaves = call_signature(arguments)
    document: dict[str, Any] = {
        "form": [[name, encode_call_signature(item)] for name, item in form],
        "tensors": [_encode_tensor(leaf, dtype, with_range=bool(outcomes)) for leaf in leaves],
    }
    document |= {"outcomes": list(outcomes)} if outcomes else {}
    document |= {"reads": encode_reads(reads)} if reads else {}
    return encode_document(document | ({} if method == FORWARD else {"method": method}))


def decode_call(data: bytes) -> ExampleCall:
    """Make arguments like the described ones, with random tensors.

    Raises:
        FormatError: the document is malformed, or its tensors are too large.
    """
    document = decode_document(data, "the call")
    try:
        form = tuple((str(name), decode_call_signature(item)) for name, item in document["form"])
        if len(document["tensors"]) > MAX_EXAMPLE_TENSORS:
            raise FormatError(f"the call has {len(document['tensors'])} tensors; at most {MAX_EXAMPLE_TENSORS}")
        shapes = [[int(size) for size in entry["shape"]] for entry in document["tensors"]]
        if any(len(shape) > MAX_EXAMPLE_RANK for shape in shapes):
            raise FormatError(f"a tensor of the call has {max(map(len, shapes))} axes; at most {MAX_EXAMPLE_RANK}")
        elements = sum(_elements(shape) for shape in shapes)
        if elements > MAX_EXAMPLE_ELEMENTS:
            raise FormatError(f"the call's tensors hold {elements} numbers; at most {MAX_EXAMPLE_ELEMENTS} are allowed")
        leaves = [_make_tensor(entry, shape) for entry, shape in zip(document["tensors"], shapes, strict=True)]
        arguments = rebuild(form, leaves)
        outcomes = tuple(document.get("outcomes", ()))
        method = str(document.get("method", FORWARD))
        reads = decode_reads(document.get("reads", []))
    except _MALFORMED as error:
        raise FormatError(f"malformed call: {type(error).__name__}: {plain_text(error)}") from None
    if len(call_signature(arguments)[1]) != len(leaves):
        raise FormatError("malformed call: the number of tensors does not match the form")
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
        # Index tensors: the range is what keeps them inside an embedding.
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
    # The ends are there in any case: values like these are made from it.
    tensor.view(-1)[:1], tensor.view(-1)[-1:] = low, high
    return tensor.to(dtype)
