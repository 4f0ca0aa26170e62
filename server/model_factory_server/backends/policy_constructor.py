"""The policy_constructor backend: a mounted checkout builds the models.

The backend uses the package ``model_constructor`` with ``build_model(config_or_path, *, registry)``,
``registry.default_registry.get_default_registry()`` and ``errors.ConfigError``. The worker imports the package, and
every build has a worker, so builds never share registry, ``sys.path`` and environment.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from model_factory.blocks import Block
from model_factory.config import ConfigPath, ResolvedConfig
from model_factory.config.schema.check import WEIGHTS
from model_factory.config.syntax.cursor import Cursor
from model_factory.errors import BuildError, ConfigError, ServerError
from model_factory_server.backends.checkout_model import convert_model
from model_factory_server.backends.code_files import CHECKOUT_PACKAGE
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


# A name with further parts, each after a dot or in brackets, with or without quotes.
_PATH = re.compile(r"[A-Za-z_]\w*(?:\.\w+|\[\w+\]|\['[^']+'\]|\[\"[^\"]+\"\])+")
_PART = re.compile(r"\['([^']+)'\]|\[\"([^\"]+)\"\]|\[(\w+)\]|\.?(\w+)")
_ABOVE: tuple[ConfigPath, ...] = ((), ("model",), ("model", "graph"), ("model", "sequential"))
"""Where a path of a checkout may begin."""

_MAX_CHARS = 10_000  # an error may quote a whole config


def place_of_error(error: Exception, config: ResolvedConfig) -> ConfigPath:
    """Return the path in a config that an error names; empty if the error names no value of the config.

    The deepest existing value counts: an error may name a missing argument.

    Example:
        >>> from model_factory.config import resolve_mapping
        >>> layer = {"_type_": "nn.Linear", "in_features": 3}
        >>> config = resolve_mapping({"schema_version": 1, "model": {"sequential": {"layers": [layer]}}}, env={})
        >>> place_of_error(ValueError("model.sequential.layers[0].out_features is missing"), config)
        ('model', 'sequential', 'layers', 0)
        >>> place_of_error(ValueError("torch.nn.Linear failed"), config)
        ()
    """
    root = Cursor(config.tree)
    found = [place for path in _named_paths(error) for above in _ABOVE if (place := _existing(root, above, path))]
    return max(found, key=len, default=())


def without_place(text: str, place: ConfigPath) -> str:
    """Return an error's text without a path of the place at the beginning.

    Example:
        >>> without_place("model.graph: no nodes", ("model", "graph"))
        'no nodes'
    """
    match = _PATH.match(text)
    if match is None or not place or _parts(match[0])[-1:] != place[-1:]:
        return text
    return text[match.end() :].lstrip(": ") if text[match.end() :].startswith(":") else text


def _named_paths(error: Exception) -> Iterator[ConfigPath]:
    given = getattr(error, "path", None)
    if isinstance(given, list | tuple) and all(isinstance(part, str | int) for part in given):
        yield tuple(given)
    for text in (given, str(error)):
        if isinstance(text, str):
            yield from (_parts(match) for match in _PATH.findall(text[:_MAX_CHARS]))


def _parts(text: str) -> ConfigPath:
    texts = ("".join(groups) for groups in _PART.findall(text))
    return tuple(int(part) if part.isdecimal() else part for part in texts)


def _existing(root: Cursor, above: ConfigPath, path: ConfigPath) -> ConfigPath:
    """Return the existing part of a path below ``above``; empty if less than two steps exist."""
    start = root.nearest(above)
    if start.path != above:
        return ()
    place = start.nearest(path).path
    return place if len(place) - len(above) > 1 else ()
