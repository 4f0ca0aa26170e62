"""The hand-written frames of blob chunks are the protobuf messages they stand for."""

import grpc
import pytest

from model_factory.errors import ConfigError, FormatError, ModelFactoryError
from model_factory.v1 import blob_pb2, wire


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
    listed = {cls for cls, _, _ in wire.CATALOGUE}
    # A forward fails on the trainer, and the base itself is never raised: neither crosses the wire.
    assert {cls.__name__ for cls in ours if cls not in listed} == {"ModelFactoryError", "GraphExecutionError"}


def test_a_config_error_crosses_the_wire_whole():
    path = ("model", "graph", "modules", "a/b%2F", "_args_", 3, "#4")
    status = wire.to_status(ConfigError("no such thing", path=path, place="secret.py:3"), "encoder")

    class Failure(grpc.RpcError):
        def code(self):
            return status.code

        def details(self):
            return status.details

        def trailing_metadata(self):
            return status.trailing_metadata

    asked = []
    error = wire.from_rpc_error(Failure(), "host:1", lambda *where: asked.append(where) or "encoder.yaml:7:3")
    assert type(error) is ConfigError
    assert error.path == path
    assert str(error) == "encoder.yaml:7:3: model.graph.modules.a/b%2F._args_[3].#4: no such thing"
    assert asked == [("encoder", path)]
    assert "secret" not in str(status)


def test_a_path_that_is_none_is_no_error():
    assert wire._decode_path("{") == wire._decode_path('{"a": 1}') == wire._decode_path("[[1]]") == ()
