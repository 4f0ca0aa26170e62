"""Loads the backend of the settings, in a worker process or in the process of a trainer."""

from __future__ import annotations

from model_factory_server.backends import Backend
from model_factory_server.backends.builtin import BuiltinBackend
from model_factory_server.backends.policy_constructor import PolicyConstructorBackend
from model_factory_server.settings.server_settings import BUILTIN, BackendSettings


def load_backend(settings: BackendSettings) -> Backend:
    """Load the backend of the settings; imports checkout and plug-ins.

    Raises:
        ServerError: the checkout or a plug-in cannot be used; the message gives the reason.
    """
    return BuiltinBackend(settings) if settings.name == BUILTIN else PolicyConstructorBackend(settings)
