"""``PolicyConstructorModelFactory``: builds models in the trainer's own process, where the model code is installed."""

from __future__ import annotations

import copy
import dataclasses
import logging
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import Any, overload
from weakref import WeakKeyDictionary

import torch
from torch import nn

from model_factory.checkpoint.checkpoint import Checkpoint, checkpoints, load_into
from model_factory.checkpoint.state_file import state_files
from model_factory.client.builds.build_lock import BuildLock
from model_factory.client.seeds import build_seed
from model_factory.config import ModelConfig, ResolvedConfig
from model_factory.config.request import SEED_RANGE, Component, ModelRequest, component_seed, read_request
from model_factory.describe.describe import describe
from model_factory.descriptor.architecture import Architecture
from model_factory.descriptor.codec import Programs
from model_factory.descriptor.tree import Descriptor
from model_factory.documents import FORMAT
from model_factory.environment import environment
from model_factory.errors import BuildError, LocatedError, LockError, NotPortableError
from model_factory.identity import BuildInfo
from model_factory.model_file.live import undescribed, use_recorder
from model_factory.program.torch_names import torch_name
from model_factory.protocol import NamedModels, SingleModel, Weights
from model_factory.wording import html_table
from model_factory_server.backends.checkpoint_catalogue import checkpoint_digest, checkpoint_path
from model_factory_server.backends.code_files import operator_files, operator_roots, with_installed_plugins
from model_factory_server.backends.identity import BackendIdentity, identify
from model_factory_server.backends.loading import load_backend
from model_factory_server.builds.checked_config import CheckedConfig
from model_factory_server.builds.keys import architecture_key, build_key, final_key
from model_factory_server.export.exporter import export_model
from model_factory_server.model_digests import ModelDigests, described_digests, recorded_digests
from model_factory_server.settings.server_settings import BackendSettings
from model_factory_server.worker.construction import construct, load_checkpoint
from model_factory_server.worker.files.read_files import FileDigests

log = logging.getLogger(__name__)


class PolicyConstructorModelFactory:
    """Builds models in this process; configs, seeds and results are the same as on a server.

    >>> from model_factory_server import PolicyConstructorModelFactory
    >>> factory = PolicyConstructorModelFactory(seed=7)
    >>> layer = {"_type_": "nn.Linear", "in_features": 8, "out_features": 4}
    >>> model = factory.build({"config": {"schema_version": 1, "model": {"sequential": {"layers": [layer]}}}})
    >>> model(torch.ones(2, 8)).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        base_dir: str | PathLike[str] | None = None,
        backend: BackendSettings | None = None,
        plugins: Sequence[str] = (),
        lock: str | PathLike[str] | None = None,
        all_digests: bool = False,
    ) -> None:
        """Make a factory; ``seed`` to ``base_dir`` are the arguments of ``RemoteModelFactory``.

        Args:
            seed: Seed of the weights; None: each build draws a seed from torch's default generator.
            dtype: Dtype of floating parameters and buffers; None: unchanged.
            device: Device of the modules' tensors.
            base_dir: Base folder of relative config paths; None: the working directory.
            backend: Settings of the backend; None: the built-in backend with the plug-ins of installed packages.
            plugins: Additional plug-ins, as for ``model-factory serve --plugin``: modules with ``register(registry)``.
            lock: File from ``model-factory lock`` with the accepted builds; without ``seed``, the pinned seed is used.
                Forwards are recorded only if the pinned build has other code, or other digests.
            all_digests: Whether to record the forwards for ``build_info.programs``, as long as a first build on a
                server takes.

        Raises:
            ServerError: the backend or a plug-in cannot be used.
            LockError: ``lock`` names a file that is not a build lock.
        """
        self._lock = None if lock is None else BuildLock.read(lock)
        self._all_digests = all_digests
        self._digests = FileDigests()
        settings = backend or BackendSettings(plugins=with_installed_plugins(()))
        every = tuple(dict.fromkeys([*settings.plugins, *plugins]))
        self._settings = dataclasses.replace(settings, plugins=every)
        self._backend = load_backend(self._settings)
        self._seed = None if seed is None else operator.index(seed)
        self._dtype = dtype
        self._device = torch.device(device)
        self._base_dir = Path("" if base_dir is None else base_dir).absolute()

    def __repr__(self) -> str:
        backend, device = self._settings.name, str(self._device)
        return f"{type(self).__name__}(backend={backend!r}, seed={self._seed}, device={device!r})"

    def _repr_html_(self) -> str:
        settings = {"backend": self._settings.name, "seed": self._seed, "device": self._device}
        return html_table(("factory", type(self).__name__), ((name, str(item)) for name, item in settings.items()))

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

        Without a seed, a build draws one number from torch's default generator and changes no other random state.

        Raises:
            ValueError: the mapping is empty.
            ConfigError: a config is invalid.
            BuildError: a constructor fails.
            LockError: a build is not the pinned build.
        """
        request = read_request(model_cfg, self._base_dir, environment())
        given = checkpoints(weights, [item.name for item in request.components], single=request.single)
        with build_seed(self._fixed_seed(request)) as drawn:
            seed = drawn % SEED_RANGE
            if self._lock is not None:
                for item in request.components:
                    self._lock.check_request(item.name, item.config.digest, self._dtype_name, seed)
            modules = {item.name: self._build(item, seed, given.get(item.name)) for item in request.components}
        return request.result(modules)

    def describe(self, model_cfg: Mapping[str, Any]) -> Architecture | dict[str, Architecture]:
        """Return the architectures of the models of a config, without building weights.

        Raises:
            ValueError: the mapping is empty.
            ConfigError: a config is invalid.
            BuildError: a constructor fails.
        """
        request = read_request(model_cfg, self._base_dir, environment())
        found: dict[str, Architecture] = {}
        for component in request.components:
            with torch.random.fork_rng(), _locating_errors(component):
                checkpoint_path(self._settings, component.config.model)
                module = self._without_weights(component.config)
            found[component.name] = Architecture(describe(module.to(dtype=self._dtype)))
        return request.result(found)

    @cached_property
    def _identity(self) -> BackendIdentity:
        return identify(self._settings, "cpu")

    @property
    def _dtype_name(self) -> str:
        return "" if self._dtype is None else torch_name(self._dtype)

    def _fixed_seed(self, request: ModelRequest) -> int | None:
        if self._seed is not None or self._lock is None:
            return self._seed
        return self._lock.seed(component.name for component in request.components)

    def _build(self, component: Component, seed: int, checkpoint: Checkpoint | None) -> nn.Module:
        """Build a component; with a ``checkpoint``, the weights come from the file of the trainer."""
        module, notice = self._construct(component, seed)
        if notice:
            log.warning("%s: %s", component.name, notice)
        module = module.to(dtype=self._dtype)
        info = self._build_info(component, seed, described_digests(module))
        if self._lock is not None or self._all_digests:
            info = self._with_all_digests(info, component, seed)
        if self._lock is not None:
            self._lock.check(info)
        if checkpoint is not None:
            load_into(module, checkpoint)
            info = dataclasses.replace(info, weights=None)
        module = module.to(device=self._device)
        _configs[module] = component.config.model
        info.attach(module)
        log.info("built %s", info)
        return module

    def _construct(self, component: Component, seed: int) -> tuple[nn.Module, str]:
        """Construct a component on the CPU; return the module and the notice of its checkpoint."""
        config, own_seed = component.config, component_seed(seed, component.name)
        with torch.random.fork_rng(), _locating_errors(component):
            path = checkpoint_path(self._settings, config.model)
            module = construct(self._backend, config, own_seed, "cpu")
            return module, load_checkpoint(module, config.model, path)

    def _with_all_digests(self, info: BuildInfo, component: Component, seed: int) -> BuildInfo:
        """Return build info with the digest of the programs: of the lock if nothing differs, else recorded."""
        pinned = None if self._lock is None else self._lock.models[component.name]
        if pinned is not None and all(getattr(pinned, name) == getattr(info, name) for name in _SAME_PROGRAMS):
            return dataclasses.replace(info, programs=pinned.programs)
        module, _ = self._construct(component, seed)
        roots = operator_roots(self._settings) if self._settings.share_source else ()
        try:
            with torch.random.fork_rng():
                found = recorded_digests(module, component.config.model, roots, self._dtype_name)
        except NotPortableError as error:
            if self._lock is None:
                return info
            raise LockError(
                f"{component.name!r} cannot be compared with {self._lock.path}: {error}. Remedy: build without lock="
            ) from error
        return dataclasses.replace(info, **found._asdict())

    def _build_info(self, component: Component, seed: int, digests: ModelDigests) -> BuildInfo:
        backend, dtype, named = self._identity, self._dtype_name, component.config.model.weights
        config = CheckedConfig(
            wire=b"",
            digest=component.config.digest,
            order_digest=component.config.order_digest,
            checkpoint="" if named is None else named.name,
        )
        path = checkpoint_path(self._settings, component.config.model)
        files = self._digests.current([] if path is None else [str(file) for file in state_files(path)])
        # A server's key covers the files that the job has read. Nothing observes other reads in this process.
        may_read_files = bool(operator_files(self._settings) or self._settings.allow_files)
        key = build_key(backend, config, dtype, component_seed(seed, component.name))
        return BuildInfo(
            component=component.name,
            seed=seed,
            dtype=dtype,
            config_digest=config.digest,
            build_key=None if may_read_files else final_key(key, files),
            architecture_key=None if may_read_files else final_key(architecture_key(backend, config, dtype), files),
            descriptor=digests.descriptor,
            programs=digests.programs,
            weights=digests.weights,
            backend=backend.name,
            code_digest=backend.code_digest,
            device_kind=backend.device_kind,
            format_version=FORMAT,
            torch_version=backend.torch_version,
            server_version=metadata.version("model-factory-server"),
            client_torch_version=str(torch.__version__),
            client_version=metadata.version("model-factory"),
            checkpoint=config.checkpoint or None,
            checkpoint_digest=checkpoint_digest(str(path), {file.path: file.digest for file in files}) or None,
        )

    def _without_weights(self, config: ResolvedConfig) -> nn.Module:
        """Build a component on the meta device, or on the CPU where a constructor needs real tensors."""
        try:
            return construct(self._backend, config, 0, "meta")
        except BuildError:
            return construct(self._backend, config, 0, "cpu")


_SAME_PROGRAMS = (
    *("config_digest", "dtype", "descriptor", "weights"),
    *("backend", "code_digest", "torch_version", "device_kind", "format_version"),
)
"""Fields of build info: builds that are equal here have equal programs."""


def _record(model: nn.Module) -> tuple[Descriptor, Programs]:
    """Record a model of this process for a file; the copy keeps gradients and buffers of the model unchanged."""
    copied = copy.deepcopy(model).cpu()
    for module in copied.modules():
        for name in undescribed(module):
            del module.__dict__[name]
    for tensor in (*copied.parameters(), *copied.buffers()):
        tensor.grad = None
    exported = export_model(copied, _configs.get(model))
    return exported.descriptor, exported.programs


_configs: WeakKeyDictionary[nn.Module, ModelConfig] = WeakKeyDictionary()
"""The config of each built model, for the example inputs of ``signature``."""

use_recorder(_record)


@contextmanager
def _locating_errors(component: Component) -> Iterator[None]:
    """Add file, line and column to errors, like a remote factory."""
    try:
        yield
    except LocatedError as error:
        place = component.config.place_of(error.path)
        raise type(error)(error.reason, path=error.path, place=place) from error
