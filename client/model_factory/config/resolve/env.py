"""Reads environment variables for ``${env:...}``.

Errors name the variable and the wanted type, never the value: the value may be a secret.
"""

from __future__ import annotations

from collections.abc import Mapping

from model_factory.config.resolve.references import EnvReference
from model_factory.config.syntax.bounded_nodes import make_scalar
from model_factory.config.syntax.cursor import Cursor
from model_factory.config.syntax.json_text import parse_json
from model_factory.config.syntax.nodes import Node, Place
from model_factory.config.syntax.plain_data import from_plain
from model_factory.environment import WORDS
from model_factory.errors import ConfigError
from model_factory.limits import MAX_NUMBER_CHARS

_BASES = {"0x": 16, "0o": 8, "0b": 2}
_WANTED = {
    "int": "an int (decimal, 0x, 0o or 0b)",
    "float": "a float",
    "bool": "a bool (true/false, 1/0, yes/no, on/off)",
    "json": "JSON",
}


def read_variable(reference: EnvReference, env: Mapping[str, str], at: Cursor) -> Node:
    """Return the variable's value, or the reference's default, as a node with the place of the reference.

    Raises ConfigError if both are missing, or if the value cannot be cast.
    """
    name = reference.variable
    raw = env.get(name, reference.default)
    if raw is None:
        raise at.error(f"the environment variable {name} is not set and ${{env:...}} gives no default")
    if reference.cast is None:
        return at.scalar(raw)
    text = raw.strip()
    if not text:
        what = "the environment variable" if name in env else "the default of the environment variable"
        raise at.error(f"{what} {name} is empty; wanted {_WANTED[reference.cast]}")
    node = _cast(text, reference.cast, at.node.place)
    # Raised outside of any except block, so that no chained exception carries the value.
    if node is None:
        wanted = _WANTED[reference.cast]
        raise at.error(f"the environment variable {name} (or its default) is not {wanted}, or too large for a config")
    return node


def _cast(text: str, cast: str, place: Place) -> Node | None:
    """Return the cast value, or None if the text has another type or is over the bounds."""
    try:
        if cast == "json":
            return from_plain(parse_json(text), place)
        if cast == "bool":
            return make_scalar(WORDS[text.lower()], place)
        if len(text) > MAX_NUMBER_CHARS:
            return None
        return make_scalar(float(text) if cast == "float" else _int(text), place)
    except (ValueError, KeyError, ConfigError):
        return None


def _int(text: str) -> int:
    digits = text.lstrip("+-")[:2].lower()
    return int(text, _BASES.get(digits, 10))
