"""Values of a trainer's libraries as plain data: OmegaConf, NumPy, dataclasses, pydantic and paths.

A library is looked up only if the trainer has imported the library.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import sys
from types import SimpleNamespace
from typing import Any

from model_factory.config.syntax.nodes import ConfigPath, Place
from model_factory.errors import ConfigError

_PLAIN = frozenset({dict, list, tuple, str, int, float, bool, type(None)})


def plain_form(value: object, place: Place, path: ConfigPath = ()) -> object:
    """Return the plain counterpart of a trainer's value; the value itself if there is no counterpart.

    Only the outermost container is converted, except for configs of OmegaConf and pydantic models.

    Raises ConfigError if OmegaConf cannot resolve a reference.

    >>> from pathlib import Path
    >>> plain_form(Path("weights") / "encoder.pt", Place(file="<config>"))
    'weights/encoder.pt'
    """
    if type(value) in _PLAIN:
        return value
    if _is_a("omegaconf", "DictConfig", value) or _is_a("omegaconf", "ListConfig", value):
        return _resolved(value, place, path)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if _is_a("pydantic", "BaseModel", value):
        return value.model_dump(by_alias=True)  # type: ignore[attr-defined]
    if _is_a("numpy", "generic", value):
        return value.item()  # type: ignore[attr-defined]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def remedy_for(value: object) -> str:
    """Return the remedy for a value that is not plain data; empty without a remedy.

    >>> remedy_for({1, 2})
    '. Remedy: pass a list, for example sorted(value)'
    """
    if hasattr(value, "tolist"):
        call = "value.tolist()"
    elif isinstance(value, enum.Enum):
        call = "the member's .value or .name"
    elif isinstance(value, set | frozenset):
        call = "a list, for example sorted(value)"
    elif isinstance(value, SimpleNamespace) or type(value).__name__ == "Namespace":
        call = "vars(value)"
    elif hasattr(value, "to_dict"):
        call = "value.to_dict()"
    else:
        return ""
    return f". Remedy: pass {call}"


def _resolved(value: Any, place: Place, path: ConfigPath) -> object:
    omegaconf = sys.modules["omegaconf"]
    try:
        return omegaconf.OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
    except omegaconf.errors.OmegaConfBaseException as error:
        reason = (
            f"OmegaConf cannot resolve the config: {' '.join(str(error).split())}. Remedy: pass what "
            "OmegaConf.to_container(cfg, resolve=True) returns; or, if ${...} are references of the component config "
            "itself, what OmegaConf.to_container(cfg, resolve=False) returns"
        )
        raise ConfigError(reason, path=path, place=str(place)) from None


def _is_a(package: str, name: str, value: object) -> bool:
    """Whether a value is an instance of a package's class, without an import of the package."""
    cls = getattr(sys.modules.get(package), name, None)
    return isinstance(cls, type) and isinstance(value, cls)
