"""Assemble a built component on the trainer: fetch descriptor, programs and weights, and rebuild the module."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping
from importlib import metadata

import torch
from torch import nn

from model_factory.checkpoint.checkpoint import Checkpoint, described_targets
from model_factory.client.builds.build_lock import BuildLock
from model_factory.client.builds.trusted_source import SourceClient
from model_factory.client.connection import Connection
from model_factory.client.fetch import fetch_blob, read_blob
from model_factory.client.program_client import ProgramClient
from model_factory.client.progress import downloading
from model_factory.config.request import Component
from model_factory.descriptor.codec import decode_descriptor, decode_programs
from model_factory.descriptor.rebuild import Blueprint, BuiltState, in_memory_order
from model_factory.descriptor.tree import Descriptor
from model_factory.descriptor.weights import map_weights
from model_factory.errors import FormatError
from model_factory.identity import BuildInfo, BuildReference, BuiltComponent, Manifest
from model_factory.limits import MAX_DOCUMENT_BYTES
from model_factory.source.trust import Trust
from model_factory.store import Blob, Store

log = logging.getLogger(__name__)

MAX_BLUEPRINTS = 64
"""Compiled architectures kept per process; one takes some hundred kilobytes."""


class Assembler:
    """Rebuilds modules from the blobs of a build."""

    def __init__(
        self,
        connection: Connection,
        cache: Store,
        trust: Trust,
        *,
        device: torch.device,
        dtype: str,
        share_values: bool = False,
        lock: BuildLock | None = None,
    ) -> None:
        """Prepare for the builds of a factory.

        Args:
            connection: Connection to the server.
            cache: The node cache.
            trust: The trusted source.
            device: Place of the tensors.
            dtype: Dtype of the builds; empty: no cast.
            share_values: Whether the server may learn values of calls to record.
            lock: The pinned builds.
        """
        self._lock = lock
        self._share_values = share_values
        self._connection = connection
        self._cache = cache
        self.source = SourceClient(connection, cache, trust)
        self._device = device
        self._dtype = dtype

    def assemble(
        self,
        component: Component,
        built: BuiltComponent,
        manifest: Manifest,
        seed: int,
        checkpoint: Checkpoint | None = None,
    ) -> nn.Module:
        """Rebuild the module of one component; with a ``checkpoint``, fetch weights only for tensors that it lacks.

        Raises:
            LockError: the build is not the pinned build; nothing was fetched.
            MissingBlobError: the server's store no longer has a blob of the build.
            SourceError: the module needs untrusted source code.
            ModelFactoryError: see the other subclasses.
        """
        build = BuildReference(
            identity=manifest.identity,
            architecture_key=built.architecture_key,
            descriptor=built.descriptor,
            dtype=self._dtype,
            seed=seed,
        )
        info = BuildInfo.of_remote(
            *(built, manifest, build),
            config_digest=component.config.digest,
            checkpoint=None if (named := component.config.model.weights) is None else named.name,
            client_version=metadata.version("model-factory"),
            client_torch_version=str(torch.__version__),
        )
        if self._lock is not None:
            self._lock.check(info)
        blueprint = _BLUEPRINTS.get(
            (built.descriptor, built.programs), lambda: self._read_blueprint(built, manifest.inline)
        )
        find_class = self.source.find_class(component.name, blueprint.descriptor)  # before the large download
        described = BuiltState(blueprint.descriptor)
        recorder = ProgramClient(
            *(self._connection, self._cache, component, build, built.programs, described, self.source),
            server=manifest.server,
            share_values=self._share_values,
        )
        _check_size(built.weights, blueprint.tensor_bytes)
        tensors = self._tensors(component.name, built.weights, blueprint.descriptor, checkpoint)
        model = blueprint.build(tensors, recorder, find_class)
        if checkpoint is not None:
            info = dataclasses.replace(info, weights=None)
        info.attach(model)
        log.info("built %s", info)
        if built.notice:
            log.warning("%s: %s", component.name, built.notice)
        for text in built.warnings:
            log.warning("%s: a constructor warns: %s", component.name, text)
        _warn_of_other_torch(info)
        return model

    def _read_blueprint(self, built: BuiltComponent, inline: Mapping[str, bytes]) -> Blueprint:
        for blob in (built.descriptor, built.programs):
            if blob.size > MAX_DOCUMENT_BYTES:
                raise FormatError(f"a document of {blob.size} bytes; at most {MAX_DOCUMENT_BYTES} are allowed")
        return Blueprint(
            decode_descriptor(read_blob(self._connection, self._cache, built.descriptor, inline)),
            decode_programs(read_blob(self._connection, self._cache, built.programs, inline)),
        )

    def _tensors(
        self, name: str, weights: Blob, descriptor: Descriptor, checkpoint: Checkpoint | None
    ) -> Mapping[str, torch.Tensor]:
        """Return the tensors of a model: from the checkpoint, and the others from the build's weights."""
        if checkpoint is None:
            return self._read_weights(name, weights)
        found = checkpoint.match(described_targets(descriptor))
        checkpoint.log_difference()
        own = {
            node.name: in_memory_order(found[node.name], node).to(self._device)
            for node in descriptor.tensors
            if node.name in found
        }
        if all(node.name in own or node.shape is None for node in descriptor.tensors):
            return own
        return {**self._read_weights(name, weights), **own}

    def _read_weights(self, name: str, blob: Blob) -> dict[str, torch.Tensor]:
        with (
            downloading(name, blob.size) as progress,
            fetch_blob(self._connection, self._cache, blob, progress.received, progress.waiting) as file,
        ):
            try:
                return map_weights(file, self._device)
            except FormatError:
                if self._cache.verify(blob.digest):
                    raise  # the server made the malformed file
        return self._read_weights(name, blob)  # the file was damaged on this node's disk, and is removed


def _check_size(weights: Blob, tensor_bytes: int) -> None:
    """Refuse weights of another size than the described tensors plus a header, before the cache makes room."""
    if not 0 <= weights.size - tensor_bytes <= MAX_DOCUMENT_BYTES:
        raise FormatError(f"a weights file of {weights.size} bytes for described tensors of {tensor_bytes} bytes")


def _warn_of_other_torch(info: BuildInfo) -> None:
    """Log once per process and pair of releases that server and trainer have different releases of torch.

    Build variants of a release (``+cpu``, ``+cu128``) are the common case of a server without a GPU.
    """
    pair = (info.torch_version.partition("+")[0], info.client_torch_version.partition("+")[0])
    if pair[0] != pair[1] and pair not in _warned_of:
        _warned_of.add(pair)
        log.warning(
            "the server built with torch %s, this process has torch %s: the weights are equal, results of calls and "
            "gradients may differ in the last digits (docs/versions.md)",
            *pair,
        )


_warned_of: set[tuple[str, str]] = set()


class _BlueprintCache:
    """The most recent blueprints of this process: a repeated build of an architecture compiles nothing."""

    def __init__(self) -> None:
        self._known: dict[tuple[Blob, Blob], Blueprint] = {}
        self._lock = threading.Lock()

    def get(self, key: tuple[Blob, Blob], make: Callable[[], Blueprint]) -> Blueprint:
        """Return the blueprint of a descriptor and programs; call ``make`` for a new pair."""
        with self._lock:
            blueprint = self._known.pop(key, None)
        if blueprint is None:
            blueprint = make()
        with self._lock:
            self._known[key] = blueprint  # most recently used
            while len(self._known) > MAX_BLUEPRINTS:
                del self._known[next(iter(self._known))]
        return blueprint


_BLUEPRINTS = _BlueprintCache()
