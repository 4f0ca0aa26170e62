"""Records of finished jobs in the store: the blobs made, and the files read. Imports no torch.

A record is stored as ``{"blobs": {name: [digest, size]}, "files": [[path, digest]]}``, with ``"notice": text`` if there
is a notice; the record of a build also has ``"warnings": [text]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from model_factory.documents import expect_str, expect_type
from model_factory.store import Blob
from model_factory_server.worker.files.read_files import ReadFile, decode_files, encode_files
from model_factory_server.worker.outputs import (
    BuildOutput,
    DescribeOutput,
    RecordOutput,
    decode_blobs,
    encode_blobs,
    expect_keys,
    required,
)
from model_factory_server.worker.task import ArchitectureBlobs


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRecord:
    """A component built under a seed."""

    descriptor: Blob
    """The module tree."""
    programs: Blob
    """The recorded forwards."""
    weights: Blob
    """The parameters and buffers."""
    source: Blob | None
    """The bundle named by the descriptor; ``None`` where the descriptor names no bundle."""
    files: tuple[ReadFile, ...]
    """Files read by the job, and by the recording whose programs the job used."""
    notice: str = ""
    """Missing and unexpected tensors of the config's checkpoint, in words; empty without any."""
    warnings: tuple[str, ...] = ()
    """Warnings of the constructors."""

    @classmethod
    def from_output(
        cls, output: BuildOutput, files: tuple[ReadFile, ...], warnings: tuple[str, ...] = ()
    ) -> BuildRecord:
        """Return the record of a finished job."""
        return cls(
            descriptor=output.architecture.descriptor,
            programs=output.architecture.programs,
            weights=output.weights,
            source=output.architecture.source,
            files=files,
            notice=output.notice,
            warnings=warnings,
        )

    @property
    def blobs(self) -> dict[str, Blob]:
        """Blobs by name."""
        return _present(descriptor=self.descriptor, programs=self.programs, weights=self.weights, source=self.source)

    @classmethod
    def from_document(cls, document: object) -> BuildRecord:
        """Read a record from the store.

        Raises:
            FormatError: the record is damaged.
        """
        notice = ""
        if isinstance(document, dict) and "notice" in document:
            notice = expect_str(document["notice"])
            document = {key: value for key, value in document.items() if key != "notice"}
        parts = expect_keys(document, "blobs", "files", "warnings")
        warnings = tuple(expect_str(text) for text in expect_type(parts.pop("warnings"), list))
        blobs, files = _decode_record(parts)
        return cls(
            notice=notice,
            descriptor=required(blobs, "descriptor"),
            programs=required(blobs, "programs"),
            weights=required(blobs, "weights"),
            source=blobs.get("source"),
            files=files,
            warnings=warnings,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DescriptionRecord:
    """The documents of a component, shared by builds under all seeds."""

    descriptor: Blob
    """The module tree."""
    programs: Blob | None = None
    """The recorded forwards; ``None`` in an outline, made without recording."""
    source: Blob | None = None
    """The bundle named by the descriptor; ``None`` where the descriptor names no bundle."""
    placement: Blob | None = None
    """Where constructors can make tensors inside the weights file; ``None`` where unknown."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Why modules cannot be sent, by path. Not stored: refusals depend on limits, and limits belong to no key."""
    files: tuple[ReadFile, ...]
    """Files read by the job."""

    @classmethod
    def from_build(cls, output: BuildOutput, files: tuple[ReadFile, ...]) -> DescriptionRecord:
        """Return the record of the architecture of a finished build."""
        return cls(
            descriptor=output.architecture.descriptor,
            programs=output.architecture.programs,
            source=output.architecture.source,
            placement=output.architecture.placement,
            files=files,
        )

    @classmethod
    def from_output(cls, output: DescribeOutput, files: tuple[ReadFile, ...]) -> DescriptionRecord:
        """Return the record of a finished job."""
        return cls(
            descriptor=output.descriptor,
            programs=output.programs,
            source=output.source,
            refused=output.refused,
            files=files,
        )

    @property
    def blobs(self) -> dict[str, Blob]:
        """Blobs by name."""
        return _present(
            descriptor=self.descriptor, programs=self.programs, source=self.source, placement=self.placement
        )

    @property
    def architecture(self) -> ArchitectureBlobs | None:
        """The documents for a build under another seed; ``None`` for an outline."""
        if self.programs is None:
            return None
        return ArchitectureBlobs(
            descriptor=self.descriptor, programs=self.programs, source=self.source, placement=self.placement
        )

    @classmethod
    def from_document(cls, document: object) -> DescriptionRecord:
        """Read a record from the store.

        Raises:
            FormatError: the record is damaged.
        """
        blobs, files = _decode_record(document)
        return cls(
            descriptor=required(blobs, "descriptor"),
            programs=blobs.get("programs"),
            source=blobs.get("source"),
            placement=blobs.get("placement"),
            files=files,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramRecord:
    """The program of a module for a call, or the module as source code."""

    programs: Blob
    """The recorded programs, in the format of a model's programs."""
    descriptor: Blob | None = None
    """The module as source code, if no program can be recorded; ``None`` otherwise."""
    source: Blob | None = None
    """The bundle named by the descriptor."""
    files: tuple[ReadFile, ...]
    """Files read by the job."""

    @classmethod
    def from_output(cls, output: RecordOutput, files: tuple[ReadFile, ...]) -> ProgramRecord:
        """Return the record of a finished job."""
        return cls(programs=output.programs, descriptor=output.descriptor, source=output.source, files=files)

    @property
    def blobs(self) -> dict[str, Blob]:
        """Blobs by name."""
        return _present(programs=self.programs, descriptor=self.descriptor, source=self.source)

    @classmethod
    def from_document(cls, document: object) -> ProgramRecord:
        """Read a record from the store.

        Raises:
            FormatError: the record is damaged.
        """
        blobs, files = _decode_record(document)
        return cls(
            programs=required(blobs, "programs"),
            descriptor=blobs.get("descriptor"),
            source=blobs.get("source"),
            files=files,
        )


Record = TypeVar("Record", BuildRecord, DescriptionRecord, ProgramRecord)
"""Any class of records."""


def encode_record(record: BuildRecord | DescriptionRecord | ProgramRecord) -> dict[str, object]:
    """Return a record as plain data.

    Example:
        >>> encode_record(ProgramRecord(programs=Blob("ab" * 32, 8), files=()))["files"]
        []
    """
    notice = {"notice": record.notice} if isinstance(record, BuildRecord) and record.notice else {}
    document: dict[str, object] = {"blobs": encode_blobs(**record.blobs), "files": encode_files(record.files)}
    document |= notice
    return document | {"warnings": list(record.warnings)} if isinstance(record, BuildRecord) else document


def merge_files(first: Iterable[ReadFile], second: Iterable[ReadFile]) -> tuple[ReadFile, ...]:
    """Return the files of two jobs, each path once.

    Example:
        >>> [file.path for file in merge_files([ReadFile("/a", "")], [ReadFile("/a", ""), ReadFile("/b", "")])]
        ['/a', '/b']
    """
    return tuple({file.path: file for file in (*first, *second)}.values())


def files_agree(first: Iterable[ReadFile], second: Iterable[ReadFile]) -> bool:
    """Whether two jobs read the same content of every common file.

    Example:
        >>> files_agree([ReadFile("/a", "")], [ReadFile("/a", "0" * 64)])
        False
    """
    digests = {file.path: file.digest for file in first}
    return all(digests.get(file.path, file.digest) == file.digest for file in second)


def _present(**blobs: Blob | None) -> dict[str, Blob]:
    return {name: blob for name, blob in blobs.items() if blob is not None}


def _decode_record(document: object) -> tuple[dict[str, Blob], tuple[ReadFile, ...]]:
    parts = expect_keys(document, "blobs", "files")
    return decode_blobs(parts["blobs"]), decode_files(parts["files"])
