"""Removes private parts from error messages before a client receives the message."""

from __future__ import annotations

import re

_ABSOLUTE_PATH = re.compile(r"(?<![\w./])(?:file://)?/(?!/)(?:[^\s/'\"<>|:;,()\[\]]+/)+([^\s/'\"<>|:;,()\[\]]*)")


def without_paths(text: str) -> str:
    """Shorten every absolute path to the last part: the folders of an operator are private.

    Example:
        >>> without_paths("cannot read /home/operator/secret/weights.pt")
        'cannot read .../weights.pt'
    """
    return _ABSOLUTE_PATH.sub(r".../\1", text)
