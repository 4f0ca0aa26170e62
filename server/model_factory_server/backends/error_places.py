"""Finds the place in a config that an error of a checkout names: as an attribute ``path``, or in the text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from model_factory.config import ConfigPath, ResolvedConfig
from model_factory.config.syntax.cursor import Cursor

# A name with further parts, each after a dot or in brackets, with or without quotes.
_PATH = re.compile(r"[A-Za-z_]\w*(?:\.\w+|\[\w+\]|\['[^']+'\]|\[\"[^\"]+\"\])+")
_PART = re.compile(r"\['([^']+)'\]|\[\"([^\"]+)\"\]|\[(\w+)\]|\.?(\w+)")
_ABOVE: tuple[ConfigPath, ...] = ((), ("model",), ("model", "graph"), ("model", "sequential"))
"""Where a path of a checkout may begin."""

_MAX_CHARS = 10_000  # an error may quote a whole config


def place_of_error(error: Exception, config: ResolvedConfig) -> ConfigPath:
    """Return the path in a config that an error names; empty if the error names no value of the config.

    The deepest existing value counts: an error may name a missing argument.

    Example:
        >>> from model_factory.config import resolve_mapping
        >>> layer = {"_type_": "nn.Linear", "in_features": 3}
        >>> config = resolve_mapping({"schema_version": 1, "model": {"sequential": {"layers": [layer]}}}, env={})
        >>> place_of_error(ValueError("model.sequential.layers[0].out_features is missing"), config)
        ('model', 'sequential', 'layers', 0)
        >>> place_of_error(ValueError("torch.nn.Linear failed"), config)
        ()
    """
    root = Cursor(config.tree)
    found = [place for path in _named_paths(error) for above in _ABOVE if (place := _existing(root, above, path))]
    return max(found, key=len, default=())


def without_place(text: str, place: ConfigPath) -> str:
    """Return an error's text without a path of the place at the beginning.

    Example:
        >>> without_place("model.graph: no nodes", ("model", "graph"))
        'no nodes'
    """
    match = _PATH.match(text)
    if match is None or not place or _parts(match[0])[-1:] != place[-1:]:
        return text
    return text[match.end() :].lstrip(": ") if text[match.end() :].startswith(":") else text


def _named_paths(error: Exception) -> Iterator[ConfigPath]:
    given = getattr(error, "path", None)
    if isinstance(given, list | tuple) and all(isinstance(part, str | int) for part in given):
        yield tuple(given)
    for text in (given, str(error)):
        if isinstance(text, str):
            yield from (_parts(match) for match in _PATH.findall(text[:_MAX_CHARS]))


def _parts(text: str) -> ConfigPath:
    texts = ("".join(groups) for groups in _PART.findall(text))
    return tuple(int(part) if part.isdecimal() else part for part in texts)


def _existing(root: Cursor, above: ConfigPath, path: ConfigPath) -> ConfigPath:
    """Return the existing part of a path below ``above``; empty if less than two steps exist."""
    start = root.nearest(above)
    if start.path != above:
        return ()
    place = start.nearest(path).path
    return place if len(place) - len(above) > 1 else ()
