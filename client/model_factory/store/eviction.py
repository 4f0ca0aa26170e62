"""The bound on a store's blobs and records: files are counted, and unused files are evicted."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from model_factory.errors import StoreError
from model_factory.store import contents
from model_factory.store.contents import Entry
from model_factory.store.file_locks import FileLocks

log = logging.getLogger(__name__)

_SPARE_PART = 32
"""An eviction for new files goes on to one of so many parts below the bound, so that few new files need an eviction."""

_SPARE_FILES = 8
"""An eviction for new files makes room for at least so many small files."""


class Eviction:
    """Evicts unused files of a store, least recently used first; a file in use stays, even above a bound."""

    def __init__(self, root: Path, locks: FileLocks, user: int, max_bytes: int | None, setting: str) -> None:
        """``setting`` names the variable or option that chooses the folder, for error messages."""
        self._root = root
        self._locks = locks
        self._user = user
        self._max_bytes = max_bytes
        self._setting = setting
        self._taken: int | None = None  # counted at the last eviction, plus new files; None: not counted yet

    def files(self) -> list[Entry]:
        """List the user's blobs and records, unordered; files of other users have any size, and stay."""
        found = list(contents.entries(self._root, "blobs", self._locks, self._user))
        with suppress(FileNotFoundError, PermissionError):  # a store of blobs only, or records of another user
            found += contents.entries(self._root, "records", self._locks, self._user)
        return [entry for entry in found if entry.is_own]

    def prune(self, max_bytes: int, spare: int = 0) -> list[Entry]:
        """Evict files down to ``max_bytes``; return the evicted files.

        With ``spare``, an eviction goes on to ``spare`` bytes below, by files that are not larger than ``spare``.

        Raises:
            StoreError: the store holds more, and file locks do not show whether a blob is in use.
        """
        found = self.files()
        self._taken = sum(entry.counted for entry in found)
        self.check(self._taken, max_bytes)
        removed = contents.make_room(found, max_bytes, spare)
        self._taken -= sum(entry.counted for entry in removed)
        for entry in removed:
            log.info("evicted %s (%d bytes)", entry.digest, entry.size)
        return removed

    def check(self, taken: int, max_bytes: int) -> None:
        """Check that files can be evicted, if the store holds more than ``max_bytes``.

        Raises:
            StoreError: file locks do not show whether a blob is in use.
        """
        if taken > max_bytes and not self._locks.allows_eviction:
            raise StoreError(
                f"{self._root} holds {taken} bytes, {max_bytes} may stay, and no blob is evicted: file locks "
                "there do not show whether a blob is in use. Remedy: stop every process that uses the folder and "
                f"remove files under {self._root / 'blobs'}, or set {self._setting} to a folder on a local disk"
            )

    def grow(self, size: int) -> None:
        """Note a new file of ``size`` bytes, written by this process or a worker; evict files over the bound.

        The files are counted once, and again whenever the count with all new files exceeds the bound.
        """
        if self._max_bytes is None:
            return
        counted = contents.counted_size(max(0, size))
        if self._taken is None or self._taken + counted > self._max_bytes:
            try:
                spare = max(self._max_bytes // _SPARE_PART, _SPARE_FILES * contents.FILE_BYTES)
                self.prune(self._max_bytes, min(spare, self._max_bytes // 2))
            except StoreError as error:  # the file is written all the same
                log.warning("%s stays larger than its bound: %s", self._root, error)
        self._taken = (self._taken or 0) + counted
