"""A server with hostile responses of a test, over real gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from model_factory.documents import FORMAT
from model_factory.store import Blob
from model_factory.v1 import blob_pb2, build_pb2, capabilities_pb2, program_pb2, service_pb2_grpc, wire


class HostileServer(service_pb2_grpc.ModelFactoryServiceServicer):
    """Serves the same model for every component: descriptor, weights, and any bytes under a digest."""

    def __init__(self, descriptor: bytes, weights: bytes, programs: bytes, blobs: dict[str, bytes]) -> None:
        self.descriptor, self.weights, self.programs = descriptor, weights, programs
        self.blobs = blobs
        """Bytes served by digest, also for a wrong digest."""
        self.identity = build_pb2.BuildIdentity(format_version=FORMAT)
        """Identity that the server claims."""
        self.architecture_key = "0" * 64
        self.recorded = b""
        """Response to every request to record a program."""
        self.recorded_source = b""
        """Descriptor of source code in this response."""
        self.asked: list[str] = []
        """Digests that a client has read."""
        self._server = grpc.server(ThreadPoolExecutor(2))
        service_pb2_grpc.add_ModelFactoryServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait()

    def GetCapabilities(self, request: Any, context: Any) -> capabilities_pb2.GetCapabilitiesResponse:  # noqa: ARG002, N802
        return capabilities_pb2.GetCapabilitiesResponse(server_version="0", format_version=FORMAT)

    def RecordProgram(self, request: Any, context: Any) -> program_pb2.RecordProgramResponse:  # noqa: ARG002, N802
        return program_pb2.RecordProgramResponse(
            programs_json=self.recorded, source_descriptor_json=self.recorded_source
        )

    def DescribeModels(self, request: Any, context: Any) -> build_pb2.DescribeModelsResponse:  # noqa: ARG002, N802
        return build_pb2.DescribeModelsResponse(
            components=[
                build_pb2.DescribedComponent(
                    name=item.name, descriptor_json=self.descriptor, programs_json=self.programs
                )
                for item in request.components
            ]
        )

    def BuildModels(self, request: Any, context: Any) -> Iterator[build_pb2.BuildModelsResponse]:  # noqa: ARG002, N802
        contents = {name: self._blob(getattr(self, name)) for name in ("descriptor", "programs", "weights")}
        yield build_pb2.BuildModelsResponse(
            manifest=build_pb2.Manifest(
                components=[
                    build_pb2.BuiltComponent(
                        name=item.name, build_key="0" * 64, architecture_key=self.architecture_key, **contents
                    )
                    for item in request.components
                ],
                identity=self.identity,
            )
        )

    def ReadBlob(self, request: Any, context: Any) -> Iterator[blob_pb2.ReadBlobResponse]:  # noqa: ARG002, N802
        self.asked.append(request.digest.blake3)
        yield blob_pb2.ReadBlobResponse(data=self.blobs[request.digest.blake3])

    def _blob(self, data: bytes) -> blob_pb2.Digest:
        blob = Blob.of(data)
        self.blobs[blob.digest] = data
        return wire.to_digest(blob)
