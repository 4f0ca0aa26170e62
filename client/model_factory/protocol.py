"""The interface of model factories: a trainer depends on this protocol only."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypedDict, overload, runtime_checkable

from torch import nn

if TYPE_CHECKING:
    from model_factory.checkpoint.checkpoint import Checkpoint


class ConfigPath(TypedDict):
    """A ``model_cfg`` for one module, from a file."""

    config_path: str | PathLike[str]


class InlineConfig(TypedDict):
    """A ``model_cfg`` for one module, from a mapping."""

    config: Mapping[str, Any]


SingleModel: TypeAlias = ConfigPath | InlineConfig
"""A ``model_cfg`` for one module."""

NamedModels: TypeAlias = Mapping[str, str] | Mapping[str, PathLike[str]] | Mapping[str, Mapping[str, Any]]
"""A ``model_cfg`` for a dict of modules."""


Weights: TypeAlias = "str | PathLike[str] | Checkpoint | Mapping[str, str | PathLike[str] | Checkpoint] | None"
"""Value of ``weights``: a checkpoint of a single model, or checkpoints by name of the model."""


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

    @overload
    def build(  # type: ignore[overload-overlap]  # a name config_path
        self, model_cfg: SingleModel, *, weights: Weights = None
    ) -> nn.Module: ...

    @overload
    def build(self, model_cfg: NamedModels, *, weights: Weights = None) -> dict[str, nn.Module]: ...

    @overload
    def build(self, model_cfg: Any, *, weights: Weights = None) -> nn.Module | dict[str, nn.Module]: ...

    def build(self, model_cfg: Any, *, weights: Weights = None) -> nn.Module | dict[str, nn.Module]:
        """Build the models of a config.

        Args:
            model_cfg: ``{"config_path": PATH}`` or ``{"config": MAPPING}`` for one module. Any other mapping is from
                component names to paths or mappings, for a dict of modules in the same order. Mappings and values may
                be configs of OmegaConf, dataclasses, pydantic models, NumPy scalars and paths, too.
            weights: First weights from files: a path or a :class:`model_factory.Checkpoint` for a single model, or a
                mapping from names of models. By default random weights of the seed.

        Raises:
            ValueError: the mapping is empty.
            ModelFactoryError: see the subclasses.
        """
        ...
