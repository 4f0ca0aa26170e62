"""Factories under the names that trainers use for model code in their own process: one import line changes.

``PolicyConstructorModelFactory()`` builds on the server of ``MODEL_FACTORY_SERVER``, else in this process.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from os import PathLike
from typing import Any, overload

import torch
from torch import nn

from model_factory.client.factory import RemoteModelFactory
from model_factory.environment import SERVER, configured_server
from model_factory.errors import ServerError
from model_factory.protocol import ModelFactory, NamedModels, SingleModel, Weights

__all__ = ["ModelFactory", "PolicyConstructorModelFactory"]

log = logging.getLogger(__name__)

_SERVER_PACKAGE = "model_factory_server"


class PolicyConstructorModelFactory:
    """Builds models on the server of ``MODEL_FACTORY_SERVER``; without the variable, in this process.

    On a server, credentials, trust and cache are of the ``MODEL_FACTORY_*`` variables, as for ``RemoteModelFactory()``.
    In this process, the package ``model-factory-server`` builds. Both give the same models.

    >>> from model_factory.factories import PolicyConstructorModelFactory
    >>> factory = PolicyConstructorModelFactory(seed=7)
    >>> factory.build(model_cfg).build_info.seed
    7
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        base_dir: str | PathLike[str] | None = None,
        lock: str | PathLike[str] | None = None,
    ) -> None:
        """Make a factory; the arguments are arguments of ``RemoteModelFactory``.

        Raises:
            LockError: ``lock`` names a file that is not a build lock.
            ServerError: neither a server nor the package ``model-factory-server`` is there.
            ModelFactoryError: an environment variable of this package has an invalid value.
        """
        arguments = {"seed": seed, "dtype": dtype, "device": device, "base_dir": base_dir, "lock": lock}
        self._factory: Any = _make(arguments)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._factory!r})"

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
        models: nn.Module | dict[str, nn.Module] = self._factory.build(model_cfg, weights=weights)
        return models

    def wait(self, timeout: float) -> None:
        """Wait until the server accepts builds; return at once for builds in this process.

        Raises:
            UnavailableError: the server does not accept builds after ``timeout`` seconds.
        """
        if isinstance(self._factory, RemoteModelFactory):
            self._factory.wait(timeout)


def _make(arguments: dict[str, Any]) -> Any:
    if configured_server():
        return RemoteModelFactory(**arguments)
    if importlib.util.find_spec(_SERVER_PACKAGE) is None:
        raise ServerError(
            f"{SERVER} is not set, and this environment cannot build models itself. Remedy: set {SERVER} to the "
            "HOST:PORT of a model-factory server, or pip install 'model-factory[server]'"
        )
    log.info("%s is not set: models are built in this process", SERVER)
    return importlib.import_module(_SERVER_PACKAGE).PolicyConstructorModelFactory(**arguments)
