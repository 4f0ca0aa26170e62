"""The policy_constructor backend: a mounted checkout builds the models.

The backend uses the package ``model_constructor`` with ``build_model(config_or_path, *, registry)``,
``registry.default_registry.get_default_registry()`` and ``errors.ConfigError``. The worker imports the package, and
every build has a worker, so builds never share registry, ``sys.path`` and environment.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from model_factory.blocks import Block
from model_factory.config import ConfigPath, ResolvedConfig
from model_factory.config.schema.check import WEIGHTS
from model_factory.errors import BuildError, ConfigError, ServerError
from model_factory_server.backends.checkout_model import convert_model
from model_factory_server.backends.code_files import CHECKOUT_PACKAGE
from model_factory_server.backends.error_places import place_of_error, without_place
from model_factory_server.backends.hub import hub_of_other_code
from model_factory_server.backends.plugins import load_register, plugin_errors
from model_factory_server.backends.redaction import without_paths
from model_factory_server.backends.self_check import register as register_self_check
from model_factory_server.settings.server_settings import BackendSettings

# Only the operator gives permissions, and the server has no option for permissions of a checkout.
_NOTHING_ALLOWED = {"allow_imports": False, "allow_target": False}


class PolicyConstructorBackend:
    """The backend ``policy_constructor``."""

    def __init__(self, settings: BackendSettings) -> None:
        """Import the checkout and register the blocks of plug-ins in the registry of the checkout.

        Raises:
            ServerError: the checkout or a plug-in cannot be used; the message gives the reason.
        """
        assert settings.path is not None
        path = settings.path.absolute()
        self._hub = settings.hub
        with _checkout_errors(path):
            self._build_model: Callable[..., Any] = _import(path, "").build_model
            self._config_error: type[Exception] = _import(path, ".errors").ConfigError
            self._registry = _import(path, ".registry.default_registry").get_default_registry()
            register_self_check(self._registry)
        for plugin in settings.plugins:
            register = load_register(plugin)
            with plugin_errors(plugin):
                register(self._registry)

    def construct(self, config: ResolvedConfig) -> nn.Module:
        """See :class:`~model_factory_server.backends.Backend`."""
        document = config.plain()
        _refuse_interpolation(document, ())
        document["settings"] = document.get("settings", {}) | _NOTHING_ALLOWED
        document.pop("signature", None)  # unknown to a checkout
        document["model"].pop(WEIGHTS, None)  # loaded by the worker
        try:
            with hub_of_other_code(self._hub):
                built = self._build_model(document, registry=self._registry)
        except self._config_error as error:
            place = place_of_error(error, config)
            raise ConfigError(without_place(without_paths(str(error)), place), path=place) from error
        except BuildError:
            raise  # the checkout read a forbidden file, or a file that the hub folder lacks
        except Exception as error:
            place = place_of_error(error, config)
            raise BuildError(without_paths(f"{type(error).__name__}: {error}"), path=place) from error
        return convert_model(built)

    def blocks(self) -> tuple[Block, ...]:
        """Return nothing: the documented interface of a checkout has no list of blocks."""
        return ()


def _refuse_interpolation(value: Any, path: ConfigPath) -> None:
    """Refuse ``${``: the checkout would resolve ``${env:X}`` from the environment of the server."""
    if isinstance(value, str) and "${" in value:
        raise ConfigError("'${' is left in a resolved config; the checkout would resolve it on the server", path=path)
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _refuse_interpolation(key, path)
            _refuse_interpolation(item, (*path, key))


def _import(path: Path, module: str) -> Any:
    """Import a module of this checkout; another checkout in this process is an error."""
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    package = importlib.import_module(CHECKOUT_PACKAGE)
    found, wanted = Path(package.__file__ or ""), path / CHECKOUT_PACKAGE / "__init__.py"
    if not found.is_file() or not found.samefile(wanted):
        raise ServerError(
            f"another {CHECKOUT_PACKAGE} is imported already in this process, from {found.parent}. Remedy: use one "
            "checkout in a process"
        )
    return importlib.import_module(CHECKOUT_PACKAGE + module)


@contextlib.contextmanager
def _checkout_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except ServerError:
        raise
    except (Exception, SystemExit) as error:
        raise ServerError(f"the checkout {path} cannot be used: {type(error).__name__}: {error}") from error
