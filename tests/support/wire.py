"""Requests on the wire, for digests and identities that factories do not show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc

from model_factory.config.request import read_request
from model_factory.limits import MAX_MESSAGE_BYTES
from model_factory.v1 import build_pb2, service_pb2_grpc


def build_manifest(
    address: str,
    model_cfg: Mapping[str, Any],
    *,
    seed: int = 0,
    dtype: str = "",
    on_stage: Callable[[str, int], None] = lambda _component, _stage: None,
) -> dict[str, build_pb2.BuiltComponent]:
    """Build, and return the manifest entry of each component."""
    manifest = whole_manifest(address, model_cfg, seed=seed, dtype=dtype, on_stage=on_stage)
    return {item.name: item for item in manifest.components}


def built_from(address: str, config: Mapping[str, Any], *, dtype: str = "") -> build_pb2.BuildReference:
    """Build a component, and return the reference for requests to record a module of the component."""
    manifest = whole_manifest(address, {"config": config}, dtype=dtype)
    (built,) = manifest.components
    return build_pb2.BuildReference(
        identity=manifest.identity,
        architecture_key=built.architecture_key,
        descriptor=built.descriptor,
        dtype=dtype,
    )


def whole_manifest(
    address: str,
    model_cfg: Mapping[str, Any],
    *,
    seed: int = 0,
    dtype: str = "",
    on_stage: Callable[[str, int], None] = lambda _component, _stage: None,
) -> build_pb2.Manifest:
    """Build, and return the manifest."""
    request = build_pb2.BuildModelsRequest(
        components=[
            build_pb2.Component(name=item.name, config_json=item.config.wire)
            for item in read_request(model_cfg, Path.cwd(), {}).components
        ],
        seed=seed,
        dtype=dtype,
    )
    manifests = []
    with grpc.insecure_channel(address, [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]) as channel:
        for event in service_pb2_grpc.ModelFactoryServiceStub(channel).BuildModels(request, timeout=120):
            assert not manifests, "something came after the manifest"
            if event.WhichOneof("event") == "manifest":
                manifests.append(event.manifest)
            else:
                on_stage(event.progress.component, event.progress.stage)
    (manifest,) = manifests
    return manifest


def digests(built: Mapping[str, build_pb2.BuiltComponent]) -> dict[str, tuple[str, str, str]]:
    """Return the digests of descriptor, programs and weights of each component."""
    return {name: (item.descriptor.blake3, item.programs.blake3, item.weights.blake3) for name, item in built.items()}
