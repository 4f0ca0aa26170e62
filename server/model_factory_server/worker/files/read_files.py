"""Files read by builds: their paths, digests, and current content. Imports no torch."""

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
"""Number of files readable for a build, not counting code."""

ABSENT = ""
"""Digest of a missing file, or of a path to anything but a regular file."""

CHANGED = "0" * 64
"""Digest of a file changed during the read: no content has this digest."""

_MAX_REMEMBERED = 100_000  # digests in the memory of a server
_SETTLED_NS = 2_000_000_000  # within this time a file may change twice under one time of change
_CODE_SUFFIXES = (".py", ".pyc", ".so", ".pyd")

FileStamp = tuple[int, int, int, int, int]
"""Device, inode, size, and the times of change of content and of entry: equal until the file is touched."""


@dataclass(frozen=True, slots=True)
class ReadFile:
    """A file read by a build."""

    path: str
    """Absolute, links not resolved; ends in a slash for a folder whose entries were listed."""
    digest: str
    """Digest of the content, or of the sorted names in a folder; ``ABSENT`` for a missing file."""

    @classmethod
    def of(cls, path: str) -> ReadFile:
        """Return a file with its current digest."""
        return cls(path, content_digest(path))


def is_code(path: str) -> bool:
    """Whether Python can import a file.

    A ``.pth`` file is data: torch's weights, and in site-packages a list of folders.

    Example:
        >>> is_code("/models/blocks.py"), is_code("/models/resnet34.pth")
        (True, False)
    """
    return path.endswith(_CODE_SUFFIXES)


def stamp_of(path: str) -> FileStamp | None:
    """Return the stamp of a regular file, or of a folder for a path with a slash at the end; else ``None``."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    if not (stat.S_ISDIR if path.endswith("/") else stat.S_ISREG)(status.st_mode):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def content_digest(path: str) -> str:
    """Return the digest of a file's content or of a folder's names; ``ABSENT`` if the path cannot be read.

    Example:
        >>> content_digest("/nonexistent") == ABSENT
        True
    """
    if stamp_of(path) is None:
        return ABSENT
    try:
        if not path.endswith("/"):
            return digest_of_file(Path(path))
        names = [entry.name for entry in Path(path).iterdir()]
        return digest_of(encode_document(sorted(os.fsencode(name).hex() for name in names if _is_data_name(name))))
    except OSError:
        return ABSENT


def _is_data_name(name: str) -> bool:
    """Whether a name counts among a folder's names: Python writes caches beside code at every import."""
    return not (name == "__pycache__" or name.startswith(".") or is_code(name))


def encode_files(files: Iterable[ReadFile]) -> list[list[str]]:
    """Return files as plain data, sorted by path.

    Example:
        >>> encode_files([ReadFile("/b", ABSENT), ReadFile("/a", ABSENT)])
        [['/a', ''], ['/b', '']]
    """
    return sorted([file.path, file.digest] for file in files)


def decode_files(data: Any) -> tuple[ReadFile, ...]:
    """Read files from plain data.

    Raises:
        FormatError: the data is malformed.

    Example:
        >>> decode_files([["/a", ""]])
        (ReadFile(path='/a', digest=''),)
    """
    if not isinstance(data, list) or len(data) > MAX_FILES:
        raise FormatError(f"expected a list of at most {MAX_FILES} files")
    pairs = [item for item in data if isinstance(item, list) and len(item) == 2]
    if len(pairs) != len(data):
        raise FormatError("a file is not a pair of path and digest")
    return tuple(
        ReadFile(_decode_path(path), digest if digest == ABSENT else check_digest(expect_str(digest)))
        for path, digest in pairs
    )


def decode_paths(data: Any) -> tuple[str, ...]:
    """Read paths from plain data.

    Raises:
        FormatError: the data is malformed.

    Example:
        >>> decode_paths(["/a", "/folder/"])
        ('/a', '/folder/')
    """
    if not isinstance(data, list) or len(data) > MAX_FILES:
        raise FormatError(f"expected a list of at most {MAX_FILES} paths")
    return tuple(_decode_path(item) for item in data)


def _decode_path(data: Any) -> str:
    path = expect_str(data)
    if not path.startswith("/") or "\0" in path:
        raise FormatError("the path of a file is not absolute")
    return path


class FileDigests:
    """Current digests of files; a file is hashed again only after a change of its stamp.

    Example:
        >>> FileDigests().current(["/nonexistent"])
        (ReadFile(path='/nonexistent', digest=''),)
    """

    def __init__(self) -> None:
        self._remembered: dict[str, tuple[FileStamp | None, str]] = {}
        self._lock = threading.Lock()

    def current(self, paths: Iterable[str]) -> tuple[ReadFile, ...]:
        """Return the files of these paths with their current digests, sorted by path; hashing may take a while."""
        return tuple(ReadFile(path, self._digest(path)) for path in sorted(paths))

    def _digest(self, path: str) -> str:
        stamp = stamp_of(path)
        with self._lock:
            remembered = self._remembered.get(path)
        if remembered is not None and remembered[0] == stamp:
            return remembered[1]
        digest = content_digest(path)
        if stamp is not None and _is_settled(stamp) and stamp == stamp_of(path):
            with self._lock:
                self._remembered[path] = (stamp, digest)
                while len(self._remembered) > _MAX_REMEMBERED:
                    del self._remembered[next(iter(self._remembered))]
        return digest


def _is_settled(stamp: FileStamp) -> bool:
    """Whether the next change of a file is sure to change its stamp, even with a coarse clock of the file system."""
    return time.time_ns() - max(stamp[3:]) > _SETTLED_NS
