"""A soak of some seconds: what the command does for an hour, with the same checks."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import grpc

from model_factory.v1 import build_pb2, service_pb2_grpc, wire
from support.server import ServerProcess
from support.soak import SERVER_FLAGS, soak

SECONDS = 6.0
CLIENTS = 100
SEED = 20261123
HEALTH_SECONDS = 2.0  # for a machine on which everything shares two cores
GROWTH_MIB = 32.0
PARSE_SECONDS = 3.0


def test_many_clients_of_all_kinds(start_server: Callable[..., ServerProcess], tmp_path: Path) -> None:
    server = start_server(tmp_path / "store", "--metrics-listen", "127.0.0.1:0", *SERVER_FLAGS)
    found = re.search(r"metrics on (http://\S+)", server.log)
    assert found is not None
    outcome = soak(server, found[1], seconds=SECONDS, clients=CLIENTS, seed=SEED)
    assert not outcome.faults(health_seconds=HEALTH_SECONDS, growth_mib=GROWTH_MIB), outcome.summary()
    assert {"hit", "download", "describe", "build", "give up"} <= set(outcome.latencies)
    assert len(outcome.probes) > SECONDS
    assert max(sample.descriptors for sample in outcome.samples) > CLIENTS / 2, "were there that many connections?"
    assert server.stop() == 0


def test_a_health_check_does_not_wait_for_others_large_configs(server: ServerProcess) -> None:
    """The largest configs take seconds to read; who sends them by the dozen makes nobody else wait."""
    layers = [{"_type_": "nn.Linear", "in_features": 3, "out_features": 3}] * 12_000
    config = json.dumps({"schema_version": 1, "model": {"sequential": {"layers": layers}}}).encode()
    # One name twice: read and then refused, so that nothing is built.
    names = [*(str(index) for index in range(8)), "0"]
    request = build_pb2.DescribeModelsRequest(
        components=[build_pb2.Component(name=name, config_json=config) for name in names]
    )
    took: list[float] = []
    with grpc.insecure_channel(server.address) as channel, grpc.insecure_channel(server.address) as other:
        calls = [
            service_pb2_grpc.ModelFactoryServiceStub(other).DescribeModels.future(request, timeout=120)
            for _ in range(4)
        ]
        check = channel.unary_unary(wire.HEALTH_CHECK, request_serializer=bytes, response_deserializer=wire.health_of)
        begun = time.monotonic()
        while time.monotonic() - begun < PARSE_SECONDS:
            started = time.monotonic()
            assert check(b"", timeout=30) == "SERVING"
            took.append(time.monotonic() - started)
        assert not any(call.done() for call in calls), "they were read too soon to be in anyone's way"
        for call in calls:
            call.cancel()
    assert max(took) < 1.0, sorted(took)[-5:]
