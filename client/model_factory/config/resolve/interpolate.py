"""``${...}``: references to other values of the config and to environment variables.

A string that is one reference becomes the referenced value, its type kept. In a longer string a reference is
written as text: mappings and lists as JSON, everything else as Python's ``str`` writes it (``True``, ``None``,
``0.1``). What a reference brought in is never searched for further references, so a variable that holds
``${...}`` stays text. Keys are never interpolated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from model_factory.config.bounds import MAX_EXPANSION_DEPTH, MAX_TEXT_BYTES
from model_factory.config.resolve.env import read_variable
from model_factory.config.resolve.references import ConfigReference, EnvReference, split_references
from model_factory.config.syntax.bounded_nodes import ListBuilder, MapBuilder, make_scalar
from model_factory.config.syntax.nodes import ConfigPath, MapNode, Node, Scalar, child_of, error_at, found, lower, moved
from model_factory.errors import path_text
from model_factory.wording import nearest, quoted

_TOO_DEEP = f"references lead more than {MAX_EXPANSION_DEPTH} steps deep"


def interpolate(tree: MapNode, env: Mapping[str, str]) -> MapNode:
    """Return the tree with every reference replaced.

    Raises ConfigError for a malformed or unknown reference, a cycle, a variable that is missing or cannot be cast,
    and a result past the bounds.
    """
    result = _Interpolation(tree, env).value(tree, ())
    assert isinstance(result, MapNode)  # a mapping's value is a mapping
    return result


class _Interpolation:
    """One interpolation; each node is worked out once, however often it is referred to."""

    def __init__(self, root: MapNode, env: Mapping[str, str]) -> None:
        self._root = root
        self._env = env
        self._done: dict[Node, Node] = {}
        self._open: dict[Node, ConfigPath] = {}

    def value(self, node: Node, path: ConfigPath) -> Node:
        """Return the node with nothing left to replace."""
        if node in self._done:
            return self._done[node]
        if node in self._open:
            chain = " -> ".join(path_text(link) for link in self._cycle(node, path))
            raise error_at(node, path, f"Interpolation cycle detected: {chain}")
        if len(self._open) > MAX_EXPANSION_DEPTH:
            raise error_at(node, path, _TOO_DEEP)
        self._open[node] = path
        result = self._replaced(node, path)
        del self._open[node]
        self._done[node] = result
        return result

    def _replaced(self, node: Node, path: ConfigPath) -> Node:
        if isinstance(node, MapNode):
            entries = MapBuilder(node.place, path)
            for key, child in node.entries.items():
                entries.add(key, self.value(child, (*path, key)))
            return entries.build()
        if isinstance(node, Scalar):
            return self._scalar(node, path)
        items = ListBuilder(node.place, path)
        for index, child in enumerate(node.items):
            items.add(self.value(child, (*path, index)))
        return items.build()

    def _scalar(self, node: Scalar, path: ConfigPath) -> Node:
        if not isinstance(node.value, str) or "${" not in node.value:
            return node
        try:
            pieces = split_references(node.value)
        except ValueError as error:
            raise error_at(node, path, str(error)) from None
        if len(pieces) == 1 and not isinstance(pieces[0], str):
            return moved(self._referred(pieces[0], node, path), node.place)
        texts: list[str] = []
        size = 0
        for piece in pieces:
            text = piece if isinstance(piece, str) else _as_text(self._referred(piece, node, path), node, path)
            size += len(text)
            if size > MAX_TEXT_BYTES:
                raise error_at(node, path, f"the config is too large: a text of more than {MAX_TEXT_BYTES} bytes")
            texts.append(text)
        return make_scalar("".join(texts), node.place, path)

    def _referred(self, reference: ConfigReference | EnvReference, at: Scalar, at_path: ConfigPath) -> Node:
        if isinstance(reference, EnvReference):
            return read_variable(reference, self._env, at.place, at_path)
        path = reference.path
        followed: dict[Node, ConfigPath] = {}
        node: Node = self._root
        finished = False
        index = 0
        while index < len(path):
            if isinstance(node, Scalar) and not finished:
                # The way leads through another reference: only what lies on the way there is worked out.
                other = _whole_reference(node)
                if other is not None:
                    if node in followed:
                        chain = " -> ".join(path_text(link) for link in [*followed.values(), path[:index]])
                        raise error_at(at, at_path, f"Interpolation cycle detected: {chain}")
                    if len(followed) > MAX_EXPANSION_DEPTH:
                        raise error_at(at, at_path, _TOO_DEEP)
                    followed[node] = path[:index]
                    node, path, index = self._root, (*other.path, *path[index:]), 0
                    continue
                node = self.value(node, path[:index])  # what a variable brings in is final
                finished = True
            child = child_of(node, path[index])
            if child is None:
                raise error_at(at, at_path, _unknown(path, index, node))
            node, index = child, index + 1
        if finished:
            return node
        links = {link: place for link, place in followed.items() if link not in self._open}
        self._open |= links  # what they bring in as a whole would hold the value asked for
        result = self.value(node, path)
        for link in links:
            del self._open[link]
        return result

    def _cycle(self, node: Node, path: ConfigPath) -> list[ConfigPath]:
        links = list(self._open)
        return [*(self._open[link] for link in links[links.index(node) :]), path]


def _whole_reference(node: Scalar) -> ConfigReference | None:
    """Return the reference to another value that a scalar is, if it is one and nothing else."""
    if not isinstance(node.value, str) or "${" not in node.value:
        return None
    try:
        pieces = split_references(node.value)
    except ValueError:  # told where it is worked out
        return None
    only = pieces[0] if len(pieces) == 1 else None
    return only if isinstance(only, ConfigReference) else None


def _as_text(value: Node, at: Scalar, at_path: ConfigPath) -> str:
    if isinstance(value, Scalar):
        return str(value.value)
    try:
        return json.dumps(lower(value), ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise error_at(at, at_path, "JSON has no word for an infinite float or NaN") from None


def _unknown(path: ConfigPath, index: int, parent: Node) -> str:
    part = path[index]
    above = quoted(path_text(path[:index])) if index else "the config"
    reason = f"Unknown path {quoted('${' + path_text(path) + '}')}: {above}"
    if isinstance(parent, MapNode) and isinstance(part, str):
        return f"{reason} has no {quoted(part)}{nearest(part, parent.entries)}"
    # A scalar is not shown: it may have come from a variable that holds a secret.
    kind = "a single value" if isinstance(parent, Scalar) else found(parent)
    return f"{reason} is {kind} and has no {'index' if isinstance(part, int) else 'key'} {quoted(part)}"
