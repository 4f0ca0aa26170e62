"""From settings to a backend, in a worker process or in a trainer that builds for itself."""

from __future__ import annotations

from model_factory_server.backends import Backend
from model_factory_server.backends.builtin import BuiltinBackend
from model_factory_server.backends.policy_constructor import PolicyConstructorBackend
from model_factory_server.settings.server_settings import BUILTIN, BackendSettings


def load_backend(settings: BackendSettings) -> Backend:
    """Make the backend of these settings; imports the operator's code.

    Raises:
        ServerError: that code cannot be used; the message says what and why.
    """
    return BuiltinBackend(settings) if settings.name == BUILTIN else PolicyConstructorBackend(settings)
