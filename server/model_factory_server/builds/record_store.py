"""Looks up and keeps records of finished jobs, by the key of a build and the files read by the build.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

from model_factory.errors import FormatError
from model_factory.store import Store
from model_factory_server.builds.build_records import (
    BuildRecord,
    DescriptionRecord,
    ProgramRecord,
    Record,
    encode_record,
)
from model_factory_server.builds.fair_shares import FairThreads
from model_factory_server.builds.keys import final_key, reads_key
from model_factory_server.worker.files.read_files import FileDigests, ReadFile, decode_paths


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup(Generic[Record]):
    """The result of looking up a base key."""

    base_key: str
    """The key without files."""
    record_type: type[Record]
    """The class of records under the key."""
    key: str
    """The final key, with the current content of files."""
    record: Record | None
    """``None`` where the record or a blob of the record is missing."""


class RecordStore:
    """The records in a store; file access happens in threads, beside the event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._digests = FileDigests()
        self._threads = FairThreads("records", 4)

    async def look_up(self, base_key: str, record_type: type[Record]) -> Lookup[Record]:
        """Return the final key of a base key, and the record if the store has all blobs of the record."""
        return await self._threads.run(self._look_up, base_key, record_type)

    async def put(self, base_key: str, record: BuildRecord | DescriptionRecord | ProgramRecord) -> None:
        """Store a record, and the paths read by its job."""
        await self._threads.run(self._put, base_key, record)

    async def is_current(self, files: tuple[ReadFile, ...]) -> bool:
        """Whether files still have the content read by a job."""
        return set(await self._threads.run(self._digests.current, [file.path for file in files])) == set(files)

    def _look_up(self, base_key: str, record_type: type[Record]) -> Lookup[Record]:
        key = final_key(base_key, self._digests.current(self._read_paths(base_key)))
        document = self._store.record(key)
        record = None
        if document is not None:
            try:
                record = record_type.from_document(document)
            except FormatError:  # damaged: the next job replaces the record
                record = None
        if record is not None and not all(self._store.find(blob) for blob in record.blobs.values()):
            record = None
        return Lookup(base_key=base_key, record_type=record_type, key=key, record=record)

    def _read_paths(self, base_key: str) -> tuple[str, ...]:
        """Return the paths read by the last job of a key."""
        try:
            return decode_paths(self._store.record(reads_key(base_key)) or [])
        except FormatError:  # damaged: the next job replaces the record
            return ()

    def _put(self, base_key: str, record: BuildRecord | DescriptionRecord | ProgramRecord) -> None:
        self._store.put_record(final_key(base_key, record.files), encode_record(record))
        paths = tuple(sorted(file.path for file in record.files))
        if paths != self._read_paths(base_key):
            self._store.put_record(reads_key(base_key), list(paths))
