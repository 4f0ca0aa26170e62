"""All stages of a config: load and merge files, templates, list directives, interpolation, checks, wire form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from model_factory.config.bounds import ConfigBounds
from model_factory.config.canonical import parse_wire, wire_and_digest, wire_tree
from model_factory.config.resolve.interpolate import interpolate
from model_factory.config.resolve.load import DEFAULTS, has_defaults, load_file, without_defaults
from model_factory.config.resolve.merge import apply_directives
from model_factory.config.resolve.templates import expand_templates
from model_factory.config.schema.check import check
from model_factory.config.schema.model_config import ModelConfig
from model_factory.config.schema.order_digest import order_digest
from model_factory.config.syntax.cursor import Cursor
from model_factory.config.syntax.nodes import ConfigPath, MapNode, Place
from model_factory.config.syntax.plain_data import from_plain, to_plain


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedConfig:
    """A config with every file, template, directive and reference resolved, and with its checked model.

    >>> relu = {"schema_version": 1, "model": {"sequential": {"layers": [{"_type_": "nn.ReLU"}]}}}
    >>> config = resolve_mapping(relu | {"notes": "first try"}, env={})
    >>> config.plain() == relu
    True
    >>> config.place_of(("model", "sequential"))
    '<config>'
    """

    tree: MapNode = field(repr=False)
    """Every value with its place, the free keys (``params``, notes) included."""
    model: ModelConfig
    """The checked model."""
    wire: bytes = field(repr=False)
    """The part of the config that a server needs, without free keys; :func:`parse_config` reads these bytes."""
    digest: str
    """blake3 of the wire form with sorted keys: the same for any order of keys."""
    order_digest: str
    """blake3 of the key orders with a meaning. ``digest`` and ``order_digest`` together identify the model."""

    def plain(self) -> dict[str, Any]:
        """Return the part of the config that a server needs as plain data; every container is a new object."""
        document: dict[str, Any] = to_plain(wire_tree(self.tree))
        return document

    def place_of(self, path: ConfigPath) -> str:
        """Return ``file:line:column`` of the value at ``path``, or of the deepest value on the way to ``path``."""
        return str(Cursor(self.tree).nearest(path).node.place)


def resolve_file(path: str | PathLike[str], env: Mapping[str, str]) -> ResolvedConfig:
    r"""Resolve the config in a YAML file; ``env`` holds the variables for ``${env:...}``.

    Raises ConfigError with the file, line and column.

    >>> import pathlib, tempfile
    >>> text = "schema_version: 1\nmodel: {sequential: {layers: [{_type_: nn.ReLU, inplace: '${env:bool:FAST}'}]}}"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "policy.yaml")
    ...     _ = path.write_text(text)
    ...     resolve_file(path, env={"FAST": "yes"}).model.modules
    {'layer0': {'_type_': 'nn.ReLU', 'inplace': True}}
    """
    return _resolved(load_file(Path(path)), env)


def resolve_mapping(mapping: Mapping[str, Any], env: Mapping[str, str], source: str = "<config>") -> ResolvedConfig:
    """Resolve an in-memory config; ``env`` holds the variables for ``${env:...}``, errors call the config ``source``.

    Raises ConfigError with the path inside the config.

    >>> layers = [{"_type_": "nn.Linear", "in_features": 4, "out_features": "${params.width}"}]
    >>> config = {"schema_version": 1, "params": {"width": 8}, "model": {"sequential": {"layers": layers}}}
    >>> resolve_mapping(config, env={}).model.modules
    {'layer0': {'_type_': 'nn.Linear', 'in_features': 4, 'out_features': 8}}
    """
    root = Cursor(from_plain(mapping, Place(file=source)))
    tree = root.node
    if not isinstance(tree, MapNode):
        raise root.error(f"a config must be a mapping, found {root.found}")
    if has_defaults(tree):
        reason = "'defaults' names files relative to a config file, and an in-memory config has no file"
        raise root.entry(DEFAULTS).error(reason)
    return _resolved(without_defaults(tree), env)


def parse_config(wire: bytes, bounds: ConfigBounds | None = None) -> ResolvedConfig:
    """Read a config from the wire. ``${`` is plain text there, and no file is opened.

    ``bounds`` are a server's own, checked before memory grows.

    Raises:
        LimitError: the config is over ``bounds``.
        ConfigError: the config is wrong.

    Example:
        >>> wire = b'{"schema_version":1,"model":{"sequential":{"layers":[{"_type_":"nn.ReLU"}]}}}'
        >>> parse_config(wire).wire == wire
        True
    """
    return _checked(parse_wire(wire, bounds))


def _resolved(tree: MapNode, env: Mapping[str, str]) -> ResolvedConfig:
    return _checked(interpolate(apply_directives(expand_templates(tree)), env))


def _checked(tree: MapNode) -> ResolvedConfig:
    model = check(tree)
    sent = wire_tree(tree)
    wire, digest = wire_and_digest(sent)
    return ResolvedConfig(tree=tree, model=model, wire=wire, digest=digest, order_digest=order_digest(to_plain(sent)))
