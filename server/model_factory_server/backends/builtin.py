"""The built-in backend: this package's constructor and block library, and the operator's plug-ins."""

from __future__ import annotations

import functools

from torch import nn

from model_factory.blocks import Block
from model_factory.config import ResolvedConfig
from model_factory_server.backends.hub import load_radio
from model_factory_server.backends.plugins import load_register, plugin_errors
from model_factory_server.backends.self_check import register as register_self_check
from model_factory_server.constructor import Policy, build_model, default_registry
from model_factory_server.settings.server_settings import BUILTIN, BackendSettings


class BuiltinBackend:
    """A ``Backend``."""

    def __init__(self, settings: BackendSettings) -> None:
        """Import the plug-ins and let them register.

        Raises:
            ServerError: one of them cannot be used; the message names it.
        """
        self._policy = Policy(
            allow_imports=bool(settings.imports),
            allow_target=bool(settings.imports),
            allowed_import_prefixes=settings.imports,
        )
        self._registry = default_registry(functools.partial(load_radio, settings.hub))
        self._registry.register_from(BUILTIN, register_self_check)
        for plugin in settings.plugins:
            register = load_register(plugin)
            with plugin_errors(plugin):
                self._registry.register_from(plugin, register)

    def construct(self, config: ResolvedConfig) -> nn.Module:
        """See ``Backend``."""
        return build_model(config.model, self._registry, self._policy)

    def blocks(self) -> tuple[Block, ...]:
        """See ``Backend``."""
        return self._registry.blocks()
