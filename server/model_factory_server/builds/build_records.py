"""What the store keeps of a job: the blobs that were made, and the files that were read. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from model_factory.errors import FormatError
from model_factory.store import Blob
from model_factory_server.worker.read_files import ReadFile, decode_files, encode_files


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """The result of a job."""

    blobs: Mapping[str, Blob]
    """Documents and weights, by what they are: descriptor, programs, weights, source, placement, refused."""
    files: tuple[ReadFile, ...]
    """What the job read, as it was then."""

    @property
    def source(self) -> Blob | None:
        """The bundle that the descriptor names; None where the descriptor needs none."""
        return self.blobs.get("source")

    def without(self, name: str) -> JobRecord:
        """Return the same without one of the blobs."""
        return replace(self, blobs={key: blob for key, blob in self.blobs.items() if key != name})

    def over(self, known: JobRecord) -> JobRecord:
        """Return what was known with this added: blobs of this in place of those known, and the files of both."""
        files = {file.path: file for file in (*known.files, *self.files)}
        return JobRecord(blobs={**known.blobs, **self.blobs}, files=tuple(files.values()))

    def document(self) -> dict[str, Any]:
        """Return the record as plain data."""
        blobs = {name: [blob.digest, blob.size] for name, blob in self.blobs.items()}
        return {"blobs": blobs, "files": encode_files(self.files)}

    @classmethod
    def of(cls, document: Any) -> JobRecord:
        """Read a record off plain data.

        Raises:
            FormatError: the data is something else.
        """
        try:
            blobs = {name: Blob(*entry) for name, entry in document["blobs"].items()}
            return cls(blobs=blobs, files=decode_files(document["files"]))
        except (AttributeError, KeyError, TypeError) as error:
            raise FormatError(f"a record of a job is damaged: {type(error).__name__}") from None
