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

from model_factory.checkpoint.checkpoint import checkpoints, load_into
from model_factory.client.seeds import build_seed
from model_factory.config import ModelConfig, ResolvedConfig
from model_factory.config.request import SEED_RANGE, Component, component_seed, read_request
from model_factory.describe.describe import describe
from model_factory.descriptor.architecture import Architecture
from model_factory.descriptor.codec import Programs
from model_factory.descriptor.tree import Descriptor
from model_factory.documents import FORMAT
from model_factory.environment import environment
from model_factory.errors import BuildError, LocatedError
from model_factory.identity import BuildInfo
from model_factory.model_file.live import undescribed, use_recorder
from model_factory.program.torch_names import torch_name
from model_factory.protocol import NamedModels, SingleModel, Weights
from model_factory_server.backends.checkpoint_catalogue import checkpoint_path
from model_factory_server.backends.code_files import operator_files, with_installed_plugins
from model_factory_server.backends.identity import BackendIdentity, identify
from model_factory_server.backends.loading import load_backend
from model_factory_server.builds.checked_config import CheckedConfig
from model_factory_server.builds.keys import architecture_key, build_key
from model_factory_server.export.exporter import export_model
from model_factory_server.settings.server_settings import BackendSettings
from model_factory_server.worker.construction import construct, load_checkpoint

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
    ) -> None:
        """Make a factory; ``seed`` to ``base_dir`` are the arguments of ``RemoteModelFactory``.

        Args:
            seed: Seed of the weights; None: each build draws a seed from torch's default generator.
            dtype: Dtype of floating parameters and buffers; None: unchanged.
            device: Device of the modules' tensors.
            base_dir: Base folder of relative config paths; None: the working directory.
            backend: Settings of the backend; None: the built-in backend with the plug-ins of installed packages.
            plugins: Additional plug-ins, as for ``model-factory serve --plugin``: modules with ``register(registry)``.

        Raises:
            ServerError: the backend or a plug-in cannot be used.
        """
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
        """
        request = read_request(model_cfg, self._base_dir, environment())
        given = checkpoints(weights, [item.name for item in request.components], single=request.single)
        modules: dict[str, nn.Module] = {}
        with build_seed(self._seed) as seed:
            for component in request.components:
                with torch.random.fork_rng(), _locating_errors(component):
                    path = checkpoint_path(self._settings, component.config.model)
                    module = construct(self._backend, component.config, component_seed(seed, component.name), "cpu")
                    if notice := load_checkpoint(module, component.config.model, path):
                        log.warning("%s: %s", component.name, notice)
                modules[component.name] = module.to(device=self._device, dtype=self._dtype)
                if component.name in given:
                    load_into(modules[component.name], given[component.name])
                _configs[module] = component.config.model
        for component in request.components:
            info = self._build_info(component, seed % SEED_RANGE)
            info.attach(modules[component.name])
            log.info("built %s", info)
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

    def _build_info(self, component: Component, seed: int) -> BuildInfo:
        backend, dtype = self._identity, "" if self._dtype is None else torch_name(self._dtype)
        config = CheckedConfig(wire=b"", digest=component.config.digest, order_digest=component.config.order_digest)
        # A server's key covers the files that the job has read. Nothing observes reads of files in this process.
        may_read_files = bool(operator_files(self._settings) or self._settings.allow_files)
        key = None if may_read_files else build_key(backend, config, dtype, component_seed(seed, component.name))
        return BuildInfo(
            component=component.name,
            seed=seed,
            dtype=dtype,
            config_digest=config.digest,
            build_key=key,
            architecture_key=None if may_read_files else architecture_key(backend, config, dtype),
            descriptor=None,
            programs=None,
            weights=None,
            backend=backend.name,
            code_digest=backend.code_digest,
            device_kind=backend.device_kind,
            format_version=FORMAT,
            torch_version=backend.torch_version,
            server_version=metadata.version("model-factory-server"),
            client_torch_version=str(torch.__version__),
            client_version=metadata.version("model-factory"),
        )

    def _without_weights(self, config: ResolvedConfig) -> nn.Module:
        """Build a component on the meta device, or on the CPU where a constructor needs real tensors."""
        try:
            return construct(self._backend, config, 0, "meta")
        except BuildError:
            return construct(self._backend, config, 0, "cpu")


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
