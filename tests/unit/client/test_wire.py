"""The mapping of messages: frames of blob chunks, errors, stages and manifests."""

import pickle

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from model_factory import errors
from model_factory.digest import Blob
from model_factory.documents import FORMAT
from model_factory.errors import ConfigError, FormatError, ModelFactoryError, ServerError
from model_factory.limits import MAX_WARNING_CHARS, MAX_WARNINGS
from model_factory.v1 import blob_pb2, build_pb2, wire


@pytest.mark.parametrize("size", [1, 127, 128, 16_383, 16_384, 1 << 20])
def test_frames_are_messages(size):
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    message = blob_pb2.ReadBlobResponse(data=data).SerializeToString()
    assert wire.chunk_prefix(size) + data == message
    assert bytes(wire.chunk_of(message)) == data


def test_an_empty_message_has_no_data():
    assert bytes(wire.chunk_of(blob_pb2.ReadBlobResponse().SerializeToString())) == b""


@pytest.mark.parametrize(
    "message",
    [b"\x0a", b"\x0a\x05abc", b"\x0a\x03abcd", b"\x12\x03abc", b"\x0a\x80\x80\x80\x80\x80\x80\x01", b"\xff" * 20],
)
def test_other_bytes_are_refused(message):
    with pytest.raises(FormatError):
        wire.chunk_of(message)


def test_every_error_class_has_a_place_in_the_catalogue():
    def below(cls):
        yield cls
        for child in cls.__subclasses__():
            yield from below(child)

    ours = [cls for cls in below(ModelFactoryError) if cls.__module__ == "model_factory.errors"]
    listed = {reason.error for reason in wire.CATALOGUE}
    # Servers raise no base classes, and only trainers raise SourceError and LockError.
    trainers = {"ModelFactoryError", "LocatedError", "SourceError", "LockError"}
    assert {cls.__name__ for cls in ours if cls not in listed} == trainers
    assert len({reason.name for reason in (*wire.CATALOGUE, wire.INTERNAL)}) == len(wire.CATALOGUE) + 1
    for index, reason in enumerate(wire.CATALOGUE):  # an entry behind a base class would never match
        assert wire.reason_of(reason.error("x")) is wire.CATALOGUE[index]


class Failure(grpc.RpcError):
    """A failed RPC on the client."""

    def __init__(self, status, request_id="id-0123456789"):
        self._status = status
        self._metadata = (*status.trailing_metadata, (wire.REQUEST_ID, request_id))

    def code(self):
        return self._status.code

    def details(self):
        return self._status.details

    def trailing_metadata(self):
        return self._metadata


def details_of(status):
    found = {}
    for item in rpc_status.from_call(Failure(status)).details:
        name = item.TypeName().removeprefix("google.rpc.")
        found[name] = getattr(error_details_pb2, name)()
        assert item.Unpack(found[name])
    return found


@pytest.mark.parametrize("reason", [*wire.CATALOGUE, wire.INTERNAL], ids=lambda reason: reason.name)
def test_every_reason_crosses_the_wire_with_what_is_public_of_it(reason):
    private = "canary: /var/lib/secret, line 7"
    error = ZeroDivisionError(private) if reason is wire.INTERNAL else reason.error(private)
    status = wire.to_status(error, "encoder", "id-0123456789")
    assert status.code.value[0] == reason.code
    details = details_of(status)
    info = details["ErrorInfo"]
    assert (info.reason, info.domain) == (reason.name, "model-factory")
    assert info.metadata["component"] == "encoder"
    assert details["RequestInfo"].request_id == "id-0123456789"
    assert ("RetryInfo" in details) == bool(reason.retry_seconds)
    if reason.retry_seconds:
        assert details["RetryInfo"].retry_delay.ToMilliseconds() == reason.retry_seconds * 1000
    back = wire.from_rpc_error(Failure(status), "host:1", lambda *_where: "there")
    assert type(back) is reason.error
    assert (private in str(back)) == (not reason.public)
    if reason.public:
        assert reason.public in str(back)
        assert "canary" not in str(status)
    ours_to_mend = status.code in {grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS}
    assert ("request id-0123456789" in str(back)) == ours_to_mend


def test_a_request_id_that_is_none_is_not_repeated():
    status = wire.to_status(ZeroDivisionError())
    for bad in ("x" * 65, "a\nb", b"bytes"):
        text = str(wire.from_rpc_error(Failure(status, bad), "host:1", lambda *_where: ""))
        assert "(request" not in text


def test_a_config_error_crosses_the_wire_whole():
    path = ("model", "graph", "modules", "a/b%2F", "_args_", 3, "#4")
    status = wire.to_status(ConfigError("no such thing", path=path, place="secret.py:3"), "encoder")

    asked = []
    error = wire.from_rpc_error(Failure(status), "host:1", lambda *where: asked.append(where) or "encoder.yaml:7:3")
    assert type(error) is ConfigError
    assert error.path == path
    assert str(error) == "encoder.yaml:7:3: model.graph.modules.a/b%2F._args_[3].#4: no such thing"
    assert asked == [("encoder", path)]
    assert "secret" not in str(status)


def test_a_path_that_is_none_is_no_error():
    assert wire._decode_path("{") == wire._decode_path('{"a": 1}') == wire._decode_path("[[1]]") == ()


@pytest.mark.parametrize("text", ["x" * 100_000, "\u00e9" * 50_000, "\U0001f600" * 50_000])
def test_a_long_text_fits_into_what_clients_take(text):
    """With metadata over 8 KiB, gRPC replaces the error by an error without details."""
    error = ConfigError(text, path=tuple(text[:200] for _ in range(60)))
    status = wire.to_status(error, "n" * 255, "i" * 64)
    escaped = sum(1 if 32 <= byte < 127 else 3 for byte in status.details.encode())
    assert escaped + sum(len(value) * 4 // 3 for _, value in status.trailing_metadata) < 8000
    assert status.details.startswith(text[:50])
    assert status.details.endswith(text[-20:])


@pytest.mark.parametrize(
    "kind",
    [RuntimeError, NotImplementedError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError],
)
def test_a_refused_call_keeps_the_class_of_what_the_forward_raised(kind):
    class Own(kind):
        pass

    for raised in (kind("x"), Own("x")):
        error = errors.refused_call("the forward refused the call: no", raised)
        got = wire.from_rpc_error(Failure(wire.to_status(error, "encoder")), "h:1", lambda _name, _path: "")
        for each in (error, got, pickle.loads(pickle.dumps(got))):  # noqa: S301  our own bytes
            assert isinstance(each, kind)
            assert isinstance(each, errors.CallSignatureError)
        assert str(error) == "the forward refused the call: no"
        assert str(got) == "component 'encoder': the forward refused the call: no"
    assert type(errors.refused_call("x", ZeroDivisionError())) is errors.CallSignatureError


def test_every_stage_has_a_name():
    names = [wire.stage_name(stage) for stage in build_pb2.BuildStage.values()]
    assert names == ["unspecified", "queued", "constructing", "recording", "writing", "done"]
    assert wire.stage_name(99) == "working", "a stage of a later server"


def manifest(**changes):
    digest = blob_pb2.Digest(blake3="ab" * 32, size_bytes=7)
    built = dict.fromkeys(("descriptor", "programs", "weights"), digest)
    keys = {"build_key": "ef" * 32, "architecture_key": "cd" * 32}
    component = build_pb2.BuiltComponent(**{"name": "encoder", **keys, **built, **changes})
    inline = build_pb2.InlineBlob(digest=digest, data=b"{}")
    identity = build_pb2.BuildIdentity(backend="builtin", format_version=FORMAT)
    return build_pb2.Manifest(components=[component], inline_blobs=[inline], identity=identity, server_version="1.2")


def test_a_manifest_is_read():
    found = wire.from_manifest(manifest(), "host:1")
    blob = Blob("ab" * 32, 7)
    (built,) = found.components
    assert (built.name, built.build_key, built.architecture_key) == ("encoder", "ef" * 32, "cd" * 32)
    assert found.server_version == "1.2"
    assert (built.descriptor, built.programs, built.weights) == (blob, blob, blob)
    assert found.inline == {blob.digest: b"{}"}
    assert (found.identity.backend, found.identity.format_version) == ("builtin", FORMAT)


@pytest.mark.parametrize(
    "changes",
    [
        {"build_key": ""},
        {"architecture_key": "../x"},
        {"weights": blob_pb2.Digest(blake3="ab" * 32, size_bytes=-1)},
        {"descriptor": None},
    ],
    ids=["build key", "key", "size", "missing digest"],
)
def test_a_malformed_manifest_is_refused(changes):
    with pytest.raises(FormatError):
        wire.from_manifest(manifest(**changes), "host:1")


def test_a_manifest_of_another_format_is_refused():
    other = manifest()
    other.identity.format_version = FORMAT + 1
    with pytest.raises(
        ServerError, match=rf"host:1 built with format {FORMAT + 1}, this client reads format {FORMAT}\."
    ):
        wire.from_manifest(other, "host:1")


def test_warnings_are_printable_and_bounded():
    message = manifest()
    message.components[0].warnings.extend(["slow \x1b[2J", *(f"{number} {'x' * 5000}" for number in range(200))])
    (built,) = wire.from_manifest(message, "host:1").components
    assert built.warnings[0] == "slow \\x1b[2J"
    assert len(built.warnings) == MAX_WARNINGS
    assert all(len(text) <= MAX_WARNING_CHARS for text in built.warnings)
