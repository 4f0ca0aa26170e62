"""The largest config: each bound is checked before memory grows."""

from __future__ import annotations

from dataclasses import dataclass

from model_factory.errors import LimitError

MAX_CONFIG_BYTES = 1024 * 1024
"""Bytes of one YAML file, and of a resolved config on the wire."""

MAX_TEXT_BYTES = 1024 * 1024
"""UTF-8 bytes of all keys and strings of a config together, after aliases, templates and interpolation."""

MAX_KEY_CHARS = 256
"""Characters of a mapping key: keys become keyword arguments, module names and parts of error messages."""

MAX_NODES = 100_000
"""Values in a config, containers included, after aliases, templates and interpolation."""

MAX_NESTING = 64
"""Maximum nesting depth of mappings and lists."""

MAX_EXPANSION_DEPTH = 128
"""Steps down the tree and along templates or references to one value. Keeps the call stack small."""

MAX_FILES = 64
"""Files that one config may load through ``defaults``; a file named twice counts twice."""

MAX_INT_BITS = 128
"""Bits of an integer: no torch or numpy argument is wider, seeds included."""

MAX_SIGNATURE_ELEMENTS = 2**26
"""Elements of all example tensors of a ``signature`` together: 256 MiB as float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigBounds:
    """A server's own bounds on a config from the wire, for :func:`parse_config`. Each method raises LimitError.

    >>> ConfigBounds(max_bytes=100).check_bytes(200)
    Traceback (most recent call last):
    model_factory.errors.LimitError: a config takes at most 100 bytes, got 200
    """

    max_bytes: int = MAX_CONFIG_BYTES
    """Bytes of the wire form."""
    max_values: int = MAX_NODES
    """Values, containers included."""
    max_nesting: int = MAX_NESTING
    """Nesting depth of mappings and lists."""

    def check_bytes(self, size: int) -> None:
        """Refuse a wire form of ``size`` bytes over the bound."""
        if size > self.max_bytes:
            raise LimitError(f"a config takes at most {self.max_bytes} bytes, got {size}")

    def check_shape(self, nodes: int, depth: int) -> None:
        """Refuse a JSON text with too many values or too deep a nesting."""
        if nodes > self.max_values:
            raise LimitError(f"a config has at most {self.max_values} values, got {nodes}")
        if depth > self.max_nesting + 1:  # a float that JSON lacks is written as a mapping, one level deeper
            raise LimitError(f"a config nests at most {self.max_nesting} deep, got {depth}")
