"""The wire form of a config, and its identity.

The wire form is compact UTF-8 JSON. Python's JSON keeps ``1``, ``1.0`` and ``true`` apart and writes each finite
float so that it reads back exactly. JSON has no infinite floats and no NaN: these are written as the mapping
``{"$float": "inf"}`` (``-inf``, ``nan``). A config's own mapping whose one key is dollars followed by ``float``
gets one dollar more, and loses it when read, so the two cannot be confused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from model_factory.config.bounds import MAX_CONFIG_BYTES
from model_factory.config.schema.check import TOP_LEVEL_KEYS
from model_factory.config.syntax.bounded_nodes import MapBuilder
from model_factory.config.syntax.expect import require_keys, require_map
from model_factory.config.syntax.json_text import parse_json
from model_factory.config.syntax.lift import lift
from model_factory.config.syntax.nodes import ListNode, MapNode, Node, Place, Scalar
from model_factory.digest import digest_of
from model_factory.errors import ConfigError
from model_factory.wording import quoted

WIRE_PLACE = Place(file="<request>")
"""The place of every value that came over the wire."""

_FLOAT_KEY = "$float"
_FLOAT_LIKE_KEY = re.compile(r"\$+float")


def wire_tree(tree: MapNode) -> MapNode:
    """Return what a server needs of a resolved config: without ``params``, notes and the like."""
    builder = MapBuilder(tree.place)
    for key, value in tree.entries.items():
        if key in TOP_LEVEL_KEYS:
            builder.add(key, value)
    return builder.build()


def wire_bytes(config: Mapping[str, Any] | MapNode) -> bytes:
    """Return a config, given as plain data or as a tree, as it crosses the wire, keys in written order.

    Raises ConfigError when it is larger than a config may be.
    """
    data = _encode(config, sort_keys=False)
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(f"the resolved config takes {len(data)} bytes; at most {MAX_CONFIG_BYTES} are allowed")
    return data


def canonical_bytes(value: Any) -> bytes:
    """Return plain data, or a tree, in the one form that is the same for any order of keys.

    Raises ConfigError for what is not plain data.
    """
    return _encode(value, sort_keys=True)


def digest(value: Any) -> str:
    """Return the blake3 of ``canonical_bytes``, in hex."""
    return digest_of(canonical_bytes(value))


def parse_wire(data: bytes) -> MapNode:
    """Read a config from the wire.

    Raises ConfigError unless it is UTF-8 JSON within the bounds, with no key twice and nothing at the top level
    that the wire form does not have.
    """
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(f"the config takes {len(data)} bytes; at most {MAX_CONFIG_BYTES} are allowed")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"the config is not UTF-8: {error.reason} at byte {error.start}") from None
    tree = require_map(lift(parse_json(text, _decoded_mapping), WIRE_PLACE), ())
    require_keys(tree, (), TOP_LEVEL_KEYS)
    return tree


def _encode(value: Any, *, sort_keys: bool) -> bytes:
    # Lifting refuses what is not plain data, cycles and lone surrogates included, and bounds the rest.
    node = value if isinstance(value, Scalar | ListNode | MapNode) else lift(value, Place(file="<value>"))
    plain = _encodable(node)
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
