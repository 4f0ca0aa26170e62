"""``PolicyConstructorModelFactory``: the factory in the trainer's own process, for those who have the model code."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model_factory.client.seeds import build_seed
from model_factory.config import ResolvedConfig
from model_factory.config.request import Component, component_seed, read_request
from model_factory.descriptor.architecture import Architecture
from model_factory.environment import environment
from model_factory.errors import BuildError, LocatedError
from model_factory_server.backends.code_files import with_installed_plugins
from model_factory_server.backends.loading import load_backend
from model_factory_server.export.describe.describe import describe
from model_factory_server.settings.server_settings import BackendSettings
from model_factory_server.worker.construction import construct


class PolicyConstructorModelFactory:
    """Builds models here, with the same configs, seeds and results as a server would."""

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
        """Make a factory; ``seed`` to ``base_dir`` mean what they mean for ``RemoteModelFactory``.

        Args:
            seed: Of the weights; without one, each build draws its seed from torch's default generator.
            dtype: What floating parameters and buffers are cast to.
            device: Where the modules' tensors are put.
            base_dir: What relative config paths are relative to.
            backend: What builds; by default the built-in backend with the plug-ins of installed packages.
            plugins: More modules with a function ``register(registry)``, as for ``model-factory serve --plugin``.

        Raises:
            ServerError: the backend or a plug-in cannot be used.
        """
        settings = backend or BackendSettings(plugins=with_installed_plugins(()))
        every = tuple(dict.fromkeys([*settings.plugins, *plugins]))
        self._backend = load_backend(dataclasses.replace(settings, plugins=every))
        self._seed = None if seed is None else operator.index(seed)
        self._dtype = dtype
        self._device = torch.device(device)
        self._base_dir = Path("" if base_dir is None else base_dir).absolute()

    def build(self, model_cfg: Mapping[str, Any]) -> nn.Module | dict[str, nn.Module]:
        """Build the models of a config; see :class:`model_factory.ModelFactory`.

        Without a seed, one number is drawn from torch's default generator; otherwise random state is as before.

        Raises:
            ValueError: the mapping is empty.
            ConfigError: a config is wrong.
            BuildError: a constructor fails.
        """
        request = read_request(model_cfg, self._base_dir, environment())
        modules: dict[str, nn.Module] = {}
        with build_seed(self._seed) as seed:
            for component in request.components:
                with torch.random.fork_rng(), _placing(component):
                    module = construct(self._backend, component.config, component_seed(seed, component.name), "cpu")
                modules[component.name] = module.to(device=self._device, dtype=self._dtype)
        return request.result(modules)

    def describe(self, model_cfg: Mapping[str, Any]) -> Architecture | dict[str, Architecture]:
        """Return the architecture and sizes of the models of a config."""
        request = read_request(model_cfg, self._base_dir, environment())
        found: dict[str, Architecture] = {}
        for component in request.components:
            with torch.random.fork_rng(), _placing(component):
                module = self._without_weights(component.config)
            found[component.name] = Architecture(describe(module.to(dtype=self._dtype)))
        return request.result(found)

    def _without_weights(self, config: ResolvedConfig) -> nn.Module:
        """Build a component on the meta device, or on the CPU if a constructor needs real tensors."""
        try:
            return construct(self._backend, config, 0, "meta")
        except BuildError:
            return construct(self._backend, config, 0, "cpu")


@contextmanager
def _placing(component: Component) -> Iterator[None]:
    """Give errors their file, line and column, as a remote factory does."""
    try:
        yield
    except LocatedError as error:
        place = component.config.place_of(error.path)
        raise type(error)(error.reason, path=error.path, place=place) from error
