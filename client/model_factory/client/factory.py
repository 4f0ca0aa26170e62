"""``RemoteModelFactory``: the trainers' factory, with the model code on a server."""

from __future__ import annotations

import logging
import operator
import threading
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Self

import grpc
import torch
from torch import nn

from model_factory.blocks import Block
from model_factory.client.connection import RETRY_ATTEMPTS, Connection
from model_factory.client.credentials import Credentials
from model_factory.client.fetch import fetch_blob, read_blob
from model_factory.client.program_client import RemotePrograms
from model_factory.client.progress import building, downloading
from model_factory.client.retry import Backoff, is_disconnect
from model_factory.client.seeds import build_seed
from model_factory.config.request import SEED_RANGE, Component, ModelRequest, read_request
from model_factory.descriptor.architecture import Architecture, Portability
from model_factory.descriptor.codec import decode_descriptor, decode_programs
from model_factory.descriptor.rebuild import Blueprint
from model_factory.descriptor.tree import Descriptor, SourceClass
from model_factory.descriptor.weights import map_weights
from model_factory.digest import check_digest
from model_factory.documents import FORMAT
from model_factory.environment import default_cache_bytes, default_cache_dir, environment, shared_store
from model_factory.errors import FormatError, MissingBlobError, ServerError
from model_factory.identity import BuildReference
from model_factory.limits import MAX_DOCUMENT_BYTES, MAX_SOURCE_BYTES
from model_factory.program.torch_names import torch_name
from model_factory.source.loader import load_source
from model_factory.source.trust import Trust, TrustSource
from model_factory.store import Blob, Store
from model_factory.v1 import build_pb2, capabilities_pb2, wire

log = logging.getLogger(__name__)

MAX_BLUEPRINTS = 64
"""Architectures that a process keeps compiled, some hundred kilobytes each."""


class RemoteModelFactory:
    """Builds models on a server and hands back trainable modules, without their code.

    The modules are real ``torch.nn`` modules over weights mapped from the node's cache; all processes of a node share
    one copy until they write to it.
    """

    def __init__(  # noqa: PLR0913  all but the address by name
        self,
        address: str,
        *,
        seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        base_dir: str | PathLike[str] | None = None,
        cache_dir: str | PathLike[str] | None = None,
        cache_bytes: int | None = None,
        timeout: float | None = None,
        credentials: Credentials | None = None,
        trust_source: TrustSource = None,
    ) -> None:
        """Make a factory; nothing is contacted until it is used.

        Args:
            address: ``HOST:PORT`` of the server, with an IPv6 host in brackets; ``unix:PATH`` and ``dns:///HOST:PORT``
                are addresses too.
            seed: Seed of the weights. By default each build draws one number from torch's default generator, as
                constructing in this process would: builds in a row differ, and repeat after ``torch.manual_seed``.
            dtype: What floating parameters and buffers are cast to; by default left as built.
            device: Where the modules' tensors are put.
            base_dir: What relative config paths are relative to; by default the working directory.
            cache_dir: The node's cache; by default ``$MODEL_FACTORY_CACHE`` or the user's cache folder.
            cache_bytes: What the blobs in the cache may take; before another is fetched, those go that were used least
                recently and are not in use. By default ``$MODEL_FACTORY_CACHE_GIB`` or 64 GiB.
            timeout: Seconds that a call to the server may take, a build's included; by default unlimited. A download is
                bounded by how long nothing comes instead.
            credentials: TLS and token; by default what ``MODEL_FACTORY_*`` variables say, which is neither without any.
            trust_source: Whose source code may be run here, for blocks that cannot travel without it: None for
                nobody's, the path of a lock file of ``model-factory trust``, digests of bundles, or True for whatever
                the server sends.

        Raises:
            ServerError: ``address`` is no address.
            SourceError: ``trust_source`` names a lock file that is none.
            FormatError: ``trust_source`` has a digest that is none.
            StoreError: the cache can neither be made nor read, or no folder for the cache is known.
            ModelFactoryError: an environment variable of this package's has no value that it can have.
        """
        self._trust = Trust(trust_source)
        self._connection = Connection(address, timeout, credentials, shared_store())
        self._seed = None if seed is None else operator.index(seed)
        self._dtype = "" if dtype is None else torch_name(dtype)
        self._device = torch.device(device)
        self._base_dir = Path("" if base_dir is None else base_dir).absolute()
        self._cache = Store(
            default_cache_dir() if cache_dir is None else Path(cache_dir),
            default_cache_bytes() if cache_bytes is None else cache_bytes,
            setting="MODEL_FACTORY_CACHE" if cache_dir is None else "cache_dir or MODEL_FACTORY_CACHE",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def build(self, model_cfg: Mapping[str, Any]) -> nn.Module | dict[str, nn.Module]:
        """Build the models of a config; see :class:`model_factory.ModelFactory`.

        Raises:
            ValueError: the mapping is empty.
            ModelFactoryError: see its subclasses.
        """
        request = read_request(model_cfg, self._base_dir, environment())
        self._connection.capabilities()
        with build_seed(self._seed) as drawn:
            seed = drawn % SEED_RANGE
            manifest = self._build_on_server(request, seed)
            modules = {
                component.name: self._module(component, built, manifest, seed)
                for component, built in zip(request.components, manifest.components, strict=True)
            }
        return request.result(modules)

    def describe(
        self, model_cfg: Mapping[str, Any], *, portability: bool = False
    ) -> Architecture | dict[str, Architecture]:
        """Return the architecture and sizes of the models of a config, without building their weights.

        With ``travel`` the server also tries how each module travels, and why; that takes as long as a first build.

        Raises:
            ValueError: the mapping is empty.
            ModelFactoryError: see its subclasses.
        """
        request = read_request(model_cfg, self._base_dir, environment())
        self._connection.capabilities()
        message = build_pb2.DescribeModelsRequest(
            components=_components(request), dtype=self._dtype, portability=portability
        )
        with self._connection.errors(_configs(request)):
            response = self._connection.stub.DescribeModels(message, timeout=self._connection.timeout)
        if [item.name for item in response.components] != [item.name for item in request.components]:
            raise ServerError(f"the server at {self._connection.address} described other components than asked for")
        found = {item.name: _architecture(item, portability=portability) for item in response.components}
        return request.result(found)

    def read_source(self, bundle: Blob) -> bytes:
        """Return a bundle that a descriptor names, as text to look at: nothing of it is run, whatever is trusted.

        Raises:
            FormatError: it is too large for a bundle, or another one.
            UnavailableError: the server went away.
        """
        if bundle.size > MAX_SOURCE_BYTES:
            raise FormatError(f"a bundle of {bundle.size} bytes; at most {MAX_SOURCE_BYTES} are allowed")
        return read_blob(self._connection, self._cache, bundle, {})

    def blocks(self) -> list[Block]:
        """What configs may name on this server, sorted by name.

        Raises:
            ServerError: the server cannot be reached, or refuses.
        """
        self._connection.capabilities()
        with self._connection.errors():
            response = self._connection.stub.ListBlocks(
                capabilities_pb2.ListBlocksRequest(), timeout=self._connection.timeout
            )
        return [wire.from_block(block) for block in response.blocks]

    def close(self) -> None:
        """Close the connection; the factory and its modules open another when they need one."""
        self._connection.close()

    def _build_on_server(self, request: ModelRequest, seed: int) -> build_pb2.Manifest:
        message = build_pb2.BuildModelsRequest(components=_components(request), seed=seed, dtype=self._dtype)
        manifest: build_pb2.Manifest | None = None
        names = [component.name for component in request.components]
        with self._connection.errors(_configs(request)), building(names) as report:
            for response in self._build_events(message):
                if response.WhichOneof("event") == "manifest":
                    manifest = response.manifest
                else:
                    report(response.progress.component, _stage_name(response.progress.stage))
        if manifest is None or [item.name for item in manifest.components] != names:
            raise ServerError(f"the server at {self._connection.address} ended a build without its manifest")
        _check_format(manifest, self._connection.address)
        return manifest

    def _build_events(self, message: build_pb2.BuildModelsRequest) -> Iterator[build_pb2.BuildModelsResponse]:
        """What the server says of a build; asked again where it went away amid it, as gRPC does before it has begun.

        Builds are idempotent. A few times only: it may be this build that ends servers.
        """
        backoff, begun = Backoff(), 0
        while True:
            events = self._connection.stub.BuildModels(message, timeout=self._connection.timeout)
            try:
                for index, event in enumerate(events):
                    begun += index == 0
                    yield event
            except grpc.RpcError as error:
                if not (0 < begun < RETRY_ATTEMPTS and is_disconnect(error) and backoff.wait()):
                    raise
            else:
                return

    def _module(
        self, component: Component, built: build_pb2.BuiltComponent, manifest: build_pb2.Manifest, seed: int
    ) -> nn.Module:
        try:
            return self._assemble(component, built, manifest, seed)
        except MissingBlobError as error:  # it left the server's store before it was read, to make room for another
            log.info("%s is built again: %s", component.name, error)
        manifest = self._build_on_server(ModelRequest(components=(component,), single=True), seed)
        return self._assemble(component, manifest.components[0], manifest, seed)

    def _assemble(
        self, component: Component, built: build_pb2.BuiltComponent, manifest: build_pb2.Manifest, seed: int
    ) -> nn.Module:
        descriptor_blob, programs_blob, weights_blob = (
            wire.from_digest(item) for item in (built.descriptor, built.programs, built.weights)
        )
        blueprint = _BLUEPRINTS.get(
            (descriptor_blob, programs_blob),
            lambda: self._blueprint(descriptor_blob, programs_blob, _inline(manifest)),
        )
        find_class = self._trusted_classes(component.name, blueprint.descriptor)  # before anything large is fetched
        build = BuildReference(
            identity=wire.from_identity(manifest.identity),
            architecture_key=check_digest(built.architecture_key),
            descriptor=descriptor_blob,
            dtype=self._dtype,
            seed=seed,
        )
        recorder = RemotePrograms(self._connection, self._cache, component, build, programs_blob)
        _check_size(weights_blob, blueprint.tensor_bytes)
        return blueprint.build(self._weights(component.name, weights_blob), recorder, find_class)

    def _blueprint(self, descriptor: Blob, programs: Blob, inline: dict[str, bytes]) -> Blueprint:
        for blob in (descriptor, programs):
            if blob.size > MAX_DOCUMENT_BYTES:
                raise FormatError(f"a document of {blob.size} bytes; at most {MAX_DOCUMENT_BYTES} are allowed")
        return Blueprint(
            decode_descriptor(read_blob(self._connection, self._cache, descriptor, inline)),
            decode_programs(read_blob(self._connection, self._cache, programs, inline)),
        )

    def _trusted_classes(self, component: str, descriptor: Descriptor) -> Callable[[SourceClass], Any] | None:
        """Return what finds the classes of source modules; None where there are none. Refuses what is not trusted."""
        bundle = descriptor.bundle
        if bundle is None:
            return None
        reasons = descriptor.source_reasons
        self._trust.check(component, bundle.digest, reasons, lambda: self.read_source(bundle))
        source = load_source(self.read_source(bundle), bundle.digest, f"{component}: {', '.join(reasons)}")
        return lambda item: source.find_class(item.module, item.qualname)

    def _weights(self, name: str, blob: Blob) -> dict[str, torch.Tensor]:
        with (
            downloading(name, blob.size) as progress,
            fetch_blob(self._connection, self._cache, blob, progress.received, progress.waiting) as file,
        ):
            try:
                return map_weights(file, self._device)
            except FormatError:
                if self._cache.verify(blob.digest):
                    raise  # it is what the server made
        return self._weights(name, blob)


class _Blueprints:
    """Blueprints that this process used last: another build of the same architecture compiles nothing again."""

    def __init__(self) -> None:
        self._known: dict[tuple[Blob, Blob], Blueprint] = {}
        self._lock = threading.Lock()

    def get(self, key: tuple[Blob, Blob], make: Callable[[], Blueprint]) -> Blueprint:
        """Return the blueprint of a descriptor and its programs, made if it is not known."""
        with self._lock:
            blueprint = self._known.pop(key, None)
        if blueprint is None:
            blueprint = make()
        with self._lock:
            self._known[key] = blueprint  # now the last one
            while len(self._known) > MAX_BLUEPRINTS:
                del self._known[next(iter(self._known))]
        return blueprint


_BLUEPRINTS = _Blueprints()


def _architecture(item: build_pb2.DescribedComponent, *, portability: bool) -> Architecture:
    descriptor = decode_descriptor(item.descriptor_json)
    if not portability:
        return Architecture(descriptor)
    programs = decode_programs(item.programs_json) if item.programs_json else ()
    return Architecture(descriptor, Portability(programs=programs, refused=dict(item.refused)))


def _components(request: ModelRequest) -> list[build_pb2.Component]:
    return [build_pb2.Component(name=item.name, config_json=item.config.wire) for item in request.components]


def _check_format(manifest: build_pb2.Manifest, address: str) -> None:
    """Refuse a manifest of another format: the address may have another server than the one that said its format."""
    found = manifest.identity.format_version
    if found != FORMAT:
        raise ServerError(
            f"the server at {address} built with format {found}, this client reads format {FORMAT}. Remedy: install "
            "the same version on both"
        )


def _check_size(weights: Blob, tensor_bytes: int) -> None:
    """Refuse a weights file that is not what was described, with a head, before room is made for it."""
    if not 0 <= weights.size - tensor_bytes <= MAX_DOCUMENT_BYTES:
        raise FormatError(f"a weights file of {weights.size} bytes, where tensors of {tensor_bytes} are described")


def _stage_name(stage: int) -> str:
    if stage not in build_pb2.BuildStage.values():  # of a later server
        return "working"
    return build_pb2.BuildStage.Name(stage).removeprefix("BUILD_STAGE_").lower()


def _inline(manifest: build_pb2.Manifest) -> dict[str, bytes]:
    return {item.digest.blake3: item.data for item in manifest.inline_blobs}


def _configs(request: ModelRequest) -> dict[str, Any]:
    return {item.name: item.config for item in request.components}
