"""The output of a worker for each kind of task, and its document. Imports no torch.

The server reads an output with the same care as a message of an untrusted peer: a build runs the operator's code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from model_factory.blocks import Block, BlockArgument
from model_factory.digest import check_digest
from model_factory.documents import expect_str, expect_type
from model_factory.errors import FormatError
from model_factory.store import Blob
from model_factory_server.worker.task import ArchitectureBlobs


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOutput:
    """The output of a ``BuildTask``: blobs in the store."""

    architecture: ArchitectureBlobs
    """The documents; the descriptor is the build's own, the other documents may be of an earlier build."""
    weights: Blob
    """The parameters and buffers."""
    notice: str = ""
    """Missing and unexpected tensors of the config's checkpoint, in words; empty without any."""

    def to_document(self) -> dict[str, object]:
        """Return plain data for ``from_document``."""
        blobs = encode_blobs(
            descriptor=self.architecture.descriptor,
            programs=self.architecture.programs,
            source=self.architecture.source,
            placement=self.architecture.placement,
            weights=self.weights,
        )
        return {"blobs": blobs, "notice": self.notice}

    @classmethod
    def from_document(cls, document: object) -> BuildOutput:
        """Read an output.

        Raises:
            FormatError: the data is malformed.
        """
        parts = expect_keys(document, "blobs", "notice")
        blobs = decode_blobs(parts["blobs"])
        architecture = ArchitectureBlobs(
            descriptor=required(blobs, "descriptor"),
            programs=required(blobs, "programs"),
            source=blobs.get("source"),
            placement=blobs.get("placement"),
        )
        return cls(architecture=architecture, weights=required(blobs, "weights"), notice=expect_str(parts["notice"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribeOutput:
    """The output of a ``DescribeTask``."""

    descriptor: Blob
    """The module tree."""
    programs: Blob | None
    """The recorded forwards; ``None`` without a recording."""
    source: Blob | None
    """The bundle named by the descriptor; ``None`` where the descriptor names no bundle."""
    refused: Mapping[str, str]
    """Why modules cannot be sent, by path; the empty path is the whole model."""

    def to_document(self) -> dict[str, object]:
        """Return plain data for ``from_document``."""
        blobs = encode_blobs(descriptor=self.descriptor, programs=self.programs, source=self.source)
        return {"blobs": blobs, "refused": dict(self.refused)}

    @classmethod
    def from_document(cls, document: object) -> DescribeOutput:
        """Read an output.

        Raises:
            FormatError: the data is malformed.
        """
        parts = expect_keys(document, "blobs", "refused")
        blobs, refused = decode_blobs(parts["blobs"]), expect_type(parts["refused"], dict)
        return cls(
            descriptor=required(blobs, "descriptor"),
            programs=blobs.get("programs"),
            source=blobs.get("source"),
            refused={expect_str(path): expect_str(reason) for path, reason in refused.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOutput:
    """The output of a ``RecordTask``."""

    programs: Blob
    """The recorded programs, in the format of a model's programs."""
    descriptor: Blob | None = None
    """The module as source code, if no program can be recorded; ``None`` otherwise."""
    source: Blob | None = None
    """The bundle named by the descriptor."""

    def to_document(self) -> dict[str, object]:
        """Return plain data for ``from_document``."""
        return encode_blobs(programs=self.programs, descriptor=self.descriptor, source=self.source)

    @classmethod
    def from_document(cls, document: object) -> RecordOutput:
        """Read an output.

        Raises:
            FormatError: the data is malformed.
        """
        blobs = decode_blobs(document)
        return cls(programs=required(blobs, "programs"), descriptor=blobs.get("descriptor"), source=blobs.get("source"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOutput:
    """The output of a ``ListTask``."""

    blocks: tuple[Block, ...]
    """The blocks for configs, sorted by name."""

    def to_document(self) -> list[dict[str, object]]:
        """Return plain data for ``from_document``."""
        return [asdict(block) for block in self.blocks]

    @classmethod
    def from_document(cls, document: object) -> ListOutput:
        """Read an output.

        Raises:
            FormatError: the data is malformed.
        """
        return cls(blocks=tuple(_decode_block(entry) for entry in expect_type(document, list)))


Output = BuildOutput | DescribeOutput | RecordOutput | ListOutput


def encode_blobs(**blobs: Blob | None) -> dict[str, object]:
    """Return blobs by name as plain data, without the absent ones.

    Example:
        >>> encode_blobs(weights=Blob("ab" * 32, 8), source=None)["weights"][1]
        8
    """
    return {name: [blob.digest, blob.size] for name, blob in blobs.items() if blob is not None}


def decode_blobs(document: object) -> dict[str, Blob]:
    """Read the data of ``encode_blobs``.

    Raises:
        FormatError: the data is malformed.

    Example:
        >>> decode_blobs({"weights": ["ab" * 32, 8]})["weights"].size
        8
    """
    return {expect_str(name): _decode_blob(entry) for name, entry in expect_type(document, dict).items()}


def required(blobs: Mapping[str, Blob], name: str) -> Blob:
    """Return the blob with this name.

    Raises:
        FormatError: there is no blob with this name.

    Example:
        >>> required({}, "weights")
        Traceback (most recent call last):
        model_factory.errors.FormatError: the blob 'weights' is missing
    """
    if name not in blobs:
        raise FormatError(f"the blob {name!r} is missing")
    return blobs[name]


def expect_keys(document: object, *keys: str) -> dict[str, Any]:
    """Return a mapping with exactly these keys.

    Raises:
        FormatError: the data is something else.

    Example:
        >>> expect_keys({"files": []}, "files")
        {'files': []}
    """
    if not isinstance(document, dict) or document.keys() != set(keys):
        raise FormatError(f"expected a mapping with the keys {', '.join(keys)}")
    return document


def _decode_blob(entry: object) -> Blob:
    if not isinstance(entry, list) or len(entry) != 2:
        raise FormatError("a blob is not a pair of digest and size")
    digest, size = check_digest(expect_str(entry[0])), expect_type(entry[1], int)
    if size < 0:
        raise FormatError(f"a blob has {size} bytes")
    return Blob(digest, size)


def _decode_block(entry: object) -> Block:
    parts = expect_keys(entry, "name", "summary", "origin", "tags", "arguments")
    return Block(
        name=expect_str(parts["name"]),
        summary=expect_str(parts["summary"]),
        origin=expect_str(parts["origin"]),
        tags=tuple(expect_str(tag) for tag in expect_type(parts["tags"], list)),
        arguments=tuple(_decode_argument(argument) for argument in expect_type(parts["arguments"], list)),
    )


def _decode_argument(entry: object) -> BlockArgument:
    parts = expect_keys(entry, "name", "annotation", "required", "default")
    return BlockArgument(
        name=expect_str(parts["name"]),
        annotation=expect_str(parts["annotation"]),
        required=expect_type(parts["required"], bool),
        default=expect_str(parts["default"]),
    )
