"""What a config may grow to. Each bound is checked before the thing it bounds is built."""

from __future__ import annotations

MAX_CONFIG_BYTES = 1024 * 1024
"""Bytes of one YAML file, and of a resolved config on the wire."""

MAX_TEXT_BYTES = 1024 * 1024
"""UTF-8 bytes of all keys and strings of a config together, after aliases, templates and interpolation."""

MAX_KEY_CHARS = 256
"""Characters of a mapping key: keys become keyword arguments, module names and parts of error messages."""

MAX_NODES = 100_000
"""Values in a config, containers included, after aliases, templates and interpolation."""

MAX_NESTING = 64
"""Mappings and lists inside each other."""

MAX_EXPANSION_DEPTH = 128
"""Steps down the tree and along templates or references that lead to one value. Keeps the call stack small."""

MAX_FILES = 64
"""Files that one config may load through ``defaults``, each counted as often as it is named."""

MAX_INT_BITS = 128
"""Bits of an integer: no torch or numpy argument is wider, seeds included."""

MAX_SIGNATURE_ELEMENTS = 2**26
"""Elements of all example tensors of a ``signature`` together: 256 MiB as float32."""
