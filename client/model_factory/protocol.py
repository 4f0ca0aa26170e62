"""The interface of model factories: a trainer depends on this protocol only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class ModelFactory(Protocol):
    """Builds trainable modules from component configs, in this process or on a server.

    A trainer that depends on the protocol runs with :class:`model_factory.RemoteModelFactory`, and with
    ``model_factory_server.PolicyConstructorModelFactory``, which builds in the trainer's own process:

    >>> from model_factory import ModelFactory, RemoteModelFactory
    >>> def parameters(factory: ModelFactory, model_cfg: dict) -> int:
    ...     return sum(item.numel() for item in factory.build(model_cfg).parameters())
    >>> factory = RemoteModelFactory(server)
    >>> isinstance(factory, ModelFactory)
    True
    >>> layer = {"_type_": "nn.Linear", "in_features": 8, "out_features": 4}
    >>> parameters(factory, {"config": {"schema_version": 1, "model": {"sequential": {"layers": [layer]}}}})
    36
    """

    def build(self, model_cfg: Mapping[str, Any]) -> nn.Module | dict[str, nn.Module]:
        """Build the models of a config.

        Args:
            model_cfg: ``{"config_path": PATH}`` or ``{"config": MAPPING}`` for one module. Any other mapping is from
                component names to paths or mappings, for a dict of modules in the same order.

        Raises:
            ValueError: the mapping is empty.
            ModelFactoryError: see the subclasses.
        """
        ...
