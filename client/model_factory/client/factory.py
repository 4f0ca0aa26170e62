"""``RemoteModelFactory``: the factory of a trainer that has no model code; a server builds the models."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import operator
from collections.abc import Collection, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import grpc
import torch
from torch import nn

from model_factory.blocks import Block
from model_factory.checkpoint.checkpoint import Checkpoint, checkpoints, has_no_random_weights
from model_factory.client.address import server_of_environment
from model_factory.client.assembly import Assembler
from model_factory.client.builds.build_lock import BuildLock
from model_factory.client.builds.known_builds import KnownBuilds
from model_factory.client.connection import RETRY_ATTEMPTS, Connection
from model_factory.client.credentials import Credentials
from model_factory.client.progress import building
from model_factory.client.retry import Backoff, is_disconnect
from model_factory.client.seeds import build_seed
from model_factory.config import ResolvedConfig
from model_factory.config.request import SEED_RANGE, Component, ModelRequest, read_request
from model_factory.descriptor.architecture import Architecture, Portability
from model_factory.descriptor.codec import decode_descriptor, decode_programs
from model_factory.environment import (
    default_cache_bytes,
    default_cache_dir,
    environment,
    shared_store,
    trusted_lock_file,
)
from model_factory.environment import offline as offline_by_default
from model_factory.environment import share_values as share_values_by_default
from model_factory.errors import MissingBlobError, ServerError, StoreError, UnavailableError, safe_text
from model_factory.identity import BuiltComponent, Manifest
from model_factory.program.torch_names import torch_name
from model_factory.protocol import NamedModels, SingleModel, Weights
from model_factory.source.trust import Trust, TrustSource
from model_factory.store import Blob, Store
from model_factory.v1 import build_pb2, capabilities_pb2, wire
from model_factory.wording import html_table, listed, printable

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

log = logging.getLogger(__name__)

MAX_EVENTS = 1000
"""Events of a build for one component; a server sends one for each stage."""

_MAX_REBUILDS = 2  # a disk can damage the documents and the weights of a build


class RemoteModelFactory:
    """Builds models on a server and returns trainable modules; the trainer needs no model code.

    Modules are real ``torch.nn`` modules. The weights are mapped from the node cache: all processes of a node share one
    copy until a process writes to the weights.

    ``server`` is the address of a running server, for example ``"gpu-node:50051"``:

    >>> import torch
    >>> from model_factory import RemoteModelFactory
    >>> head = {"schema_version": 1, "model": {"sequential": {"layers": [
    ...     {"_type_": "nn.Linear", "in_features": 8, "out_features": 16},
    ...     {"_type_": "nn.GELU"},
    ...     {"_type_": "nn.Linear", "in_features": 16, "out_features": 4}]}}}
    >>> with RemoteModelFactory(server, seed=7) as factory:
    ...     model = factory.build({"config": head})
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> loss = model(torch.ones(2, 8)).square().mean()
    >>> loss.backward()
    >>> optimizer.step()

    Several components are built in one request; a component is a mapping or the path of a YAML file:

    >>> sorted(factory.build({"policy": head, "critic": head}))
    ['critic', 'policy']
    """

    def __init__(  # noqa: PLR0913  keywords except the address
        self,
        address: str | None = None,
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
        share_values: bool | None = None,
        lock: str | PathLike[str] | None = None,
        offline: bool | None = None,
    ) -> None:
        """Create a factory; the first use connects to the server.

        Args:
            address: ``HOST:PORT`` of the server, with brackets around an IPv6 host; ``unix:PATH`` and
                ``dns:///HOST:PORT`` are addresses, too. By default ``$MODEL_FACTORY_SERVER``.
            seed: Seed of the weights. By default each build draws one number from torch's default generator, like
                construction in this process: consecutive builds differ, and repeat after ``torch.manual_seed``.
            dtype: Dtype for floating parameters and buffers; by default no cast.
            device: Device of the modules' tensors.
            base_dir: Folder for relative config paths; by default the working directory.
            cache_dir: Folder of the node cache; by default ``$MODEL_FACTORY_CACHE``, else the user's cache folder.
            cache_bytes: Bound on the blobs in the cache. Before a fetch, unused blobs are evicted, least recently used
                first. By default ``$MODEL_FACTORY_CACHE_GIB``, else 64 GiB.
            timeout: Seconds for one RPC, builds included; by default unlimited. Downloads fail after 60 s without data.
            credentials: TLS and token; by default the ``MODEL_FACTORY_*`` environment variables, else no TLS and no
                token.
            trust_source: Source code that may run in this process, for blocks that are not portable as programs. A
                path: a lock file from ``model-factory trust``. Digests: bundles. True: any source from this server.
                False: no source. By default the lock file ``$MODEL_FACTORY_TRUST_SOURCE``, else no source.
            share_values: Whether the server may learn values of calls: constants, ranges of tensors, outcomes of
                decisions by values, and attributes set by the trainer. Needed only for calls whose program depends on
                values unknown to the server; without permission these calls fail. By default
                ``$MODEL_FACTORY_SHARE_VALUES``, else False: names, kinds, dtypes and sizes are sent.
            lock: File from ``model-factory lock`` with the accepted builds; without ``seed``, the pinned seed is used.
            offline: Whether to build from the node cache alone. By default ``$MODEL_FACTORY_OFFLINE``, else only if the
                server cannot be reached and the cache has the exact build, with a warning.

        Raises:
            ServerError: ``address`` is not an address, or no address is given.
            LockError: ``lock`` names a file that is not a build lock.
            SourceError: ``trust_source`` names a file that is not a lock file.
            FormatError: ``trust_source`` contains a malformed digest.
            StoreError: the cache can neither be created nor read, or the user has no cache folder.
            ModelFactoryError: an environment variable of this package has an invalid value.
        """
        self._lock = None if lock is None else BuildLock.read(lock)
        self._offline = offline_by_default() if offline is None else offline
        place = server_of_environment() if address is None else address
        self._connection = Connection(*(place, timeout, credentials, shared_store()), is_offline=bool(self._offline))
        self._seed = None if seed is None else operator.index(seed)
        self._dtype = "" if dtype is None else torch_name(dtype)
        self._base_dir = Path("" if base_dir is None else base_dir).absolute()
        self._device = torch.device(device)
        self._cache = _open_cache(cache_dir, cache_bytes)
        self._assembler = Assembler(
            *(self._connection, self._cache, Trust(trusted_lock_file() if trust_source is None else trust_source)),
            device=self._device,
            dtype=self._dtype,
            share_values=share_values_by_default() if share_values is None else bool(share_values),
            lock=self._lock,
        )
        self._known = KnownBuilds(self._connection, self._cache, self._dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connection.address!r}, seed={self._seed}, device={str(self._device)!r})"

    def _repr_html_(self) -> str:
        settings = {"server": self._connection.address, "seed": self._seed, "device": self._device}
        return html_table(("factory", type(self).__name__), ((name, str(item)) for name, item in settings.items()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @overload
    def build(  # type: ignore[overload-overlap]  # a name config_path
        self, model_cfg: SingleModel, *, weights: Weights = None
    ) -> nn.Module: ...

    @overload
    def build(self, model_cfg: NamedModels, *, weights: Weights = None) -> dict[str, nn.Module]: ...

    @overload
    def build(self, model_cfg: Any, *, weights: Weights = None) -> nn.Module | dict[str, nn.Module]: ...

    def build(self, model_cfg: Any, *, weights: Weights = None) -> nn.Module | dict[str, nn.Module]:
        """Build the models of a config; see :class:`model_factory.ModelFactory`.

        Raises:
            ValueError: the mapping is empty.
            ModelFactoryError: see the subclasses.
        """
        request = read_request(model_cfg, self._base_dir, environment())
        given = checkpoints(weights, [item.name for item in request.components], single=request.single)
        with build_seed(self._fixed_seed(request, given)) as drawn:
            seed = drawn % SEED_RANGE
            if self._lock is not None:
                for item in request.components:
                    self._lock.check_request(item.name, item.config.digest, self._dtype, seed)
            modules = {
                component.name: self._assemble(component, built, manifest, seed, given.get(component.name))
                for component, (built, manifest) in zip(
                    request.components, self._results(request, seed, given), strict=True
                )
            }
        return request.result(modules)

    def describe(
        self, model_cfg: Mapping[str, Any], *, portability: bool = False
    ) -> Architecture | dict[str, Architecture]:
        """Return architecture and sizes of the models of a config, without weights.

        With ``portability`` the server also finds out how each module is sent to a trainer, and why. This takes as long
        as a first build.

        >>> factory = RemoteModelFactory(server)
        >>> layer = {"_type_": "nn.Linear", "in_features": 8, "out_features": 4}
        >>> model_cfg = {"config": {"schema_version": 1, "model": {"sequential": {"layers": [layer]}}}}
        >>> factory.describe(model_cfg).parameters
        36

        Raises:
            ValueError: the mapping is empty.
            ModelFactoryError: see the subclasses.
        """
        request = read_request(model_cfg, self._base_dir, environment())
        self._connection.capabilities()  # refuses a server of another format version
        message = build_pb2.DescribeModelsRequest(
            components=wire.to_components(request), dtype=self._dtype, portability=portability
        )
        with self._connection.errors(_configs(request)):
            response = self._connection.call("DescribeModels", message)
        if [item.name for item in response.components] != [item.name for item in request.components]:
            raise ServerError(f"the server at {self._connection.address} described other components than requested")
        found = {item.name: _architecture(item, portability=portability) for item in response.components}
        return request.result(found)

    def read_source(self, bundle: Blob) -> bytes:
        """Return a bundle of a descriptor as text, for inspection; no code is run, trusted or not.

        Raises:
            FormatError: the bundle is too large.
            IntegrityError: the server sent other bytes.
            UnavailableError: the server went away.
        """
        return self._assembler.source.read(bundle)

    def blocks(self) -> list[Block]:
        """List the blocks that configs can name on this server, sorted by name.

        Raises:
            ServerError: the server cannot be reached, or refuses.
        """
        self._connection.capabilities()
        with self._connection.errors():
            response = self._connection.call("ListBlocks", capabilities_pb2.ListBlocksRequest())
        return [wire.from_block(block) for block in response.blocks]

    def checkpoints(self) -> list[str]:
        """List the checkpoints that configs can name as ``weights`` on this server, sorted.

        >>> RemoteModelFactory(server).checkpoints()
        []

        Raises:
            ServerError: the server cannot be reached, or refuses.
        """
        return [printable(name) for name in self._connection.capabilities().checkpoints]

    def wait(self, timeout: float) -> None:
        """Wait until the server accepts builds, for a server that is still starting.

        >>> RemoteModelFactory(server).wait(timeout=60)

        Raises:
            UnavailableError: the server does not accept builds after ``timeout`` seconds.
            ServerError: the server refuses this client, or has no health service.
        """
        self._connection.wait(timeout)

    def close(self) -> None:
        """Close the connection; the factory and the factory's modules reconnect when necessary."""
        self._connection.close()

    def _fixed_seed(self, request: ModelRequest, given: Mapping[str, Checkpoint]) -> int | None:
        if self._seed is not None:
            return self._seed
        if self._lock is not None:
            return self._lock.seed(component.name for component in request.components)
        # Without a random weight in the result, repeated builds are one build for the server.
        return 0 if all(has_no_random_weights(item, given.get(item.name)) for item in request.components) else None

    def _results(
        self, request: ModelRequest, seed: int, given: Collection[str]
    ) -> list[tuple[BuiltComponent, Manifest]]:
        """Return the result of each component: from the server, else from the node cache where permitted.

        ``given`` has the names of components with weights from a file.
        """

        def known() -> list[tuple[BuiltComponent, Manifest]]:
            return [self._known.find(item, seed, needs_weights=item.name not in given) for item in request.components]

        if self._offline:
            return known()
        try:
            self._connection.capabilities()  # refuses a server of another format version
            manifest = self._build_on_server(request, seed)
            return [(built, manifest) for built in manifest.components]
        except UnavailableError as error:
            if self._offline is False:
                raise
            try:
                found = known()
            except (UnavailableError, StoreError):
                raise error from None
            log.warning(
                "%s; built from the node cache %s, as last built by the server: %s",
                *(error, self._cache.root, listed(component.name for component in request.components)),
            )
            return found

    def _build_on_server(self, request: ModelRequest, seed: int) -> Manifest:
        message = build_pb2.BuildModelsRequest(components=wire.to_components(request), seed=seed, dtype=self._dtype)
        received: build_pb2.Manifest | None = None
        names = [component.name for component in request.components]
        with self._connection.errors(_configs(request)), building(names) as report:
            for count, event in enumerate(self._stream_build(message)):
                if count > MAX_EVENTS * len(names):
                    raise ServerError(f"the server at {self._connection.address} reports progress without end")
                if event.WhichOneof("event") == "manifest":
                    received = event.manifest
                else:
                    report(event.progress.component, wire.stage_name(event.progress.stage))
        if received is None or [item.name for item in received.components] != names:
            raise ServerError(f"the server at {self._connection.address} ended a build without its manifest")
        manifest = wire.from_manifest(received, self._connection.address)
        return dataclasses.replace(manifest, server=self._connection.server_identity())

    def _stream_build(self, message: build_pb2.BuildModelsRequest) -> Iterator[build_pb2.BuildModelsResponse]:
        """Yield the events of a build; repeat the RPC a few times if the server went away.

        Builds are idempotent. The number of attempts is bounded: this build may be the cause of the crash.
        """
        backoff, begun = Backoff(), 0
        for attempt in itertools.count(1):
            events = self._connection.stub.BuildModels(message, timeout=self._connection.timeout)
            try:
                for index, event in enumerate(events):
                    begun += index == 0
                    yield event
            except grpc.RpcError as error:
                is_away = is_disconnect(error) if begun else error.code() is grpc.StatusCode.UNAVAILABLE
                if not (is_away and (begun or attempt) < RETRY_ATTEMPTS and backoff.wait()):
                    raise
            else:
                return
            finally:
                events.cancel()  # no effect on an RPC that has ended

    def _assemble(
        self,
        component: Component,
        built: BuiltComponent,
        manifest: Manifest,
        seed: int,
        checkpoint: Checkpoint | None,
    ) -> nn.Module:
        for attempt in range(_MAX_REBUILDS + 1):
            try:
                module = self._assembler.assemble(component, built, manifest, seed, checkpoint)
                break
            except MissingBlobError as error:  # evicted before the download, or damaged on the server's disk
                if attempt == _MAX_REBUILDS:
                    raise
                log.info("%s is built again: %s", component.name, error)
            manifest = self._build_on_server(ModelRequest(components=(component,), single=True), seed)
            built = manifest.components[0]
        self._known.keep(component, built, manifest, seed)
        return module


def _open_cache(folder: str | PathLike[str] | None, max_bytes: int | None) -> Store:
    return Store(
        default_cache_dir() if folder is None else Path(folder),
        default_cache_bytes() if max_bytes is None else max_bytes,
        setting="MODEL_FACTORY_CACHE" if folder is None else "cache_dir or MODEL_FACTORY_CACHE",
    )


def _architecture(item: build_pb2.DescribedComponent, *, portability: bool) -> Architecture:
    descriptor = decode_descriptor(item.descriptor_json)
    if not portability:
        return Architecture(descriptor)
    programs = decode_programs(item.programs_json) if item.programs_json else ()
    refused = {printable(path): safe_text(reason) for path, reason in item.refused.items()}
    return Architecture(descriptor, Portability(programs=programs, refused=refused))


def _configs(request: ModelRequest) -> dict[str, ResolvedConfig]:
    return {item.name: item.config for item in request.components}
