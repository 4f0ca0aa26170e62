"""What a trainer depends on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class ModelFactory(Protocol):
    """Builds trainable modules from component configs, here or elsewhere."""

    def build(self, model_cfg: Mapping[str, Any]) -> nn.Module | dict[str, nn.Module]:
        """Build the models of a config.

        ``{"config_path": PATH}`` and ``{"config": MAPPING}`` give one module; any other non-empty mapping is component
        name -> path or mapping, and gives a dict of modules in the same order.

        Raises:
            ValueError: the mapping is empty.
            ModelFactoryError: see its subclasses.
        """
        ...
