"""Folders of a store, opened without links: another user of a shared folder may put a link in the place of a folder."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from model_factory.errors import StoreError
from model_factory.store.file_locks import names_open_file

log = logging.getLogger(__name__)

PRIVATE_MODE = 0o600
"""Mode of files that other users cannot read, whatever the umask."""

_NAMES = ("blobs", "records", "staging", "locks", "scratch")
_UNLISTED = ("records", "locks")
"""Folders whose names are keys: other users can add files, and cannot list the files."""

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_UMASK = re.compile(r"^Umask:\s*([0-7]+)$", re.MULTILINE)
_USUAL_UMASK = 0o022


@contextmanager
def folder_below(root: Path, *names: str, mode: int | None = None) -> Iterator[Path]:
    """Open a folder below ``root``; no name may be a link or a mount. With a mode, missing folders are made.

    The path in the block names the open folder itself, also after somebody has renamed or replaced the folder.

    >>> import tempfile
    >>> with folder_below(Path(tempfile.mkdtemp()), "blobs", "ab", mode=0o755) as place:
    ...     (place / "file").write_bytes(b"weights")
    7
    """
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        device = os.fstat(fd).st_dev
        for name in names:
            below = _open_or_make(name, fd, mode)
            os.close(fd)
            fd = below
            if os.fstat(fd).st_dev != device:  # nothing could be renamed to there; another user may have mounted it
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _open_or_make(name: str, folder: int, mode: int | None) -> int:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        if mode is None:
            raise
    try:
        os.mkdir(name, 0o700, dir_fd=folder)
    except FileExistsError:  # made by another process in the meantime
        return os.open(name, flags, dir_fd=folder)
    made = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    set_mode(made, mode)
    os.close(made)
    return os.open(name, flags, dir_fd=folder)


def set_mode(fd: int, mode: int) -> None:
    """Set the mode of a new file or folder, which is private before; file systems without modes stay as they are."""
    with suppress(OSError):
        os.fchmod(fd, mode)


def current_umask() -> int:
    """Return the umask of this process, without the change that ``os.umask`` needs."""
    with suppress(OSError):
        found = _UMASK.search(Path("/proc/self/status").read_text(encoding="utf-8", errors="replace"))
        if found is not None:
            return int(found[1], 8)
    return _USUAL_UMASK


class StoreFolders:
    """The folders of a store.

    >>> import tempfile
    >>> folders = StoreFolders(Path(tempfile.mkdtemp()), "MODEL_FACTORY_CACHE")
    >>> folders.make()
    >>> with folders.open("blobs") as place:
    ...     place.is_dir()
    True
    """

    def __init__(self, root: Path, setting: str) -> None:
        """``setting`` names the variable or option that chooses ``root``, for error messages."""
        self.root = root
        self._setting = setting
        self._umask = current_umask()

    @property
    def file_mode(self) -> int:
        """Mode of blobs; never writable by others, whatever the umask of the moment."""
        return 0o644 & ~self._umask

    def make(self) -> None:
        """Make missing folders."""
        for folder in reversed([self.root, *self.root.parents]):
            if not folder.is_dir():
                try:
                    folder.mkdir(0o755, exist_ok=True)
                except FileExistsError:
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None
        for name in _NAMES:
            with self.open(name, make=True):
                pass

    def make_or_read(self) -> None:
        """Make missing folders; a store without permission to write is only read."""
        try:
            self.make()
        except OSError:
            if not os.access(self.root / "blobs", os.R_OK | os.X_OK):
                raise
        else:
            with self.open("blobs") as place:
                os.scandir(place).close()  # this user may be unable to read the folder of another user

    @contextmanager
    def open(self, *names: str, make: bool = False) -> Iterator[Path]:
        """Open a folder without links; a new folder is open to the users to whom the root is open."""
        mode = None
        if make:
            mode = stat.S_IMODE(self.root.stat().st_mode) & ~self._umask | stat.S_IRWXU
            mode &= ~(stat.S_IRGRP | stat.S_IROTH) if names[0] in _UNLISTED else ~0
        with folder_below(self.root, *names, mode=mode) as place:
            yield place

    @contextmanager
    def made(self, name: str) -> Iterator[Path]:
        """Open a folder directly below the root; another process may have removed the folders."""
        with ExitStack() as stack:
            try:
                place = stack.enter_context(self.open(name))
            except FileNotFoundError:
                self.make()
                place = stack.enter_context(self.open(name))
            yield place

    def remove_damaged(self, path: Path, file: BinaryIO, how: str, *, is_kept: bool) -> None:
        """Remove a damaged file, unless the name has another file by now.

        Raises:
            StoreError: file and name are kept (see ``ownership.py``), and cannot be removed: each reader finds the same
                damage.
        """
        shown = self.root / path.name
        try:
            with self.errors(f"{shown} {how}, and cannot be removed"):
                if names_open_file(path, file.fileno()):
                    path.unlink(missing_ok=True)
        except StoreError:
            if is_kept:
                raise
            log.debug("%s of another user %s, and is ignored", shown, how)
        else:
            log.warning("%s %s; the file is removed, and made again when needed", shown, how)

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """Raise an ``OSError`` of the block as a ``StoreError`` with a remedy."""
        try:
            yield
        except OSError as error:
            need = (
                "with more space" if error.errno in _NO_SPACE else "that this user may read and write, on a local disk"
            )
            remedy = f"set {self._setting} to a folder {need}"
            raise StoreError(f"{what}: {error.strerror or error}. Remedy: {remedy}") from error
