"""The index of a model file: the components, and the digests of all parts.

Canonical JSON in the metadata of a safetensors file, under :data:`INDEX`. Every document of the file is another entry
of the metadata, under the document's digest. ``docs/formats/model-file.md`` has the format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model_factory.digest import Blob, check_digest
from model_factory.documents import FORMAT, decode_document, encode_document, expect_name, expect_str, expect_type
from model_factory.errors import FormatError
from model_factory.identity import BuildInfo
from model_factory.limits import MAX_COMPONENTS, MAX_DOCUMENT_BYTES, MAX_TENSORS
from model_factory.model_file import migrations
from model_factory.model_file.migrations import is_readable, rewritten
from model_factory.program.codec.json_fields import exact_fields
from model_factory.wording import quoted

FILE_FORMAT = 1
"""Version of the index and of the places of all parts. The documents have ``FORMAT``."""

INDEX = "model_factory"
"""Key of the index in the metadata."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedComponent:
    """One model of a file."""

    name: str
    """Name of the model; ``model`` for a single model."""
    descriptor: Blob
    """The module tree."""
    programs: Blob
    """The recorded programs."""
    build_info: BuildInfo | None
    """Record of the build; None if unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """The table of contents of a model file."""

    components: tuple[SavedComponent, ...]
    """In the order of the mapping that was saved."""
    single: bool
    """Whether a module was saved rather than a mapping."""
    tensors: Mapping[str, str]
    """Digest of each tensor's bytes, by name in the file."""
    version: str
    """Version of model-factory that wrote the file."""
    torch_version: str
    """Version of torch that wrote the file."""
    document_format: int = FORMAT
    """Version of descriptors and programs in the file."""

    def prefix(self, component: SavedComponent) -> str:
        """Beginning of the names of a component's tensors in the file; empty for a single model."""
        return "" if self.single else f"{component.name}."


def encode_index(index: Index) -> str:
    """Return the text of an index."""
    components = [
        {
            "name": item.name,
            "descriptor": [item.descriptor.digest, item.descriptor.size],
            "programs": [item.programs.digest, item.programs.size],
            "build_info": None if item.build_info is None else item.build_info.as_dict(),
        }
        for item in index.components
    ]
    document = {
        "file_format": FILE_FORMAT,
        "format": FORMAT,
        "written_by": {"model_factory": index.version, "torch": index.torch_version},
        "single": index.single,
        "components": components,
        "tensors": dict(index.tensors),
    }
    return encode_document(document).decode()


def decode_index(text: str) -> Index:
    """Parse and check an index.

    Raises:
        FormatError: the index has another version, breaks the format or a limit.
    """
    document = decode_document(text.encode(), "the index of the file")
    try:
        _check_versions(document)
        document = rewritten(document, migrations.INDEX, "file_format", FILE_FORMAT)
        exact_fields(document, "file_format", "format", "written_by", "single", "components", "tensors")
        written_by = exact_fields(document["written_by"], "model_factory", "torch")
        index = Index(
            components=tuple(_decode_component(item) for item in expect_type(document["components"], list)),
            single=expect_type(document["single"], bool),
            tensors={
                expect_str(name): check_digest(expect_str(digest))
                for name, digest in expect_type(document["tensors"], dict).items()
            },
            version=expect_name(written_by["model_factory"]),
            torch_version=expect_name(written_by["torch"]),
            document_format=expect_type(document["format"], int),
        )
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise FormatError(f"malformed index of a model file: {error!r}") from None
    _check(index)
    return index


def _check_versions(document: Any) -> None:
    version = expect_type(document, dict)["written_by"]["model_factory"]
    tables: tuple[tuple[str, Mapping[int, object], int], ...] = (
        ("file_format", migrations.INDEX, FILE_FORMAT),
        ("format", migrations.DOCUMENTS, FORMAT),
    )
    for key, table, current in tables:
        if not is_readable(table, expect_type(document[key], int), current):
            known = " and ".join(str(item) for item in [*sorted(table), current])
            raise FormatError(
                f"{key} is {document[key]}, and this version of model-factory reads {known}. Remedy: install "
                f"model-factory {quoted(version)}, which wrote the file; or build the model with this version, load "
                "the tensors of the file with the safetensors library, and save again (docs/versions.md)"
            )


def _decode_component(data: Any) -> SavedComponent:
    fields = exact_fields(data, "name", "descriptor", "programs", "build_info")
    info = fields["build_info"]
    return SavedComponent(
        name=expect_name(fields["name"]),
        descriptor=_decode_blob(fields["descriptor"]),
        programs=_decode_blob(fields["programs"]),
        build_info=None if info is None else BuildInfo.from_dict(info),
    )


def _decode_blob(data: Any) -> Blob:
    digest, size = data
    if not 0 <= expect_type(size, int) <= MAX_DOCUMENT_BYTES:
        raise FormatError(f"a document of {size} bytes; at most {MAX_DOCUMENT_BYTES} are allowed")
    return Blob(check_digest(expect_str(digest)), size)


def _check(index: Index) -> None:
    names = [item.name for item in index.components]
    if not 0 < len(names) <= MAX_COMPONENTS or (index.single and len(names) > 1):
        raise FormatError(f"a model file has 1 to {MAX_COMPONENTS} models, and a file of a single model has one")
    if len(set(names)) != len(names) or not all(names):
        raise FormatError("two models of a file have the same name, or a name is empty")
    if len(index.tensors) > MAX_TENSORS:
        raise FormatError(f"a model file has at most {MAX_TENSORS} tensors")
