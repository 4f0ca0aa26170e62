"""``PolicyConstructorModelFactory``: the factory in the trainer's own process, for those who have the model code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model_factory.components import component_seed, read_request
from model_factory.config import ResolvedConfig
from model_factory.descriptor.architecture import Architecture
from model_factory.descriptor.describe import describe
from model_factory.errors import ConfigError
from model_factory.settings import environment
from model_factory_server.worker import construct, construct_on_meta


class PolicyConstructorModelFactory:
    """Builds models here, with the same configs, seeds and results as a server would."""

    def __init__(
        self,
        *,
        seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        base_dir: str | PathLike[str] | None = None,
    ) -> None:
        """Make a factory; the arguments mean what they mean for ``RemoteModelFactory``."""
        self._seed = seed
        self._dtype = dtype
        self._device = torch.device(device)
        self._base_dir = Path.cwd() if base_dir is None else Path(base_dir)

    def build(self, model_cfg: Mapping[str, Any]) -> nn.Module | dict[str, nn.Module]:
        """Build the models of a config; see :class:`model_factory.ModelFactory`. Random state is as before afterwards.

        Raises:
            ValueError: the mapping is empty.
            ConfigError: a config is wrong.
            BuildError: a constructor fails.
        """
        request = read_request(model_cfg, self._base_dir, environment())
        seed = torch.initial_seed() if self._seed is None else self._seed
        modules: dict[str, nn.Module] = {}
        for component in request.components:
            with torch.random.fork_rng(), _placing(component.config):
                module = construct(component.config, component_seed(seed, component.name), "cpu")
            modules[component.name] = module.to(device=self._device, dtype=self._dtype)
        return next(iter(modules.values())) if request.single else modules

    def describe(self, model_cfg: Mapping[str, Any]) -> Architecture | dict[str, Architecture]:
        """Return the architecture and sizes of the models of a config."""
        request = read_request(model_cfg, self._base_dir, environment())
        found: dict[str, Architecture] = {}
        for component in request.components:
            with torch.random.fork_rng(), _placing(component.config):
                module = construct_on_meta(component.config) or construct(component.config, 0, "cpu")
            found[component.name] = Architecture(describe(module.to(dtype=self._dtype)))
        return next(iter(found.values())) if request.single else found


@contextmanager
def _placing(config: ResolvedConfig) -> Iterator[None]:
    """Give errors of a config their file, line and column, as a remote factory does."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(error.reason, path=error.path, place=config.place_of(error.path)) from error
