"""Blocks: descriptions of the names that configs can use on a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from model_factory.wording import html_table, printable, shortened

_SHOWN_CHARS = 200


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


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Block:
    """A module type or an op that a config can name.

    >>> bias = BlockArgument(name="bias", annotation="bool", required=False, default="True")
    >>> Block(name="nn.Linear", summary="A layer.", origin="torch", tags=(), arguments=(bias,))
    <Block nn.Linear(bias=True)>
    """

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

    @property
    def signature(self) -> str:
        """Name and arguments with defaults, as a call in Python."""
        parts = [item.name if not item.default else f"{item.name}={item.default}" for item in self.arguments]
        return f"{self.name}({', '.join(parts)})"

    def __repr__(self) -> str:
        return f"<Block {printable(shortened(self.signature, _SHOWN_CHARS))}>"

    def _repr_html_(self) -> str:
        rows = [(item.name, item.annotation, "required" if item.required else item.default) for item in self.arguments]
        return html_table((self.name, self.summary, ", ".join((self.origin, *self.tags))), rows)


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
