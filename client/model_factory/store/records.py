"""The records of a store: small documents under keys, readable by their user only."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from model_factory.documents import decode_document, encode_document
from model_factory.errors import FormatError
from model_factory.store.contents import file_names, own_name
from model_factory.store.file_locks import closed_on_error
from model_factory.store.folders import PRIVATE_MODE, StoreFolders
from model_factory.store.ownership import Owners, open_regular
from model_factory.store.staging import Staged


class RecordFiles:
    """The files of the records of a store."""

    def __init__(self, folders: StoreFolders, owners: Owners) -> None:
        self._folders = folders
        self._owners = owners

    def read(self, key: str) -> Any | None:
        """Return the document under a key, or None; a damaged record, or the record of another key, is removed.

        A record that another user made or can change is ignored: nothing shows whether the content is right.

        Raises:
            OSError: the record cannot be read.
            StoreError: a damaged record cannot be removed.
        """
        with suppress(FileNotFoundError), self._folders.open("records"):
            pass  # a file in the place of this folder is an error, in the place of a folder below a taken name
        with suppress(FileNotFoundError, NotADirectoryError), self._folders.open("records", key[:2]) as place:
            for name in file_names(key, self._owners.me):
                file = self._open(place, name)
                if file is None:
                    continue
                with file:
                    try:
                        document = _document_of(key, file.read())
                    except FormatError as error:
                        is_kept = self._owners.keep_name(place.stat(), os.fstat(file.fileno()))
                        self._folders.remove_damaged(place / name, file, f"is damaged: {error}", is_kept=is_kept)
                        continue
                    with suppress(OSError):  # the file of another user in a shared cache, or a read-only file system
                        os.utime(file.fileno())
                return document
        return None

    def _open(self, place: Path, name: str) -> BinaryIO | None:
        path = place / name
        file = open_regular(path)
        if file is None:
            with suppress(FileNotFoundError):
                found = path.lstat()
                if stat.S_ISDIR(found.st_mode) and found.st_uid in self._owners.trusted:
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            return None
        with closed_on_error(file):
            if self._owners.keep_open(place, file) and os.fstat(file.fileno()).st_nlink == 1:
                return file
        file.close()
        return None

    def write(self, key: str, document: Any, new: Staged, on_growth: Callable[[int], None]) -> None:
        """Write a document to a staged file, and publish the file under a key; ``on_growth`` is given the size before.

        Raises:
            OSError: the record cannot be written.
        """
        data = encode_document({"key": key, "document": document})
        new.file.write(data)
        on_growth(len(data))
        with self._folders.open("records", key[:2], make=True) as place:
            new.publish(place / own_name(place, key, self._owners.me), PRIVATE_MODE)


def _document_of(key: str, data: bytes) -> Any:
    """Return the document of a record. A record contains its key, so that a copy under another key is refused.

    Raises:
        FormatError: the record is damaged, or has another key.
    """
    record = decode_document(data, f"record {key}")
    if not isinstance(record, dict) or record.keys() != {"key", "document"}:
        raise FormatError("the file is not a record: expected exactly the keys 'key' and 'document'")
    if record["key"] != key:
        raise FormatError("the record has another key")
    return record["document"]
