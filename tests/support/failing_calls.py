"""Calls to the file system that fail by injection, for paths under one folder."""

from __future__ import annotations

import errno
import fcntl
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CALLS: dict[str, tuple[ModuleType, str]] = {
    "fchmod": (os, "fchmod"),
    "flock": (fcntl, "flock"),
    "fcntl": (fcntl, "fcntl"),
    "io.open": (io, "open"),
    **{
        name: (os, name)
        for name in (
            "open",
            "fstat",
            "fsync",
            "ftruncate",
            "link",
            "listdir",
            "lstat",
            "mkdir",
            "rename",
            "rmdir",
            "scandir",
            "stat",
            "statvfs",
            "unlink",
            "utime",
            "write",
        )
    },
}
"""The calls through which a store reaches its file system."""

ERRORS = (
    errno.EACCES,
    errno.EBADF,
    errno.EDQUOT,
    errno.EINVAL,
    errno.EIO,
    errno.ENOLCK,
    errno.ENOSPC,
    errno.ENOSYS,
    errno.ENOTCONN,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EROFS,
    errno.ESTALE,
)
"""What a file system of another kind, a full disk, a foreign folder or a broken disk answers."""

Decide = Callable[[str, tuple[Any, ...]], int | None]
"""Given the name and the arguments of a call, return the number of the error, or None to make the call."""


@contextmanager
def failing(root: Path, decide: Decide) -> Iterator[None]:
    """Let calls on files and folders under ``root`` fail as ``decide`` says."""

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            folder = options.get("dir_fd")
            if any(_is_under(root, item) for item in (*arguments[:2], folder)):
                number = decide(name, arguments)
                if number is not None:
                    raise OSError(number, os.strerror(number), str(arguments[0]))
            return real(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name, (module, attribute) in CALLS.items():
            patch.setattr(module, attribute, wrap(name, getattr(module, attribute)))
        yield


def always(failing_name: str, number: int) -> Decide:
    """Let every call of one name fail."""
    return lambda name, _arguments: number if name == failing_name else None


def once(failing_name: str, number: int, after: int = 0) -> Decide:
    """Let one call of one name fail, after some that do not."""
    left = [after]

    def decide(name: str, _arguments: tuple[Any, ...]) -> int | None:
        if name != failing_name:
            return None
        left[0] -= 1
        return number if left[0] == -1 else None

    return decide


def open_files() -> Counter[str]:
    """Paths of the open files of this process, without sockets and pipes: gRPC opens and closes these at any time.

    ``open_files() - before`` are the files opened since; objects of earlier tests may have closed theirs.
    """
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of this listing
            found.append(str(descriptor.readlink()))
    return Counter(path for path in found if path.startswith("/"))


def _is_under(root: Path, item: object) -> bool:
    with suppress(OSError, ValueError, TypeError):
        path = Path(f"/proc/self/fd/{item}") if isinstance(item, int) else Path(item)  # type: ignore[arg-type]
        if isinstance(item, int) or (path.parts[:4] == ("/", "proc", "self", "fd") and len(path.parts) > 5):
            # a descriptor, or a name in an open folder
            path = Path(*path.parts[:5]).readlink().joinpath(*path.parts[5:])
        return path.is_relative_to(root)
    return False
