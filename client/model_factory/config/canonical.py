"""The wire form of a config, and its digest.

The wire form is compact UTF-8 JSON. Python's JSON keeps ``1``, ``1.0`` and ``true`` apart and writes each finite
float exactly. JSON has no infinite floats and no NaN: the wire form writes the mapping ``{"$float": "inf"}``
(``-inf``, ``nan``). A config's own mapping with a single key of dollars followed by ``float`` gets another dollar in
the wire form and loses the dollar when read, so the two cannot be confused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from model_factory.config.bounds import MAX_CONFIG_BYTES, ConfigBounds
from model_factory.config.schema.check import TOP_LEVEL_KEYS
from model_factory.config.syntax.bounded_nodes import with_keys
from model_factory.config.syntax.cursor import Cursor
from model_factory.config.syntax.json_text import parse_json
from model_factory.config.syntax.nodes import ListNode, MapNode, Node, Place, Scalar
from model_factory.config.syntax.plain_data import from_plain
from model_factory.digest import digest_of
from model_factory.errors import ConfigError
from model_factory.wording import quoted

WIRE_PLACE = Place(file="<request>")
"""The place of every value from the wire."""

_FLOAT_KEY = "$float"
_FLOAT_LIKE_KEY = re.compile(r"\$+float")


def wire_tree(tree: MapNode) -> MapNode:
    """Return the part of a resolved config that a server needs: without ``params``, notes and other free keys."""
    return with_keys(tree, TOP_LEVEL_KEYS)


def wire_bytes(config: Mapping[str, Any] | MapNode) -> bytes:
    """Return the wire form of a config, given as plain data or as a tree, with keys in written order.

    Raises ConfigError if the config is too large.

    >>> wire_bytes({"schema_version": 1, "scale": float("inf")})
    b'{"schema_version":1,"scale":{"$float":"inf"}}'
    """
    return _wire_bytes(_encodable(_node(config)))


def canonical_bytes(value: Any) -> bytes:
    """Return plain data, or a tree, as JSON with sorted keys: equal bytes for any order of keys.

    Raises ConfigError for values that are not plain data.

    >>> canonical_bytes({"b": 1, "a": [True, None]})
    b'{"a":[true,null],"b":1}'
    """
    return _dumped(_encodable(_node(value)), sort_keys=True)


def digest(value: Any) -> str:
    """Return the blake3 of ``canonical_bytes``, in hex.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    return digest_of(canonical_bytes(value))


def wire_and_digest(tree: MapNode) -> tuple[bytes, str]:
    """Return ``wire_bytes`` and ``digest`` of a tree, converted only once."""
    plain = _encodable(tree)
    return _wire_bytes(plain), digest_of(_dumped(plain, sort_keys=True))


def parse_wire(data: bytes, bounds: ConfigBounds | None = None) -> MapNode:
    """Read a config from the wire; ``bounds`` are a server's own. Every value has the place ``<request>``.

    Raises:
        LimitError: the config is over ``bounds``.
        ConfigError: the bytes are not UTF-8 JSON within the bounds of every config, a key is given twice, or a key
            at the top level is not part of the wire form.

    Example:
        >>> list(parse_wire(b'{"schema_version": 1}').entries)
        ['schema_version']
    """
    if bounds is not None:
        bounds.check_bytes(len(data))
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(f"the config takes {len(data)} bytes; at most {MAX_CONFIG_BYTES} are allowed")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"the config is not UTF-8: {error.reason} at byte {error.start}") from None
    tree = from_plain(parse_json(text, _decoded_mapping, bounds), WIRE_PLACE)
    Cursor(tree).entries(TOP_LEVEL_KEYS)
    assert isinstance(tree, MapNode)  # only a mapping has entries
    return tree


def _node(value: Any) -> Node:
    # The conversion to nodes refuses other types, cycles and lone surrogates, and checks the bounds.
    return value if isinstance(value, Scalar | ListNode | MapNode) else from_plain(value, Place(file="<value>"))


def _wire_bytes(plain: Any) -> bytes:
    data = _dumped(plain, sort_keys=False)
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(f"the resolved config takes {len(data)} bytes; at most {MAX_CONFIG_BYTES} are allowed")
    return data


def _dumped(plain: Any, *, sort_keys: bool) -> bytes:
    text = json.dumps(plain, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys, separators=(",", ":"))
    return text.encode()


def _encodable(node: Node) -> Any:
    if isinstance(node, ListNode):
        return [_encodable(item) for item in node.items]
    if isinstance(node, MapNode):
        escaped = len(node.entries) == 1 and _FLOAT_LIKE_KEY.fullmatch(next(iter(node.entries)))
        return {f"${key}" if escaped else key: _encodable(item) for key, item in node.entries.items()}
    if isinstance(node.value, float) and not math.isfinite(node.value):
        return {_FLOAT_KEY: str(node.value)}
    return node.value


def _decoded_mapping(mapping: dict[str, Any]) -> Any:
    if len(mapping) != 1:
        return mapping
    key, item = next(iter(mapping.items()))
    if not _FLOAT_LIKE_KEY.fullmatch(key):
        return mapping
    if key != _FLOAT_KEY:
        return {key[1:]: item}
    if item not in ("inf", "-inf", "nan"):
        raise ConfigError(f"{quoted(_FLOAT_KEY)} must be 'inf', '-inf' or 'nan'")
    return float(item)
