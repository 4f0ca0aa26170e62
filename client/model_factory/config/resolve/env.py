"""Reading environment variables for ``${env:...}``.

Errors name the variable and the type that was wanted, never the value: it may be a secret.
"""

from __future__ import annotations

from collections.abc import Mapping

from model_factory.config.resolve.references import EnvReference
from model_factory.config.syntax.bounded_nodes import make_scalar
from model_factory.config.syntax.json_text import parse_json
from model_factory.config.syntax.lift import lift
from model_factory.config.syntax.nodes import ConfigPath, Node, Place
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


def read_variable(reference: EnvReference, env: Mapping[str, str], place: Place, path: ConfigPath) -> Node:
    """Return the variable's value, or the reference's default, as a node.

    Raises ConfigError when there is neither, or when the value cannot be cast.
    """
    name = reference.variable
    raw = env.get(name, reference.default)
    if raw is None:
        reason = f"the environment variable {name} is not set and ${{env:...}} gives no default"
        raise ConfigError(reason, path=path, place=str(place))
    if reference.cast is None:
        return make_scalar(raw, place, path)
    text = raw.strip()
    if not text:
        what = "the environment variable" if name in env else "the default of the environment variable"
        reason = f"{what} {name} is empty; wanted {_WANTED[reference.cast]}"
        raise ConfigError(reason, path=path, place=str(place))
    node = _cast(text, reference.cast, place)
    # Raised outside of any except block, so that no chained exception carries the value.
    if node is None:
        wanted = _WANTED[reference.cast]
        reason = f"the environment variable {name} (or its default) is not {wanted}, or too large for a config"
        raise ConfigError(reason, path=path, place=str(place))
    return node


def _cast(text: str, cast: str, place: Place) -> Node | None:
    """Return the cast value, or None when the text is not one or is past the bounds."""
    try:
        if cast == "json":
            return lift(parse_json(text), place)
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
