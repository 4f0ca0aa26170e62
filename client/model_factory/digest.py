"""Identity of content: the blake3 digest as 64 hexadecimal digits, and the size."""

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
    """Identity of content: digest and size.

    >>> Blob.of(b"weights").size
    7
    """

    digest: str
    """blake3, 64 hexadecimal digits."""
    size: int
    """In bytes."""

    @classmethod
    def of(cls, data: bytes) -> Blob:
        """Compute the identity of bytes."""
        return cls(digest_of(data), len(data))


def digest_of(data: bytes) -> str:
    """Compute the digest of bytes.

    >>> digest_of(b"weights")[:12]
    '3edc5c4a5df8'
    """
    return blake3(data).hexdigest()


def digest_on_all_cores(data: bytes | memoryview) -> str:
    """Compute the digest of large data on all cores; in a forked process on one core.

    >>> digest_on_all_cores(b"weights") == digest_of(b"weights")
    True
    """
    hasher = _on_all_cores()
    hasher.update(data)
    return hasher.hexdigest()


def digest_of_file(path: Path) -> str:
    """Compute the digest of a file through a memory mapping, on all cores; in a forked process on one core."""
    hasher = _on_all_cores()
    hasher.update_mmap(path)
    return hasher.hexdigest()


def _on_all_cores() -> blake3:
    # A forked process has no copy of the parent's hashing threads, and would wait for the threads forever.
    return blake3(max_threads=blake3.AUTO if os.getpid() == _PID else 1)


def check_digest(text: str) -> str:
    """Return ``text`` if the text is a digest. Only checked digests become part of a path.

    >>> check_digest("ab" * 32)[:4]
    'abab'

    Raises:
        FormatError: the text is not a digest.
    """
    if not _PATTERN.match(text):
        raise FormatError(f"{text[:80]!r} is not a digest (64 hexadecimal digits in lower case)")
    return text
