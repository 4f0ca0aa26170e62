"""The optional top-level ``signature``: example inputs, from which a server records the forward.

A mapping from every input of the model to an example: a tensor ``{shape: [2, 16], dtype: float32}`` (``dtype``
may be left out), null, a plain constant, or lists and mappings of examples.
"""

from __future__ import annotations

import math

from model_factory.config.bounds import MAX_SIGNATURE_ELEMENTS
from model_factory.config.syntax.expect import require_keys, require_list, require_map, require_one_of
from model_factory.config.syntax.nodes import ConfigPath, ListNode, MapNode, Node, Scalar, error_at, found
from model_factory.limits import MAX_EXAMPLE_RANK
from model_factory.wording import listed, nearest, quoted

DTYPES = (
    "float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64",
)  # fmt: skip
"""What an example tensor may hold, by torch's names; the first is the default."""


def check_signature(node: Node, path: ConfigPath, inputs: tuple[str, ...]) -> MapNode:
    """Return the signature, which must give an example for each of ``inputs``. Raises ConfigError."""
    examples = require_map(node, path)
    for name, example in examples.entries.items():
        if name not in inputs:
            reason = f"the model has no input {quoted(name)}{nearest(name, inputs)}"
            raise error_at(example, (*path, name), reason)
    missing = [name for name in inputs if name not in examples.entries]
    if missing:
        raise error_at(node, path, f"every input needs an example (null for None), missing: {listed(missing)}")
    if _elements(examples, path) > MAX_SIGNATURE_ELEMENTS:
        raise error_at(node, path, f"the example tensors hold more than {MAX_SIGNATURE_ELEMENTS} elements together")
    return examples


def _elements(node: Node, path: ConfigPath) -> int:
    """Return how many elements the tensors of an example hold."""
    if isinstance(node, ListNode):
        return sum(_elements(item, (*path, index)) for index, item in enumerate(node.items))
    if isinstance(node, Scalar):
        return 0
    if "shape" in node.entries and len(path) > 1:  # an input may be called shape
        return _tensor_elements(node, path)
    return sum(_elements(item, (*path, key)) for key, item in node.entries.items())


def _tensor_elements(node: MapNode, path: ConfigPath) -> int:
    require_keys(node, path, ("shape", "dtype"))
    if "dtype" in node.entries:
        require_one_of(node.entries["dtype"], (*path, "dtype"), DTYPES)
    shape_path = (*path, "shape")
    shape = require_list(node.entries["shape"], shape_path, "sizes")
    if len(shape.items) > MAX_EXAMPLE_RANK:
        raise error_at(shape, shape_path, f"{len(shape.items)} axes are too many; at most {MAX_EXAMPLE_RANK}")
    sizes = []
    for index, item in enumerate(shape.items):
        size = item.value if isinstance(item, Scalar) else None
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise error_at(item, (*shape_path, index), f"a size must be a positive integer, found {found(item)}")
        sizes.append(size)
    return math.prod(sizes)
