"""Blocks: descriptions of the names that configs can use on a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockArgument:
    """One argument of a block."""

    name: str
    """Name, with stars for ``*args`` and ``**kwargs``."""
    annotation: str
    """Annotation in Python syntax; empty without annotation."""
    required: bool
    """Whether a config must give the argument."""
    default: str
    """Default value in Python syntax; empty without default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A module type or an op that a config can name."""

    name: str
    """Name in a config: the value of ``_type_``, or of ``call`` with the prefix ``op:``."""
    summary: str
    """First line of the documentation; may be empty."""
    origin: str
    """Registered by: ``torch``, ``builtin`` or the module of a plug-in; empty if unknown."""
    tags: tuple[str, ...]
    """Tags from the registration."""
    arguments: tuple[BlockArgument, ...]
    """Arguments in order; empty also for an unreadable signature."""


SELF_CHECK = "model_factory.SelfCheck"
"""Registry key of a small block on every server."""

SELF_CHECK_WIDTH = 3
"""Size of the last axis of the block's input."""

SELF_CHECK_CONFIG: Mapping[str, Any] = MappingProxyType(
    {
        "schema_version": 1,
        "model": {"sequential": {"layers": [{"_type_": SELF_CHECK, "width": SELF_CHECK_WIDTH}, {"_type_": "nn.ReLU"}]}},
    }
)
"""A model of one recorded block and one torch layer; the server's warm-up and the doctor build the model as a check."""
