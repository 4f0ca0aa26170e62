"""``templates`` and ``_template_``: a mapping starts as a copy of a named mapping."""

from __future__ import annotations

from model_factory.config.bounds import MAX_EXPANSION_DEPTH
from model_factory.config.resolve.merge import merge
from model_factory.config.syntax.bounded_nodes import MapBuilder, with_keys
from model_factory.config.syntax.cursor import Cursor
from model_factory.config.syntax.nodes import MapNode, Node
from model_factory.wording import nearest, quoted

TEMPLATES = "templates"
"""The top-level key with all templates by name."""

TEMPLATE = "_template_"
"""The key with the name of the template to copy."""


def expand_templates(tree: MapNode) -> MapNode:
    """Return the tree with every ``_template_`` replaced by its template, and without ``templates``.

    The keys beside ``_template_`` are expanded first, then merged on top of the template. Unused templates are checked
    too. Raises ConfigError for an unknown template and for a loop.
    """
    written = Cursor(tree).get(TEMPLATES)
    expansion = _Expansion({} if written is None else written.entries())
    expansion.check_all()
    return expansion.mapping(Cursor(with_keys(tree, tree.entries.keys() - {TEMPLATES})), 0)


class _Expansion:
    """One expansion; each template is expanded once, and all its uses share the result."""

    def __init__(self, templates: dict[str, Cursor]) -> None:
        self._written = templates
        self._done: dict[str, MapNode] = {}
        self._open: list[str] = []

    def check_all(self) -> None:
        for name in self._written:
            self._template(name, 0)

    def mapping(self, at: Cursor, depth: int) -> MapNode:
        if depth > MAX_EXPANSION_DEPTH:
            raise at.error(f"templates lead more than {MAX_EXPANSION_DEPTH} steps deep")
        entries = at.entries()
        name = entries.get(TEMPLATE)
        own = MapBuilder(at.node.place, at.path)
        for key, value in entries.items():
            if key != TEMPLATE:
                own.add(key, self._node(value, depth + 1))
        expanded = own.build()
        return expanded if name is None else merge(Cursor(self._template_named_by(name, depth)), at.on(expanded))

    def _node(self, at: Cursor, depth: int) -> Node:
        if isinstance(at.node, MapNode):
            return self.mapping(at, depth)
        return at.rebuilt(lambda child: self._node(child, depth + 1))

    def _template_named_by(self, reference: Cursor, depth: int) -> MapNode:
        name = reference.text()
        if name not in self._written:
            raise reference.error(f"Unknown template {quoted(name)}{nearest(name, self._written)}")
        if name in self._open:
            chain = " -> ".join([*self._open[self._open.index(name) :], name])
            raise reference.error(f"Template cycle detected: {chain}")
        return self._template(name, depth)

    def _template(self, name: str, depth: int) -> MapNode:
        if name not in self._done:
            self._open.append(name)
            self._done[name] = self.mapping(self._written[name], depth + 1)
            self._open.pop()
        return self._done[name]
