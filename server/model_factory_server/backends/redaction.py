"""What of an operator's error message may be told to a client."""

from __future__ import annotations

import re

_ABSOLUTE_PATH = re.compile(r"(?<![\w./])(?:file://)?/(?!/)(?:[^\s/'\"<>|:;,()\[\]]+/)+([^\s/'\"<>|:;,()\[\]]*)")


def without_paths(text: str) -> str:
    """Leave of every absolute path only its last part: where an operator keeps files is nobody else's affair."""
    return _ABSOLUTE_PATH.sub(r".../\1", text)
