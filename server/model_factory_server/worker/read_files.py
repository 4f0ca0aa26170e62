"""Files that builds read: which, with which content, and whether the content is still the same. Imports no torch."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_factory.digest import check_digest, digest_of, digest_of_file
from model_factory.documents import encode_document, expect_str
from model_factory.errors import FormatError

MAX_FILES = 10_000
"""Files that one build may read, beside code."""

ABSENT = ""
"""Digest of a file that is not there, or is not a regular file any more."""

CHANGED = "0" * 64
"""Digest of a file that changed while a job read the file: no content has that digest."""

_MAX_KNOWN = 100_000  # files whose digest a server remembers
_SETTLED_NS = 2_000_000_000  # a file that changed later than that may change again without another time of change
_CODE_SUFFIXES = (".py", ".pyc", ".so", ".pyd", ".pth")

Signature = tuple[int, int, int, int, int]
"""Device, inode, size, and the times of change of content and of entry: equal as long as nobody touches a file."""


@dataclass(frozen=True, slots=True)
class ReadFile:
    """A file that a build read."""

    path: str
    """Absolute, links not resolved; of a folder whose entries were listed with a slash at the end."""
    digest: str
    """Of the content, or of the sorted names in a folder; ``ABSENT`` where there was no such file."""

    @classmethod
    def of(cls, path: str) -> ReadFile:
        """Return a file as the file is now."""
        return cls(path, content_digest(path))


def is_code(path: str) -> bool:
    """Whether a file is one that Python imports."""
    return path.endswith(_CODE_SUFFIXES)


def signature_of(path: str) -> Signature | None:
    """Return what changes with a file; None where there is no regular file, or no folder for a path with a slash."""
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return None
    if not (stat.S_ISDIR if path.endswith("/") else stat.S_ISREG)(found.st_mode):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def content_digest(path: str) -> str:
    """Return the digest of a file's content or of a folder's names; ``ABSENT`` where there is nothing to read."""
    if signature_of(path) is None:
        return ABSENT
    try:
        if not path.endswith("/"):
            return digest_of_file(Path(path))
        names = [entry.name for entry in Path(path).iterdir()]
        return digest_of(encode_document(sorted(os.fsencode(name).hex() for name in names if _counts(name))))
    except OSError:
        return ABSENT


def _counts(name: str) -> bool:
    """Whether a name in a folder counts: Python writes caches beside code whenever code is imported."""
    return not (name == "__pycache__" or name.startswith(".") or is_code(name))


def encode_files(files: Iterable[ReadFile]) -> list[list[str]]:
    """Write files as plain data, sorted by path."""
    return sorted([file.path, file.digest] for file in files)


def decode_files(data: Any) -> tuple[ReadFile, ...]:
    """Read files off plain data.

    Raises:
        FormatError: the data is something else.
    """
    if not isinstance(data, list) or len(data) > MAX_FILES:
        raise FormatError("files are no list, or too many")
    pairs = [item for item in data if isinstance(item, list) and len(item) == 2]
    if len(pairs) != len(data):
        raise FormatError("a file is no pair of path and digest")
    return tuple(
        ReadFile(_path(path), digest if digest == ABSENT else check_digest(expect_str(digest)))
        for path, digest in pairs
    )


def decode_paths(data: Any) -> tuple[str, ...]:
    """Read paths off plain data.

    Raises:
        FormatError: the data is something else.
    """
    if not isinstance(data, list) or len(data) > MAX_FILES:
        raise FormatError("paths are no list, or too many")
    return tuple(_path(item) for item in data)


def _path(data: Any) -> str:
    path = expect_str(data)
    if not path.startswith("/") or "\0" in path:
        raise FormatError("a path is not absolute")
    return path


class FileDigests:
    """Digests of files as they are now; a file is hashed again only after somebody has touched the file."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Signature | None, str]] = {}
        self._lock = threading.Lock()

    def current(self, paths: Iterable[str]) -> tuple[ReadFile, ...]:
        """Return the files of these paths with their digests; may hash, so call this in a thread."""
        return tuple(ReadFile(path, self._digest(path)) for path in sorted(paths))

    def _known_digest(self, path: str) -> str | None:
        with self._lock:
            known = self._known.get(path)
        return known[1] if known is not None and known[0] == signature_of(path) else None

    def _digest(self, path: str) -> str:
        digest = self._known_digest(path)
        if digest is not None:
            return digest
        signature = signature_of(path)
        digest = content_digest(path)
        if signature is not None and _is_settled(signature) and signature == signature_of(path):
            with self._lock:
                self._known[path] = (signature, digest)
                while len(self._known) > _MAX_KNOWN:
                    del self._known[next(iter(self._known))]
        return digest


def _is_settled(signature: Signature) -> bool:
    """Whether the next change of a file will have another time, however coarse the file system's clock is."""
    return time.time_ns() - max(signature[3:]) > _SETTLED_NS
