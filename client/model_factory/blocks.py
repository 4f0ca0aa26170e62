"""What a server's configs may name, described for people."""

from __future__ import annotations

from dataclasses import dataclass


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
