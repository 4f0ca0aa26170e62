"""From a trainer's ``model_cfg`` to resolved components, and the seed of each component."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from blake3 import blake3

from model_factory.config import ResolvedConfig, resolve_file, resolve_mapping
from model_factory.config.syntax.nodes import Place
from model_factory.config.syntax.trainer_values import plain_form
from model_factory.errors import ConfigError
from model_factory.limits import MAX_COMPONENTS

T = TypeVar("T")

SINGLE = "model"
"""The component's name in a request for a single model."""

SEED_RANGE = 1 << 64
"""Seeds on the wire are below this number."""

_FORMS = "give {'config_path': PATH}, {'config': MAPPING} or component names with their paths"
_PLACE = Place(file="<model_cfg>")
_SEED_BITS = 63  # torch.manual_seed takes signed 64-bit numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One model to build."""

    name: str
    """The trainer's name for the model."""
    config: ResolvedConfig
    """The resolved and checked config."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """The components of a ``model_cfg``."""

    components: tuple[Component, ...]
    """In the order of ``model_cfg``."""
    single: bool
    """Whether the result is a model rather than a dict."""

    def result(self, models: dict[str, T]) -> T | dict[str, T]:
        """Return the models by name, or the only model of a request for a single model."""
        return next(iter(models.values())) if self.single else models


def read_request(model_cfg: Mapping[str, Any], base_dir: Path, env: Mapping[str, str]) -> ModelRequest:
    """Resolve every component of a ``model_cfg``.

    Relative paths are relative to ``base_dir``; ``env`` holds the variables for ``${env:...}``.

    Raises:
        ValueError: ``model_cfg`` is empty.
        ConfigError: a config is wrong.

    Example:
        >>> relu = {"schema_version": 1, "model": {"sequential": {"layers": [{"_type_": "nn.ReLU"}]}}}
        >>> request = read_request({"actor": relu, "critic": relu}, Path(), env={})
        >>> [component.name for component in request.components], request.single
        (['actor', 'critic'], False)
        >>> read_request({"config": relu}, Path(), env={}).single
        True
    """
    model_cfg = plain_form(model_cfg, _PLACE)  # type: ignore[assignment]
    if not isinstance(model_cfg, Mapping):
        raise ConfigError(f"model_cfg is a mapping, found {type(model_cfg).__name__}; {_FORMS}")
    if not model_cfg:
        raise ValueError(f"model_cfg is empty; {_FORMS}")
    model_cfg = {name: _plain_component(value) for name, value in model_cfg.items()}
    ((key, value), *others) = model_cfg.items()
    if not others and key == "config_path" and not isinstance(value, str | PathLike | Mapping):
        raise ConfigError(f"'config_path' is a path, found {type(value).__name__}; {_FORMS}")
    if not others and (key, isinstance(value, Mapping)) in {("config", True), ("config_path", False)}:
        return ModelRequest(components=(_component(SINGLE, value, base_dir, env, "<config>"),), single=True)
    if len(model_cfg) > MAX_COMPONENTS:
        raise ConfigError(f"model_cfg has {len(model_cfg)} components; at most {MAX_COMPONENTS} are allowed")
    components = tuple(_component(name, value, base_dir, env) for name, value in model_cfg.items())
    return ModelRequest(components=components, single=False)


def _plain_component(value: object) -> object:
    """Return a component as a mapping or a path; a path stays a path."""
    return value if isinstance(value, PathLike) else plain_form(value, _PLACE)


def component_seed(seed: int, name: str) -> int:
    """Return the seed of a component, from the request's seed and the component's name alone.

    Seeds with the same remainder modulo :data:`SEED_RANGE` give the same result; negative seeds are allowed.

    >>> component_seed(7, "actor") == component_seed(7 - SEED_RANGE, "actor")
    True
    """
    digest = blake3(f"{seed % SEED_RANGE}:{name}".encode()).digest(8)
    return int.from_bytes(digest, "big") >> (64 - _SEED_BITS)


def _component(name: Any, value: Any, base_dir: Path, env: Mapping[str, str], source: str = "") -> Component:
    if not isinstance(name, str) or not name:
        raise ConfigError(f"component names are non-empty strings, found {name!r}")
    if isinstance(value, Mapping):
        source = source or f"<config of {name!r}>"
        return Component(name=name, config=resolve_mapping(value, env, source))
    if isinstance(value, str | PathLike):
        return Component(name=name, config=resolve_file(base_dir / Path(value), env))
    hint = "" if name != "schema_version" else "; a config itself is given as {'config': MAPPING}"
    raise ConfigError(f"component {name!r} is a path or a mapping, found {type(value).__name__}{hint}")
