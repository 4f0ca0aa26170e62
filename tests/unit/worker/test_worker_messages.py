"""Messages and outputs of workers, and records of jobs: each is read as written, and malformed data is refused."""

from __future__ import annotations

from typing import Any

import pytest

from model_factory.blocks import Block, BlockArgument
from model_factory.documents import decode_document, encode_document
from model_factory.errors import BuildError, FormatError, LimitError
from model_factory.store import Blob
from model_factory_server.builds.build_records import (
    BuildRecord,
    DescriptionRecord,
    ProgramRecord,
    encode_record,
    files_agree,
    merge_files,
)
from model_factory_server.worker.files.read_files import ABSENT, ReadFile
from model_factory_server.worker.messages import (
    BlobsEvicted,
    ErrorLogged,
    JobDone,
    JobFailed,
    Message,
    ModelWarned,
    StageEntered,
    WarningRaised,
    decode_message,
    encode_message,
)
from model_factory_server.worker.outputs import BuildOutput, DescribeOutput, ListOutput, RecordOutput
from model_factory_server.worker.stages import Stage
from model_factory_server.worker.task import ArchitectureBlobs

ONE, TWO, THREE = (Blob.of(text) for text in (b"one", b"two", b"three"))
FILES = (ReadFile("/data/a", ONE.digest), ReadFile("/data/b", ABSENT))
ARGUMENT = BlockArgument(name="width", annotation="int", required=True, default="")
BLOCK = Block(name="mlp", summary="An MLP.", origin="builtin", tags=("mlp",), arguments=(ARGUMENT,))
FULL = ArchitectureBlobs(descriptor=ONE, programs=TWO, source=THREE, placement=ONE)
SMALL = ArchitectureBlobs(descriptor=ONE, programs=TWO, source=None, placement=None)


@pytest.mark.parametrize(
    "message",
    [
        *map(StageEntered, Stage),
        BlobsEvicted(4096),
        ErrorLogged("Traceback"),
        WarningRaised("a build can reach the network"),
        ModelWarned("blocks: no table: uses defaults"),
        JobFailed("LimitError", "too large"),
        JobFailed("BuildError", "failed", ("model", "graph", 0)),
        JobDone({"programs": [ONE.digest, ONE.size]}, FILES),
    ],
    ids=repr,
)
def test_a_message_is_read_as_sent(message: Message) -> None:
    assert decode_message(encode_message(message)) == message


def test_a_failure_is_the_error_of_the_job() -> None:
    located = JobFailed("BuildError", "failed", ("model", 0)).exception()
    assert (type(located), str(located)) == (BuildError, "model[0]: failed")
    assert type(JobFailed("LimitError", "too large").exception()) is LimitError


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        [],
        ["stage"],
        ["stage", "unknown"],
        ["stage", ["queued"]],
        [["stage"], "queued"],
        ["unknown", 1],
        ["evicted", "many"],
        ["evicted", True],
        ["log", 1],
        ["warning", None],
        ["error", ["BuildError", "text"]],
        ["error", ["re", "the name of a module", []]],
        ["error", ["ValueError", "no error of this package", []]],
        ["error", ["BuildError", "text", [None]]],
        ["error", ["BuildError", 1, []]],
        ["result", {}],
        ["result", [{}, [["relative", ""]]]],
        ["result", [{}, [["/a"]]]],
    ],
    ids=repr,
)
def test_a_malformed_message_is_refused(document: Any) -> None:
    with pytest.raises(FormatError):
        decode_message(encode_document(document))


@pytest.mark.parametrize(
    "output",
    [
        BuildOutput(architecture=FULL, weights=THREE),
        BuildOutput(architecture=SMALL, weights=THREE),
        DescribeOutput(descriptor=ONE, programs=TWO, source=THREE, refused={"": "too large", "a.b": "a hook"}),
        DescribeOutput(descriptor=ONE, programs=None, source=None, refused={}),
        RecordOutput(programs=ONE),
        RecordOutput(programs=ONE, descriptor=TWO, source=THREE),
        ListOutput(blocks=(BLOCK,)),
    ],
    ids=lambda output: type(output).__name__,
)
def test_an_output_is_read_as_written(output: Any) -> None:
    assert type(output).from_document(decode_document(encode_document(output.to_document()), "output")) == output


@pytest.mark.parametrize(
    ("output", "document"),
    [
        (BuildOutput, []),
        (BuildOutput, {"descriptor": [ONE.digest, 3], "programs": [TWO.digest, 3]}),
        (RecordOutput, {"programs": [ONE.digest]}),
        (RecordOutput, {"programs": [ONE.digest, -1]}),
        (RecordOutput, {"programs": [ONE.digest, True]}),
        (RecordOutput, {"programs": ["../../etc/passwd", 3]}),
        (DescribeOutput, {"blobs": {"descriptor": [ONE.digest, 3]}}),
        (DescribeOutput, {"blobs": {"descriptor": [ONE.digest, 3]}, "refused": {"a": 1}}),
        (ListOutput, {}),
        (ListOutput, [{"name": "mlp"}]),
        (ListOutput, [{"name": "mlp", "summary": "", "origin": "", "tags": "mlp", "arguments": []}]),
    ],
    ids=repr,
)
def test_a_malformed_output_is_refused(output: Any, document: Any) -> None:
    with pytest.raises(FormatError):
        output.from_document(document)


@pytest.mark.parametrize(
    "record",
    [
        BuildRecord.from_output(BuildOutput(architecture=FULL, weights=THREE), FILES),
        BuildRecord.from_output(BuildOutput(architecture=SMALL, weights=THREE), ()),
        BuildRecord.from_output(BuildOutput(architecture=SMALL, weights=THREE), FILES, ("a width of 3 is slow",)),
        DescriptionRecord.from_build(BuildOutput(architecture=FULL, weights=THREE), FILES),
        DescriptionRecord(descriptor=ONE, files=()),
        ProgramRecord(programs=ONE, files=FILES),
        ProgramRecord(programs=ONE, descriptor=TWO, source=THREE, files=FILES),
    ],
    ids=lambda record: type(record).__name__,
)
def test_a_record_is_read_as_written(record: Any) -> None:
    document = decode_document(encode_document(encode_record(record)), "record")
    assert document.keys() == {"blobs", "files"} | ({"warnings"} if isinstance(record, BuildRecord) else set())
    assert type(record).from_document(document) == record
    for damaged in (None, {}, document | {"more": 1}, document | {"blobs": {}}, document | {"files": None}):
        with pytest.raises(FormatError):
            type(record).from_document(damaged)


def test_refusals_are_not_stored() -> None:
    output = DescribeOutput(descriptor=ONE, programs=TWO, source=None, refused={"a": "a hook"})
    record = DescriptionRecord.from_output(output, FILES)
    assert record.refused == {"a": "a hook"}
    assert DescriptionRecord.from_document(encode_record(record)).refused == {}


def test_an_outline_has_no_architecture_for_builds() -> None:
    assert DescriptionRecord(descriptor=ONE, files=()).architecture is None
    assert DescriptionRecord.from_build(BuildOutput(architecture=FULL, weights=THREE), ()).architecture == FULL


def test_files_of_two_jobs() -> None:
    changed = ReadFile("/data/a", TWO.digest)
    assert files_agree(FILES, [FILES[0], ReadFile("/data/c", ONE.digest)])
    assert not files_agree(FILES, [changed])
    assert merge_files(FILES, [changed]) == (changed, FILES[1])
