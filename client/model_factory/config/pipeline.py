"""The way of a config: load and merge its files, templates, list directives, interpolate, check, canonical bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from model_factory.config.canonical import digest, parse_wire, wire_bytes, wire_tree
from model_factory.config.resolve.interpolate import interpolate
from model_factory.config.resolve.load import has_defaults, load_file, without_defaults
from model_factory.config.resolve.merge import settle
from model_factory.config.resolve.templates import expand_templates
from model_factory.config.schema.check import check
from model_factory.config.schema.key_order import order_digest
from model_factory.config.schema.model_config import ModelConfig
from model_factory.config.syntax.lift import lift
from model_factory.config.syntax.nodes import ConfigPath, MapNode, Place, error_at, found, lower, nearest_node


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedConfig:
    """A config with nothing left to resolve."""

    tree: MapNode = field(repr=False)
    """Every value with its place; holds what the wire form drops as well (``params``, notes)."""
    model: ModelConfig
    """The checked model."""
    wire: bytes = field(repr=False)
    """What a server needs of the config; ``parse_config`` reads it."""
    digest: str
    """blake3 of the wire form with sorted keys: the same for any order of keys."""
    order_digest: str
    """blake3 of the key orders that have a meaning; belongs to the model's identity beside ``digest``."""

    def plain(self) -> dict[str, Any]:
        """Return what a server needs of the config as plain data, every container a new object."""
        document: dict[str, Any] = lower(wire_tree(self.tree))
        return document

    def place_of(self, path: ConfigPath) -> str:
        """Return ``file:line:column`` of the value at ``path``, or of the deepest value on the way to it."""
        return str(nearest_node(self.tree, path).place)


def resolve_file(path: str | PathLike[str], env: Mapping[str, str]) -> ResolvedConfig:
    """Resolve the config in a YAML file, with ``${env:...}`` read from ``env``.

    Raises ConfigError, which names the file, line and column.
    """
    return _resolved(load_file(Path(path)), env)


def resolve_mapping(mapping: Mapping[str, Any], env: Mapping[str, str], source: str = "<config>") -> ResolvedConfig:
    """Resolve an in-memory config, with ``${env:...}`` read from ``env``; ``source`` is what errors call it.

    Raises ConfigError, which names the path inside the config.
    """
    tree = lift(mapping, Place(file=source))
    if not isinstance(tree, MapNode):
        raise error_at(tree, (), f"a config must be a mapping, found {found(tree)}")
    if has_defaults(tree):
        reason = "'defaults' names files relative to the file it stands in, so an in-memory config cannot have it"
        raise error_at(tree.entries["defaults"], ("defaults",), reason)
    return _resolved(without_defaults(tree), env)


def parse_config(wire: bytes) -> ResolvedConfig:
    """Read a config from the wire; nothing in it is resolved: ``${`` is plain text and no file is opened.

    Raises ConfigError.
    """
    return _checked(parse_wire(wire))


def _resolved(tree: MapNode, env: Mapping[str, str]) -> ResolvedConfig:
    return _checked(interpolate(settle(expand_templates(tree)), env))


def _checked(tree: MapNode) -> ResolvedConfig:
    model = check(tree)
    sent = wire_tree(tree)
    return ResolvedConfig(
        tree=tree, model=model, wire=wire_bytes(sent), digest=digest(sent), order_digest=order_digest(lower(sent))
    )
