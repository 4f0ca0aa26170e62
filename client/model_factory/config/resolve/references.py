"""The syntax of ``${...}`` inside a string.

::

    ${a.b[0].c}            a config path: keys and list indices
    ${env:VAR}             an environment variable, unchanged, with an optional default after a comma
    ${env:int:VAR,8}       a variable, trimmed and cast: int, float, bool or json

Space at both ends of a reference is ignored, also at the end of a default: ``${env:V, a }`` has the default `` a``.
A reference ends at the first ``}``; ``${env:json:...}`` ends at the first ``}`` outside the JSON default. References
do not nest, and ``${`` cannot be escaped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

from model_factory import documents
from model_factory.config.syntax.nodes import ConfigPath
from model_factory.wording import listed, nearest, quoted

CASTS = ("int", "float", "bool", "json")

_PATH = re.compile(r"[^.\[\]]+(?:\.[^.\[\]]+|\[[0-9]{1,9}\])*")
_PATH_PART = re.compile(r"([^.\[\]]+)|\[([0-9]+)\]")
_JSON_REFERENCE = re.compile(r"\s*env:json:")
_VARIABLE = re.compile(r"env:(?:([A-Za-z0-9_]*):)?([A-Za-z_][A-Za-z0-9_]*)(?:,(.*))?", re.DOTALL)
_BRACE_OR_STRING = re.compile(documents.JSON_STRING + "|[{}]", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigReference:
    """A reference to another value of the config."""

    path: ConfigPath
    """The path of the other value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvReference:
    """A reference to an environment variable."""

    variable: str
    """Name of the variable."""
    cast: str | None
    """One of ``CASTS``, or None for the unchanged string."""
    default: str | None
    """The value if the variable is not set; None if a missing variable is an error."""


Piece: TypeAlias = str | ConfigReference | EnvReference


def split_references(text: str) -> list[Piece]:
    """Return the text as literal strings and references in order.

    Raises ValueError with the error of a reference.

    >>> split_references("${params.width} rows")
    [ConfigReference(path=('params', 'width')), ' rows']
    """
    pieces: list[Piece] = []
    position = 0
    while (start := text.find("${", position)) >= 0:
        end = _end(text, start + 2)
        if end < 0:
            raise ValueError(f"{quoted(text[start:])} opens a reference without a closing '}}'")
        if start > position:
            pieces.append(text[position:start])
        pieces.append(_reference(text[start + 2 : end]))
        position = end + 1
    if position < len(text):
        pieces.append(text[position:])
    return pieces


def _end(text: str, start: int) -> int:
    if not _JSON_REFERENCE.match(text, start):
        return text.find("}", start)
    depth = 0
    for token in _BRACE_OR_STRING.finditer(text, start):
        if token.group() == "{":
            depth += 1
        elif token.group() == "}":
            if depth == 0:
                return token.start()
            depth -= 1
    return -1


def _reference(inside: str) -> Piece:
    if "${" in inside:
        raise ValueError(f"{quoted('${' + inside)} holds another reference; references do not nest")
    trimmed = inside.strip()
    if trimmed.startswith("env:"):
        return _env_reference(trimmed)
    if not _PATH.fullmatch(trimmed):
        raise ValueError(f"{quoted('${' + inside + '}')} is not a reference; write ${{a.b[0].c}} or ${{env:VAR}}")
    parts = (match.groups() for match in _PATH_PART.finditer(trimmed))
    return ConfigReference(path=tuple(key if key is not None else int(index) for key, index in parts))


def _env_reference(inside: str) -> EnvReference:
    match = _VARIABLE.fullmatch(inside)
    if not match:
        # Only the text before a default is shown: a default may be a secret.
        shown = quoted("${" + inside.partition(",")[0])
        raise ValueError(f"{shown} does not name an environment variable; write ${{env:VAR}} or ${{env:int:VAR,8}}")
    cast, variable, default = match.groups()
    if cast is not None and cast not in CASTS:
        allowed = f"allowed are {listed(CASTS)}, or no cast for the unchanged string"
        raise ValueError(f"Unknown cast {quoted(cast)} of the variable {variable}; {allowed}{nearest(cast, CASTS)}")
    return EnvReference(variable=variable, cast=cast, default=default)
