"""An extension of Griffe: docstrings of this repository as Markdown, for the API reference.

Examples in docstrings are doctests without a heading, and references have Sphinx's roles (``:class:`Store```). Markdown
would show ``>>>`` as a quotation and the role as text.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?:class|func|meth|attr|mod):`~?([^`]+)`")
_DOCTEST = re.compile(r"^(?P<indent> *)>>> .*(?:\n(?P=indent)\S.*|\n(?P=indent) +\S.*)*", re.MULTILINE)


def as_markdown(text: str) -> str:
    """Return a docstring with each doctest in a fence and each role as code.

    Example:
        >>> as_markdown("See :class:`Store`.")
        'See `Store`.'
    """
    fenced = _DOCTEST.sub(lambda found: f"{found['indent']}```pycon\n{found[0]}\n{found['indent']}```", text)
    return _ROLE.sub(r"`\1`", fenced)


class MarkdownDocstrings(Extension):
    """Rewrites each docstring when its object is loaded."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
