"""Requests: their fields are counted before they are decoded; clients without a name are networks."""

from __future__ import annotations

import pytest

from model_factory.errors import FormatError, LimitError
from model_factory.v1 import build_pb2, program_pb2
from model_factory_server.rpc.reception import check_fields, peer_network


def test_honest_requests_pass() -> None:
    flags = {f"layer{index}": bool(index % 2) for index in range(100)}
    request = program_pb2.RecordProgramRequest(training=flags, call_json=b"x" * 1000, module_path="a.b")
    check_fields(request.SerializeToString(), 103)
    components = [build_pb2.Component(name=f"m{index}", config_json=b"{}" * 500) for index in range(256)]
    request2 = build_pb2.BuildModelsRequest(components=components, seed=2**64 - 1, dtype="float32")
    check_fields(request2.SerializeToString(), 258)
    check_fields(b"", 0)
    check_fields(b"\x09" + bytes(8) + b"\x0d" + bytes(4), 2)  # numbers of fixed size


def test_many_fields_are_refused() -> None:
    with pytest.raises(LimitError, match="at most 300 fields"):
        check_fields(b"\x0a\x00" * 4_000_000, 300)


@pytest.mark.parametrize(
    "data", [b"\xff" * 8_000_000, b"\x0b", b"\x0a", b"\x08\xff", b"\x0a\xff"], ids=["endless", "group", "cut", "v", "s"]
)
def test_bytes_that_are_no_message(data: bytes) -> None:
    with pytest.raises(FormatError):
        check_fields(data, 300)


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("ipv4:10.0.0.1:50000", "10.0.0.1"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:50000", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::9]:50000", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:10.0.0.1%5D:50000", "10.0.0.1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:50000", "fe80::/64"),
        ("unix:/run/socket", "unix:/run/socket"),
    ],
)
def test_clients_without_a_name(peer: str, client: str) -> None:
    assert peer_network(peer) == client
