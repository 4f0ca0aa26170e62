"""The identity of content: its blake3 as 64 hexadecimal digits, and its size."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from model_factory.errors import FormatError

_PID = os.getpid()
_PATTERN = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Blob:
    """Identity of content."""

    digest: str
    """blake3, 64 hexadecimal digits."""
    size: int
    """In bytes."""

    @classmethod
    def of(cls, data: bytes) -> Blob:
        """Identity of bytes."""
        return cls(digest_of(data), len(data))


def digest_of(data: bytes) -> str:
    """Digest of bytes."""
    return blake3(data).hexdigest()


def digest_of_file(path: Path) -> str:
    """Digest of a file's content, read through a mapping, on all cores but in a fork."""
    # A fork has none of the threads that its parent hashed with, and would wait for them.
    hasher = blake3(max_threads=blake3.AUTO if os.getpid() == _PID else 1)
    hasher.update_mmap(path)
    return hasher.hexdigest()


def check_digest(text: str) -> str:
    """Return ``text`` if it is written as a digest; nothing else may ever become part of a path.

    Raises:
        FormatError: it is not.
    """
    if not _PATTERN.match(text):
        raise FormatError(f"{text[:80]!r} is not a digest (64 hexadecimal digits in lower case)")
    return text
