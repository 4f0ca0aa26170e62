"""Permissions of configs, and the import of classes by name under these permissions."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from model_factory.config import ConfigPath, Settings
from model_factory.errors import BuildError, ConfigError
from model_factory.wording import listed, quoted


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """Permissions of configs, set by the operator; nothing is allowed by default.

    Example:
        >>> permissions = Permissions(allow_imports=True, allowed_import_prefixes=("my_blocks",))
        >>> permissions.allows_import("my_blocks.vision"), permissions.allows_import("os")
        (True, False)
    """

    allow_imports: bool = False
    """Whether a config may import modules."""
    allowed_import_prefixes: tuple[str, ...] = ()
    """Packages and modules that may be imported, submodules included: ``my_blocks`` or ``my_blocks.``."""
    allow_target: bool = False
    """Whether specs may use ``_target_``; needs ``allow_imports`` as well."""

    def narrowed(self, settings: Settings) -> Permissions:
        """Return the permissions given by both the server and the settings of a config."""
        return Permissions(
            allow_imports=self.allow_imports and settings.allow_imports,
            allowed_import_prefixes=_common(self.allowed_import_prefixes, settings.allowed_import_prefixes),
            allow_target=self.allow_target and settings.allow_target,
        )

    def allows_import(self, module: str) -> bool:
        """Whether the module may be imported."""
        return self.allow_imports and any(_is_under(module, prefix) for prefix in self.allowed_import_prefixes)

    def import_target(self, target: str, path: ConfigPath) -> Callable[..., Any]:
        """Import the class or function of ``_target_: package.module.Name``.

        Only modules under the allowed prefixes are imported. The class or function must be defined under a prefix, too:
        a name that an allowed module imported (``my_blocks.os.system``) is refused.

        Raises:
            ConfigError: the import is forbidden, or the name is not a class or function; ``path`` is the place of
                ``_target_`` in the config.
            BuildError: the module raises an exception during import.
        """
        if not (self.allow_target and self.allow_imports):
            raise ConfigError(
                "_target_ is not allowed by the server's policy or the config's settings. Remedy: allow_target and "
                "allow_imports both by the operator and in 'settings' of the config",
                path=path,
            )
        parts = target.split(".")
        if len(parts) < 2 or not all(part.isidentifier() for part in parts):
            raise ConfigError(f"_target_ must read package.module.Name, found {quoted(target)}", path=path)
        if any(part.startswith("_") for part in parts):
            raise ConfigError(f"_target_ {quoted(target)} names something private", path=path)
        modules = [".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]
        found = _find(target, [module for module in modules if self.allows_import(module)], path)
        if found is not None and self.allows_import(found.__module__):
            return found
        if found is None and any(self.allows_import(module) for module in modules):
            raise ConfigError(f"_target_ {quoted(target)} is not a class or function", path=path)
        allowed = listed(self.allowed_import_prefixes)
        home = "" if found is None else f", whose home is {quoted(found.__module__)},"
        raise ConfigError(
            f"_target_ {quoted(target)}{home} is not under the allowed prefixes: {allowed}. A prefix must be allowed "
            "by the operator and by 'settings: {allowed_import_prefixes: [...]}' of the config",
            path=path,
        )


def _find(target: str, modules: list[str], path: ConfigPath) -> Callable[..., Any] | None:
    """Return the class or function ``target``, from the first existing module of ``modules``."""
    for name in modules:
        try:
            value: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and _is_under(name, error.name):
                continue
            raise BuildError(f"importing {name!r} failed: {error}", path=path) from error
        except Exception as error:
            raise BuildError(f"importing {name!r} failed: {type(error).__name__}: {error}", path=path) from error
        for part in target[len(name) + 1 :].split("."):
            value = getattr(value, part, None)
        is_home_known = inspect.isclass(value) or inspect.isfunction(value) or inspect.ismethod(value)
        return value if is_home_known else None
    return None


def _is_under(module: str, prefix: str) -> bool:
    package = prefix.rstrip(".")
    return bool(package) and (module == package or module.startswith(f"{package}."))


def _common(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    """Return the prefixes that both lists allow."""
    both = [prefix for prefix in first if any(_is_under(prefix.rstrip("."), other) for other in second)]
    both += [prefix for prefix in second if any(_is_under(prefix.rstrip("."), other) for other in first)]
    return tuple(dict.fromkeys(both))
