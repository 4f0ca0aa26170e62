"""A call's arguments as JSON, tensors as dtype, shape and range only: what a server needs to record the call's form.

::

    {"form": [["x", {"tensor": 3}], ["scale", {"const": 1.0}]], "tensors": [{"dtype": "float32", "shape": [2, 5, 16]}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from model_factory.documents import decode_document, encode_document
from model_factory.errors import FormatError
from model_factory.graph.call_form import call_form, rebuild
from model_factory.graph.codec import decode_form, encode_form
from model_factory.graph.runner import torch_const

MAX_EXAMPLE_ELEMENTS = 1 << 28
"""Numbers in all tensors of one call."""


def encode_call(arguments: Mapping[str, Any], dtype: torch.dtype | None = None) -> bytes:
    """Write bound arguments as a document, floating tensors as ones of ``dtype`` if it is given.

    Raises:
        CallFormError: an argument cannot be described.
    """
    form, leaves = call_form(arguments)
    return encode_document(
        {
            "form": [[name, encode_form(item)] for name, item in form],
            "tensors": [_encode_tensor(leaf, dtype) for leaf in leaves],
        }
    )


def decode_call(data: bytes) -> dict[str, Any]:
    """Make arguments like the described ones, with random tensors.

    Raises:
        FormatError: the document is malformed, or its tensors are too large.
    """
    document = decode_document(data, "the call")
    try:
        form = tuple((str(name), decode_form(item)) for name, item in document["form"])
        shapes = [[int(size) for size in entry["shape"]] for entry in document["tensors"]]
        elements = sum(_elements(shape) for shape in shapes)
        if elements > MAX_EXAMPLE_ELEMENTS:
            raise FormatError(f"the call's tensors hold {elements} numbers; at most {MAX_EXAMPLE_ELEMENTS} are allowed")
        leaves = [_make_tensor(entry, shape) for entry, shape in zip(document["tensors"], shapes, strict=True)]
        arguments = rebuild(form, leaves)
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration, RuntimeError, RecursionError) as error:
        raise FormatError(f"malformed call: {error!r}") from None
    if len(call_form(arguments)[1]) != len(leaves):
        raise FormatError("malformed call: the number of tensors does not match the form")
    return arguments


def _elements(shape: list[int]) -> int:
    total = 1
    for size in shape:
        if size < 0:
            raise FormatError(f"{size} is not a size")
        total *= size
    return total


def _encode_tensor(tensor: torch.Tensor, floating: torch.dtype | None) -> dict[str, Any]:
    dtype = floating if floating is not None and tensor.is_floating_point() else tensor.dtype
    entry: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch."), "shape": list(tensor.shape)}
    if not (tensor.is_floating_point() or tensor.is_complex()) and tensor.numel():
        # Index tensors: the range is what keeps them inside an embedding.
        entry["range"] = [int(tensor.min()), int(tensor.max())]
    return entry


def _make_tensor(entry: Mapping[str, Any], shape: list[int]) -> torch.Tensor:
    dtype = torch_const(entry["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise FormatError(f"{entry['dtype']!r} is not a dtype")
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape).to(dtype)
    low, high = (int(bound) for bound in entry.get("range", [0, 0]))
    return torch.randint(low, high + 1, shape).to(dtype)
