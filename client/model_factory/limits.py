"""Bounds on messages and files, each with a unit. A bound is checked before memory or disk space is used."""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

MAX_DOCUMENT_BYTES = 64 * MIB
"""Size of a descriptor, a set of programs or a manifest, as JSON."""

MAX_NUMBER_CHARS = 200
"""Characters of a number: the time to parse a number can grow with the square of the length."""

MAX_NAME_CHARS = 1000
"""Characters of the name of a module, class, tensor or argument."""

MAX_MODULES = 100_000
"""Modules in a descriptor."""

MAX_TENSORS = 100_000
"""Parameters and buffers in a descriptor."""

MAX_STEPS = 100_000
"""Steps in a program."""

MAX_CONSTANT_BYTES = 4 * MIB
"""Values of a constant in a program."""

MAX_RESULT_ELEMENTS = 2**34
"""Numbers in a tensor that a step of a program makes, with sizes of 0 counted as 1."""

MAX_PARTS = 2**20
"""Items of a list or tuple that a step of a program makes."""

MAX_BRANCHES = 64
"""Programs per call signature of a module; the programs differ in the outcomes of guards on values."""

BLOB_CHUNK_BYTES = 2 * MIB
"""Data in a single message of a blob stream."""

MAX_MESSAGE_BYTES = 128 * MIB
"""Size of a gRPC message; a descriptor is sent as a single message."""

UNCOMPRESSED_ONLY = ("grpc.compression_enabled_algorithms_bitset", 1)
"""Channel option that refuses compressed messages: older versions of gRPC decompress first and then check the size."""

MAX_EXAMPLE_RANK = 16
"""Axes of a tensor in an example call or in a call to record."""

MAX_COMPONENTS = 256
"""Components in a request."""

MAX_SOURCE_FILES = 1_000
"""Files in a bundle of source code."""

MAX_SOURCE_FILE_BYTES = 2 * MIB
"""Size of a file in a bundle."""

MAX_SOURCE_BYTES = 16 * MIB
"""Size of a bundle."""

MAX_SOURCE_NAME_BYTES = 255
"""Length of a file name in a bundle."""

MAX_WARNINGS = 100
"""Warnings of the constructors of a component."""

MAX_WARNING_CHARS = 500
"""Characters of a warning; the middle of a longer text is left out."""

MAX_PORT = 65535
"""The largest TCP port."""

MAX_INTEGER = 2**31
"""Integers of configs, programs and attributes, and sizes of tensors, above and below 0: products of two fit into the
64 bits of torch's sizes."""

MAX_ELEMENTS = 2**48
"""Numbers in a tensor of a descriptor, with sizes of 0 counted as 1."""

MAX_RANK = 16
"""Axes of a tensor of a descriptor."""
