"""What a server's configs may name, described for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockArgument:
    """One argument of a block."""

    name: str
    """With its stars, if it takes many."""
    annotation: str
    """As Python writes it; empty: there is none."""
    required: bool
    """Whether a config must give it."""
    default: str
    """As Python writes it; empty: there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Something that a config may name."""

    name: str
    """As a config writes it: a ``_type_``, or a ``call`` with its ``op:``."""
    summary: str
    """The first line of its documentation; may be empty."""
    origin: str
    """Who registered it: ``torch``, ``builtin`` or the plug-in's module; empty if nobody said."""
    tags: tuple[str, ...]
    """Words given at its registration."""
    arguments: tuple[BlockArgument, ...]
    """In order; empty also where the signature cannot be read."""


SELF_CHECK = "model_factory.SelfCheck"
"""The registry key of a small block that every server has."""

SELF_CHECK_WIDTH = 3

SELF_CHECK_CONFIG: Mapping[str, Any] = MappingProxyType(
    {
        "schema_version": 1,
        "model": {"sequential": {"layers": [{"_type_": SELF_CHECK, "width": SELF_CHECK_WIDTH}, {"_type_": "nn.ReLU"}]}},
    }
)
"""A model of one block with a recorded program and one torch layer; what a server and the doctor build as a check."""
