"""One client at all its quotas at once, in a process of its own: ``python -m support.load.greedy ADDRESS BLOB SIZE``.

The client has an address of its own, 127.0.0.2. Each part takes a share of the client's RPCs; the parts begin again
when the server ends them. ``holding`` is printed once every part has begun.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from model_factory.limits import MIB
from model_factory.v1 import blob_pb2, build_pb2, program_pb2
from support.configs import layers
from support.http2 import Http2Client, message

SOURCE = "127.0.0.2"
SERVICE = "/model_factory.v1.ModelFactoryService"
HEALTH = "/grpc.health.v1.Health"
REQUEST_BYTES = 8 * MIB - 4096


def dense_config() -> bytes:
    """A config that takes 90 times its bytes as Python's objects."""
    values = [[] for _ in range(95_000)]
    return json.dumps(layers({"_type_": "nn.ReLU", "inplace": values}), separators=(",", ":")).encode()


def components(config: bytes, count: int) -> list[build_pb2.Component]:
    return [build_pb2.Component(name=f"m{index}", config_json=config) for index in range(count)]


class Greedy:
    """The client."""

    def __init__(self, address: str, blob: blob_pb2.Digest) -> None:
        self._address = address
        self._blob = blob
        self._begun: list[threading.Event] = []
        dense = dense_config()
        self._dense = build_pb2.DescribeModelsRequest(components=components(dense, REQUEST_BYTES // (len(dense) + 64)))
        wide = json.dumps(layers(*[{"_type_": "nn.Linear", "in_features": 2, "out_features": 2}] * 3000)).encode()
        self._wide = build_pb2.DescribeModelsRequest(components=components(wide, 3))

    def start(self) -> None:
        """Begin all parts, and give each some seconds to begin."""
        parts: list[tuple[Callable[[Http2Client], None], int]] = [
            (self.unfinished_requests, 1),
            (self.dense_requests, 4),
            (self.empty_components, 2),
            (self.many_flags, 1),
            (self.unread_blobs, 1),
            (self.unread_answers, 1),
            (self.unfinished_probes, 2),
            (self.watches, 1),
            (self.queue_of_builds, 1),
        ]
        for part, times in parts:
            for _ in range(times):
                self._begun.append(begun := threading.Event())
                threading.Thread(target=self._repeat, args=(part, begun), daemon=True).start()
        end = time.monotonic() + 4
        for begun in self._begun:
            begun.wait(max(0.0, end - time.monotonic()))

    def _repeat(self, part: Callable[[Http2Client], None], begun: threading.Event) -> None:
        while True:
            with suppress(OSError):
                client = Http2Client(self._address, SOURCE)
                try:
                    part(client)
                    begun.set()
                    time.sleep(0.2)
                finally:
                    client.close()

    def unfinished_requests(self, client: Http2Client) -> None:
        """All but the last bytes of the largest requests."""
        streams = [client.begin(f"{SERVICE}/BuildModels") for _ in range(40)]
        for stream in streams:
            client.send(stream, message(bytes(REQUEST_BYTES - 1), REQUEST_BYTES), seconds=0.2)
        client.wait(streams[0], 30)

    def dense_requests(self, client: Http2Client) -> None:
        """The largest requests, of configs that parse into the most objects."""
        client.call(f"{SERVICE}/DescribeModels", _bytes(self._dense))

    def empty_components(self, client: Http2Client) -> None:
        """Four million components without a byte, of 2 bytes each on the wire."""
        client.call(f"{SERVICE}/DescribeModels", b"\x0a\x00" * (REQUEST_BYTES // 2))

    def many_flags(self, client: Http2Client) -> None:
        """A call to record with 300,000 flags."""
        flags = {f"{index:x}": False for index in range(300_000)}
        client.call(f"{SERVICE}/RecordProgram", _bytes(program_pb2.RecordProgramRequest(training=flags)))

    def unread_blobs(self, client: Http2Client) -> None:
        """Streams of a large blob, of which nothing is read."""
        self._send_all(client, "ReadBlob", [blob_pb2.ReadBlobRequest(digest=self._blob)] * 30)

    def unread_answers(self, client: Http2Client) -> None:
        """Descriptions of some MiB each, of which nothing is read."""
        self._send_all(client, "DescribeModels", [self._wide] * 10)

    def unfinished_probes(self, client: Http2Client) -> None:
        """Health checks of 8 MiB each, without the last byte."""
        streams = [client.begin(f"{HEALTH}/Check") for _ in range(60)]
        for stream in streams:
            client.send(stream, message(bytes(REQUEST_BYTES - 1), REQUEST_BYTES), seconds=0.1)

    def watches(self, client: Http2Client) -> None:
        """Health watches of names that no service has."""
        for index in range(100):
            request = health_pb2.HealthCheckRequest(service=f"{index}" * 1000)
            client.send(client.begin(f"{HEALTH}/Watch"), message(_bytes(request)), end=True)
        time.sleep(5)

    def queue_of_builds(self, client: Http2Client) -> None:
        """More builds than there are workers, each of another seed."""
        config = json.dumps(layers({"_type_": "nn.Linear", "in_features": 700, "out_features": 700})).encode()
        first, many = time.monotonic_ns(), components(config, 1)
        requests = [build_pb2.BuildModelsRequest(components=many, seed=first + index) for index in range(20)]
        self._send_all(client, "BuildModels", requests)

    def _send_all(self, client: Http2Client, method: str, requests: list[Message]) -> None:
        streams = [client.begin(f"{SERVICE}/{method}") for _ in requests]
        for stream, request in zip(streams, requests, strict=True):
            client.send(stream, message(_bytes(request)), end=True)
        for stream in streams:
            client.wait(stream, 10)


def _bytes(request: Message) -> bytes:
    data: bytes = request.SerializeToString()
    return data


if __name__ == "__main__":
    os.nice(19)
    address, digest, size = sys.argv[1:]
    Greedy(address, blob_pb2.Digest(blake3=digest, size_bytes=int(size))).start()
    sys.stdout.write("holding\n")
    sys.stdout.flush()
    sys.stdin.read()  # until the parent closes the pipe
