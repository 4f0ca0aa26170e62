"""Builds objects from specs: ``nn.Linear(3, 4)`` from ``{_type_: nn.Linear, in_features: 3, out_features: 4}``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from model_factory.config import ConfigPath
from model_factory.config.schema.specs import is_spec
from model_factory.describe.declared_methods import PORTABLE_METHODS, declared_methods
from model_factory.descriptor.stock import is_stock
from model_factory.errors import BuildError, ConfigError, LocatedError, ModelFactoryError, NotPortableError, plain_text
from model_factory.wording import quoted
from model_factory_server.constructor.factory import Factory
from model_factory_server.constructor.permissions import Permissions
from model_factory_server.constructor.registry import TORCH, Registry

_NUMBERS = (float, int, "float", "int")  # as annotations
_FLAGS = (bool, "bool")


def instantiate_module(
    name: str, spec: Any, registry: Registry, permissions: Permissions, *, path: ConfigPath = ()
) -> nn.Module:
    """Build module ``name`` of a graph; see :func:`instantiate`.

    Raises:
        ConfigError: the spec does not build a ``torch.nn.Module``, or an error of :func:`instantiate`.
    """
    module = instantiate(spec, registry, permissions, path=path)
    if not isinstance(module, nn.Module):
        found = type(module).__name__
        raise ConfigError(f"graph module {quoted(name)} is not a torch.nn.Module, but of type {found}", path=path)
    return module


def instantiate(spec: Any, registry: Registry, permissions: Permissions, *, path: ConfigPath = ()) -> Any:
    """Build the objects of all specs in plain data, at any depth; other data is unchanged.

    Arguments are built before the object: positional arguments in order, then keyword arguments sorted by name, so that
    random numbers do not depend on the order of keys. Lists are built in order, plain mappings in written order.

    Args:
        spec: Plain data of a checked config.
        registry: Names for ``_type_``.
        permissions: Permissions for ``_target_``.
        path: Place of ``spec`` in the config, for errors.

    Raises:
        ConfigError: a type is unknown, arguments do not fit, or a factory raises TypeError or ValueError; ``path`` is
            the place of the error.
        BuildError: a factory raises another exception.

    Example:
        >>> from model_factory_server.constructor.registry import default_registry
        >>> instantiate([{"_type_": "nn.ReLU"}, 3], default_registry(), Permissions())
        [ReLU(), 3]
    """
    if isinstance(spec, Mapping):
        if is_spec(spec):
            return _build(spec, registry, permissions, path)
        return {key: instantiate(value, registry, permissions, path=(*path, key)) for key, value in spec.items()}
    if isinstance(spec, list | tuple):
        return [instantiate(value, registry, permissions, path=(*path, index)) for index, value in enumerate(spec)]
    return spec


def _build(spec: Mapping[str, Any], registry: Registry, permissions: Permissions, path: ConfigPath) -> Any:
    factory = _factory(spec, registry, permissions, path)
    positional = spec.get("_args_", [])
    keywords = _keywords(spec, path)
    factory.check_arguments(positional, {name: place for name, (place, _) in keywords.items()}, path)
    args = instantiate(positional, registry, permissions, path=(*path, "_args_"))
    kwargs = {
        name: instantiate(value, registry, permissions, path=place) for name, (place, value) in sorted(keywords.items())
    }
    if factory.origin == TORCH and kwargs.get("device") is not None:
        _check_device(kwargs, keywords["device"][0])
    by_position = (((*path, "_args_", index), value) for index, value in enumerate(positional))
    for name, (place, value) in {**dict(zip(factory.parameters(), by_position, strict=False)), **keywords}.items():
        _check_text(factory, name, value, place)
    try:
        built = factory.call(*args, **kwargs)
    except LocatedError as error:
        if error.path or error.place:
            raise
        raise type(error)(error.reason, path=path) from error.__cause__
    except ModelFactoryError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{quoted(factory.name)}: {plain_text(error)}", path=path) from error
    except Exception as error:
        what = f"building {quoted(factory.name)} failed: {type(error).__name__}: {plain_text(error)}"
        raise BuildError(what, path=path) from error
    if "_methods_" in spec:
        _declare_methods(built, factory, spec["_methods_"], (*path, "_methods_"))
    return built


def _declare_methods(built: Any, factory: Factory, names: list[str], path: ConfigPath) -> None:
    """Add the methods that a config names to those that the class of a custom block declares."""
    if not isinstance(built, nn.Module) or is_stock(built):
        raise ConfigError(
            f"{quoted(factory.name)} makes a {type(built).__name__}, and '_methods_' is for custom blocks, whose class "
            "the trainer does not have. Remedy: remove the key",
            path=path,
        )
    setattr(built, PORTABLE_METHODS, tuple(dict.fromkeys((*getattr(built, PORTABLE_METHODS, ()), *names))))
    try:
        declared_methods(built, quoted(factory.name))
    except NotPortableError as error:
        raise ConfigError(error.reason, path=path) from error


def _check_text(factory: Factory, name: str, value: Any, path: ConfigPath) -> None:
    """Refuse a text for a number (torch may accept ``1e-3`` and fail in a forward) or for a flag (``no``)."""
    parameter = factory.parameters().get(name)
    if parameter is None or not isinstance(value, str):
        return
    what = f"{quoted(name)} is the text {quoted(value)}, where {quoted(factory.name)} takes"
    if parameter.annotation in _FLAGS:
        raise ConfigError(
            f"{what} true or false. Remedy: no quotes; from the environment, ${{env:bool:NAME}}", path=path
        )
    if parameter.annotation in _NUMBERS:
        with suppress(ValueError):
            float(value)
            raise ConfigError(
                f"{what} a number. Remedy: no quotes; from the environment, ${{env:int:NAME}} or ${{env:float:NAME}}; "
                "YAML takes an exponent only with a point before it and a sign in it: 1.0e-3",
                path=path,
            )


def _check_device(kwargs: dict[str, Any], path: ConfigPath) -> None:
    """Accept the device of the build or the CPU only: the operator chooses the device. Without effect on meta."""
    here = torch.get_default_device().type
    if here == "meta":
        del kwargs["device"]
    elif str(kwargs["device"]).partition(":")[0] not in {here, "cpu"}:
        raise ConfigError(
            f"the device {quoted(kwargs['device'])} cannot be chosen by a config: this server builds models on {here}. "
            "Remedy: remove the argument; the device= of the factory moves the model on the trainer",
            path=path,
        )


def _factory(spec: Mapping[str, Any], registry: Registry, permissions: Permissions, path: ConfigPath) -> Factory:
    if "_type_" in spec:
        return registry.module(spec["_type_"], (*path, "_type_"))
    name = spec["_target_"]
    return Factory(name=name, call=permissions.import_target(name, (*path, "_target_")), signature_policy="best_effort")


def _keywords(spec: Mapping[str, Any], path: ConfigPath) -> dict[str, tuple[ConfigPath, Any]]:
    """Return place and plain value of each keyword argument."""
    # Without strict mode, other keys with an underscore are ignored; a keyword with an underscore is given in _kwargs_.
    keywords = {key: ((*path, key), value) for key, value in spec.items() if not key.startswith("_")}
    extra = spec.get("_kwargs_", {})
    return keywords | {key: ((*path, "_kwargs_", key), value) for key, value in extra.items()}
