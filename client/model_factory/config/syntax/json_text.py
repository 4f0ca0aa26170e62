"""JSON text to plain data, strictly: no key twice, no NaN, no infinity, bounds checked before Python's parser runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from model_factory import documents
from model_factory.config.bounds import MAX_NESTING, MAX_NODES, ConfigBounds
from model_factory.errors import ConfigError

# One token per container end, per comma and per string. An empty container is one token, because it holds no value.
_TOKEN = re.compile(documents.JSON_STRING + r"|\[\s*\]|\{\s*\}|[\[\]{},]", re.DOTALL)

# The wire form writes a float that JSON lacks as a mapping, one level deeper than the value.
_MAX_JSON_NESTING = MAX_NESTING + 1


def parse_json(
    text: str, object_hook: Callable[[dict[str, Any]], Any] | None = None, bounds: ConfigBounds | None = None
) -> Any:
    """Return the value of a JSON text; ``object_hook`` may replace each object; ``bounds`` are a server's own.

    Raises:
        LimitError: the text is over ``bounds``.
        ConfigError: the text is over the bounds of every config, or is not JSON.
    """
    values, depth = _shape(text)
    if bounds is not None:
        bounds.check_shape(values, depth)
    if depth > _MAX_JSON_NESTING:
        raise ConfigError(
            f"the config is too large: mappings and lists nested deeper than {MAX_NESTING}, {depth} of them"
        )
    if values > MAX_NODES:
        raise ConfigError(f"the config is too large: more than {MAX_NODES} values, {values} of them")
    try:
        return documents.parse_json(text, object_hook)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not valid JSON: {error.msg} at character {error.pos}") from None
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _shape(text: str) -> tuple[int, int]:
    """Return the number of values in a JSON text and the nesting depth, without making any value."""
    depth = deepest = 0
    values = 1
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token in ("[", "{"):
            depth += 1
        elif token in ("]", "}"):
            depth -= 1
        # The first value of a container is counted with its bracket, every other value with its comma.
        values += token in ("[", "{", ",")
        is_empty = token[0] in "[{" and len(token) > 1
        deepest = max(deepest, depth + is_empty)
    return values, deepest
