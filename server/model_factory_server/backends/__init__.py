"""Backends turn a resolved config into a module.

``identity`` and ``code_files`` identify a backend without importing torch or plug-ins, for the server process.
``loading`` imports the backend, for workers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import nn

    from model_factory.blocks import Block
    from model_factory.config import ResolvedConfig


class Backend(Protocol):
    """Builds components, in a worker process or in the process of a trainer."""

    def construct(self, config: ResolvedConfig) -> nn.Module:
        """Build a component on the current default device, with the current random state.

        Raises:
            ConfigError: a name or an argument in the config is wrong.
            BuildError: a constructor fails.
        """
        ...

    def blocks(self) -> tuple[Block, ...]:
        """Return the module types and ops for configs, sorted by name."""
        ...
