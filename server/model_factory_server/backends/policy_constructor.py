"""The policy_constructor backend: a checkout that the operator mounts, with its own registry and blocks.

The checkout builds in the process of a single build, so what it does to ``sys.path``, its registry or the environment
ends there. A config reaches it as plain data without permissions: it never sees a path, and nothing that it would
read from the server's environment.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from model_factory.config import ConfigPath, ResolvedConfig
from model_factory.config.nodes import lower
from model_factory.errors import BuildError, ConfigError, ServerError
from model_factory_server.backends.checkout_model import convert_model
from model_factory_server.backends.plugins import load_register, plugin_errors
from model_factory_server.backends.private import without_paths
from model_factory_server.backends.sources import CHECKOUT_PACKAGE
from model_factory_server.constructor.factory import Listing
from model_factory_server.settings import POLICY_CONSTRUCTOR, BackendSettings

_PUBLIC = (CHECKOUT_PACKAGE, f"{CHECKOUT_PACKAGE}.registry.default_registry", f"{CHECKOUT_PACKAGE}.errors")


class PolicyConstructorBackend:
    """A ``Backend``. Plug-ins register with the checkout's registry."""

    def __init__(self, settings: BackendSettings) -> None:
        """Import the checkout and the plug-ins.

        Raises:
            ServerError: one of them cannot be used.
        """
        assert settings.path is not None
        api, registries, errors = _import_checkout(settings.path)
        try:
            self._build_model = api.build_model
            self._config_error: type[Exception] = errors.ConfigError
            self._registry = registries.get_default_registry()
        except Exception as error:
            raise _unusable(error) from error
        for plugin in settings.plugins:
            register = load_register(plugin)
            with plugin_errors(plugin):
                register(self._registry)

    def construct(self, config: ResolvedConfig) -> nn.Module:
        """See ``Backend``."""
        document = _document(config)
        try:
            built = self._build_model(document, registry=self._registry)
        except self._config_error as error:
            raise ConfigError(without_paths(str(error))) from error
        except Exception as error:
            detail = without_paths(f"{type(error).__name__}: {error}")
            raise BuildError(f"the {POLICY_CONSTRUCTOR} backend failed: {detail}") from error
        return convert_model(built)

    def blocks(self) -> tuple[Listing, ...]:
        """See ``Backend``. Empty: a listing is no part of what a checkout offers."""
        return ()


def _import_checkout(path: Path) -> tuple[Any, Any, Any]:
    """Import a checkout's public modules: the package, its default registry, its errors."""
    root = str(path.resolve())
    if root not in sys.path:
        sys.path.insert(0, root)
    try:
        api, registries, errors = map(importlib.import_module, _PUBLIC)
    except (Exception, SystemExit) as error:
        raise _unusable(error) from error
    home = Path(getattr(api, "__file__", None) or "").resolve().parent
    if home != (path / CHECKOUT_PACKAGE).resolve():
        raise ServerError(f"another {CHECKOUT_PACKAGE} is imported already; a process can use one checkout")
    return api, registries, errors


def _unusable(error: BaseException) -> ServerError:
    detail = without_paths(f"{type(error).__name__}: {error}")
    return ServerError(f"the checkout of --backend-path cannot be used: {detail}")


def _document(config: ResolvedConfig) -> dict[str, Any]:
    """Return what the checkout is given of a config: the model, and no permissions.

    Raises:
        ConfigError: a text in it holds ``${``, which the checkout would resolve on this machine.
    """
    model = lower(config.tree.entries["model"])
    for path in _references(model, ("model",)):
        raise ConfigError(
            "'${' is left in a resolved config, and this server's backend would resolve it on the server; references "
            "are resolved by the trainer's client alone",
            path=path,
        )
    settings = {"strict": config.model.settings.strict, "allow_imports": False, "allow_target": False}
    return {"schema_version": 1, "settings": settings, "model": model}


def _references(value: Any, path: ConfigPath) -> Iterator[ConfigPath]:
    """Yield the places of texts with ``${`` in plain data."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if "${" in key:
                yield path
            yield from _references(item, (*path, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _references(item, (*path, index))
    elif isinstance(value, str) and "${" in value:
        yield path
