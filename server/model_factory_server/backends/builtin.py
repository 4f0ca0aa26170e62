"""The built-in backend: the constructor and block library of this package, and plug-ins."""

from __future__ import annotations

import functools

from torch import nn

from model_factory.blocks import Block
from model_factory.config import ResolvedConfig
from model_factory_server.backends.hub import load_radio, load_resnet34
from model_factory_server.backends.plugins import load_register, plugin_errors
from model_factory_server.backends.self_check import register as register_self_check
from model_factory_server.constructor import Permissions, build_model, default_registry
from model_factory_server.settings.server_settings import BUILTIN, BackendSettings


class BuiltinBackend:
    """The backend ``builtin``.

    Example:
        >>> backend = BuiltinBackend(BackendSettings())
        >>> "nn.Linear" in [block.name for block in backend.blocks()]
        True
    """

    def __init__(self, settings: BackendSettings) -> None:
        """Import the plug-ins and register all blocks.

        Raises:
            ServerError: a plug-in cannot be used; the message names the plug-in.
        """
        self._policy = Permissions(
            allow_imports=bool(settings.imports),
            allow_target=bool(settings.imports),
            allowed_import_prefixes=settings.imports,
        )
        self._registry = default_registry(
            functools.partial(load_radio, settings.hub), functools.partial(load_resnet34, settings.hub)
        )
        self._registry.register_from(BUILTIN, register_self_check)
        for plugin in settings.plugins:
            register = load_register(plugin)
            with plugin_errors(plugin):
                self._registry.register_from(plugin, register)

    def construct(self, config: ResolvedConfig) -> nn.Module:
        """See :class:`~model_factory_server.backends.Backend`."""
        return build_model(config.model, self._registry, self._policy)

    def blocks(self) -> tuple[Block, ...]:
        """See :class:`~model_factory_server.backends.Backend`."""
        return self._registry.blocks()
