"""``${...}``: references to other values of the config and to environment variables.

A string with nothing but a reference becomes the referenced value, with its type. In a longer string a reference is
written as text: mappings and lists as JSON, every other value as Python's ``str`` (``True``, ``None``, ``0.1``). The
result of a reference is never searched for further references: a variable with the text ``${...}`` stays text. Keys
are never interpolated.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import replace

from model_factory.config.bounds import MAX_EXPANSION_DEPTH, MAX_TEXT_BYTES
from model_factory.config.resolve.env import read_variable
from model_factory.config.resolve.references import ConfigReference, EnvReference, split_references
from model_factory.config.syntax.cursor import Cursor
from model_factory.config.syntax.nodes import ConfigPath, MapNode, Node, Scalar
from model_factory.config.syntax.plain_data import to_plain
from model_factory.errors import path_text
from model_factory.wording import nearest, quoted

_TOO_DEEP = f"references lead more than {MAX_EXPANSION_DEPTH} steps deep"


def interpolate(tree: MapNode, env: Mapping[str, str]) -> MapNode:
    """Return the tree with every reference replaced.

    Raises ConfigError for a malformed or unknown reference, a cycle, a missing variable, a failed cast, and a result
    over the bounds.
    """
    result = _Interpolation(tree, env).value(Cursor(tree))
    assert isinstance(result, MapNode)  # the value of a mapping is a mapping
    return result


class _Interpolation:
    """One interpolation; each node is computed once, for all references to the node."""

    def __init__(self, root: MapNode, env: Mapping[str, str]) -> None:
        self._root = Cursor(root)
        self._env = env
        self._done: dict[Node, Node] = {}
        self._open: dict[Node, ConfigPath] = {}

    def value(self, at: Cursor) -> Node:
        """Return the node with every reference replaced."""
        node = at.node
        if node in self._done:
            return self._done[node]
        if node in self._open:
            links = list(self._open)
            cycle = [self._open[link] for link in links[links.index(node) :]]
            raise at.error(_cycle([*cycle, at.path]))
        if len(self._open) > MAX_EXPANSION_DEPTH:
            raise at.error(_TOO_DEEP)
        self._open[node] = at.path
        result = self._scalar(at, node) if isinstance(node, Scalar) else at.rebuilt(self.value)
        del self._open[node]
        self._done[node] = result
        return result

    def _scalar(self, at: Cursor, node: Scalar) -> Node:
        if not isinstance(node.value, str) or "${" not in node.value:
            return node
        try:
            pieces = split_references(node.value)
        except ValueError as error:
            raise at.error(str(error)) from None
        if len(pieces) == 1 and not isinstance(pieces[0], str):
            return replace(self._referred(pieces[0], at), place=node.place)
        texts: list[str] = []
        size = 0
        for piece in pieces:
            text = piece if isinstance(piece, str) else _as_text(self._referred(piece, at), at)
            size += len(text)
            if size > MAX_TEXT_BYTES:
                raise at.error(f"the config is too large: a text of more than {MAX_TEXT_BYTES} bytes")
            texts.append(text)
        return at.scalar("".join(texts))

    def _referred(self, reference: ConfigReference | EnvReference, at: Cursor) -> Node:
        """Return the target of a reference at ``at``."""
        if isinstance(reference, EnvReference):
            return read_variable(reference, self._env, at)
        here, ahead = self._root, deque(reference.path)
        followed: dict[Node, ConfigPath] = {}
        is_final = False
        while ahead:
            if isinstance(here.node, Scalar) and not is_final:
                # The path leads through another reference: only the values on that path are computed.
                other = _whole_reference(here.node)
                if other is not None:
                    if here.node in followed:
                        raise at.error(_cycle([*followed.values(), here.path]))
                    if len(followed) > MAX_EXPANSION_DEPTH:
                        raise at.error(_TOO_DEEP)
                    followed[here.node] = here.path
                    here = self._root
                    ahead.extendleft(reversed(other.path))
                    continue
                here = here.on(self.value(here))  # the value of a variable is final
                is_final = True
            child = here.get(ahead[0])
            if child is None:
                raise at.error(_unknown(here, tuple(ahead)))
            here = child
            ahead.popleft()
        return here.node if is_final else self._value_along(here, followed)

    def _value_along(self, at: Cursor, followed: dict[Node, ConfigPath]) -> Node:
        """Return the value at ``at``; a value made from one of the references ``followed`` is a cycle."""
        links = {link: path for link, path in followed.items() if link not in self._open}
        self._open |= links
        result = self.value(at)
        for link in links:
            del self._open[link]
        return result


def _cycle(paths: list[ConfigPath]) -> str:
    return f"Interpolation cycle detected: {' -> '.join(path_text(path) for path in paths)}"


def _whole_reference(node: Scalar) -> ConfigReference | None:
    """Return the reference to another value if the scalar has no other text, else None."""
    if not isinstance(node.value, str) or "${" not in node.value:
        return None
    try:
        pieces = split_references(node.value)
    except ValueError:  # reported when the scalar itself is computed
        return None
    only = pieces[0] if len(pieces) == 1 else None
    return only if isinstance(only, ConfigReference) else None


def _as_text(value: Node, at: Cursor) -> str:
    if isinstance(value, Scalar):
        return str(value.value)
    try:
        return json.dumps(to_plain(value), ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise at.error("JSON cannot write an infinite float or NaN") from None


def _unknown(parent: Cursor, ahead: ConfigPath) -> str:
    part = ahead[0]
    above = quoted(path_text(parent.path)) if parent.path else "the config"
    reason = f"Unknown path {quoted('${' + path_text((*parent.path, *ahead)) + '}')}: {above}"
    if isinstance(parent.node, MapNode) and isinstance(part, str):
        return f"{reason} has no {quoted(part)}{nearest(part, parent.node.entries)}"
    # A scalar is not shown: the value may be a secret from a variable.
    kind = "a single value" if isinstance(parent.node, Scalar) else parent.found
    return f"{reason} is {kind} and has no {'index' if isinstance(part, int) else 'key'} {quoted(part)}"
