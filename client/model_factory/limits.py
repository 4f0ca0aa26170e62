"""Bounds on what crosses the wire and lies on the disk, each with its unit. Checked before the thing grows."""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

MAX_DOCUMENT_BYTES = 64 * MIB
"""Of a descriptor, a set of programs or a manifest, as JSON."""

MAX_NUMBER_CHARS = 200
"""Characters of a written number: reading a number can take time that is quadratic in its length."""

MAX_MODULES = 100_000
"""Modules in one descriptor."""

MAX_TENSORS = 100_000
"""Parameters and buffers in one descriptor."""

MAX_STEPS = 100_000
"""Steps in one program."""

MAX_BRANCHES = 64
"""Programs of one call form of a module that differ in the outcomes of guards on values."""

BLOB_CHUNK_BYTES = 2 * MIB
"""Of one message of a blob stream."""

MAX_MESSAGE_BYTES = 128 * MIB
"""Of one gRPC message; descriptors travel inside one."""

MAX_EXAMPLE_RANK = 16
"""Axes of one tensor of a call that is an example, or that is to be recorded."""

MAX_COMPONENTS = 256
"""Components in one request."""

MAX_SOURCE_FILES = 1_000
"""Files in one bundle of source."""

MAX_SOURCE_FILE_BYTES = 2 * MIB
"""Of one file of it."""

MAX_SOURCE_BYTES = 16 * MIB
"""Of a bundle."""

MAX_SOURCE_NAME_BYTES = 255
"""Of the name of a file in a bundle."""

MAX_PORT = 65535
"""The largest TCP port."""
