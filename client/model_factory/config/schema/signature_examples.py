"""The optional top-level ``signature``: example inputs, with which a server records the forward.

A mapping from every input of the model to an example: a tensor ``{shape: [2, 16], dtype: float32}`` (``dtype``
is optional), null, a plain constant, or lists and mappings of examples.
"""

from __future__ import annotations

import math
from typing import Any

from model_factory.config.bounds import MAX_SIGNATURE_ELEMENTS
from model_factory.config.syntax.cursor import Cursor
from model_factory.config.syntax.nodes import ListNode, Scalar
from model_factory.config.syntax.plain_data import to_plain
from model_factory.limits import MAX_EXAMPLE_RANK
from model_factory.wording import listed, nearest, quoted

DTYPES = (
    "float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64",
)  # fmt: skip
"""The dtypes of example tensors, by torch's names; the first is the default."""

TENSOR_KEYS = ("shape", "dtype")


def read_signature(at: Cursor, inputs: tuple[str, ...]) -> dict[str, Any]:
    """Return the signature as plain data, with an example for each of ``inputs``. Raises ConfigError."""
    examples = at.entries()
    for name, example in examples.items():
        if name not in inputs:
            raise example.error(f"the model has no input {quoted(name)}{nearest(name, inputs)}")
    missing = [name for name in inputs if name not in examples]
    if missing:
        raise at.error(f"every input needs an example (null for None), missing: {listed(missing)}")
    # An input may have the name 'shape', so only the values of the mapping can be tensors.
    if sum(_elements(example) for example in examples.values()) > MAX_SIGNATURE_ELEMENTS:
        raise at.error(f"the example tensors hold more than {MAX_SIGNATURE_ELEMENTS} elements together")
    signature: dict[str, Any] = to_plain(at.node)
    return signature


def _elements(example: Cursor) -> int:
    """Return the number of elements of all tensors in an example."""
    if isinstance(example.node, Scalar):
        return 0
    if isinstance(example.node, ListNode):
        return sum(_elements(item) for item in example.items("examples"))
    if "shape" in example.node.entries:
        return _tensor_elements(example)
    return sum(_elements(item) for item in example.entries().values())


def _tensor_elements(example: Cursor) -> int:
    entries = example.entries(TENSOR_KEYS)
    if "dtype" in entries:
        entries["dtype"].one_of(DTYPES)
    shape = entries["shape"].items("sizes")
    if len(shape) > MAX_EXAMPLE_RANK:
        raise entries["shape"].error(f"{len(shape)} axes are too many; at most {MAX_EXAMPLE_RANK}")
    return math.prod(_size(item) for item in shape)


def _size(at: Cursor) -> int:
    size = at.scalar_value()
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise at.error(f"a size must be a positive integer, found {at.found}")
    return size
