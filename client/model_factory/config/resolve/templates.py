"""``templates`` and ``_template_``: mappings that start as a copy of a named one."""

from __future__ import annotations

from model_factory.config.bounds import MAX_EXPANSION_DEPTH
from model_factory.config.resolve.merge import merge
from model_factory.config.syntax.bounded_nodes import ListBuilder, MapBuilder
from model_factory.config.syntax.expect import require_map, require_text
from model_factory.config.syntax.nodes import ConfigPath, ListNode, MapNode, Node, error_at
from model_factory.wording import nearest, quoted


def expand_templates(tree: MapNode) -> MapNode:
    """Return the tree with every ``_template_`` replaced by its template and ``templates`` gone.

    A mapping's own keys are expanded before they are merged on top of the template. Templates that nobody uses are
    checked all the same. Raises ConfigError for an unknown template and for a loop.
    """
    root = MapBuilder(tree.place)
    for key, value in tree.entries.items():
        if key != "templates":
            root.add(key, value)
    written = tree.entries.get("templates")
    expansion = _Expansion(None if written is None else require_map(written, ("templates",)))
    expansion.check_all()
    return expansion.mapping(root.build(), (), 0)


class _Expansion:
    """One expansion; each template is expanded once and its result shared by all its users."""

    def __init__(self, templates: MapNode | None) -> None:
        self._written = templates.entries if templates else {}
        self._done: dict[str, MapNode] = {}
        self._open: list[str] = []

    def check_all(self) -> None:
        for name, body in self._written.items():
            self._template(name, body, 0)

    def mapping(self, node: MapNode, path: ConfigPath, depth: int) -> MapNode:
        if depth > MAX_EXPANSION_DEPTH:
            raise error_at(node, path, f"templates lead more than {MAX_EXPANSION_DEPTH} steps deep")
        own = MapBuilder(node.place, path)
        for key, value in node.entries.items():
            if key != "_template_":
                own.add(key, self._node(value, (*path, key), depth + 1))
        if "_template_" not in node.entries:
            return own.build()
        template = self._template_named_by(node.entries["_template_"], (*path, "_template_"), depth)
        return merge(template, own.build(), path)

    def _node(self, node: Node, path: ConfigPath, depth: int) -> Node:
        if isinstance(node, MapNode):
            return self.mapping(node, path, depth)
        if not isinstance(node, ListNode):
            return node
        items = ListBuilder(node.place, path)
        for index, item in enumerate(node.items):
            items.add(self._node(item, (*path, index), depth + 1))
        return items.build()

    def _template_named_by(self, reference: Node, path: ConfigPath, depth: int) -> MapNode:
        name = require_text(reference, path)
        if name not in self._written:
            raise error_at(reference, path, f"Unknown template {quoted(name)}{nearest(name, self._written)}")
        if name in self._open:
            chain = " -> ".join([*self._open[self._open.index(name) :], name])
            raise error_at(reference, path, f"Template cycle detected: {chain}")
        return self._template(name, self._written[name], depth)

    def _template(self, name: str, body: Node, depth: int) -> MapNode:
        if name not in self._done:
            self._open.append(name)
            path = ("templates", name)
            self._done[name] = self.mapping(require_map(body, path), path, depth + 1)
            self._open.pop()
        return self._done[name]
