"""Backends: what turns a resolved config into a module.

``identity`` and ``sources`` say what a backend is, without importing torch or any of the operator's code; the process
that answers calls uses these alone. ``loading`` has the backends themselves, for workers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import nn

    from model_factory.blocks import Block
    from model_factory.config import ResolvedConfig


class Backend(Protocol):
    """Builds components in a worker process."""

    def construct(self, config: ResolvedConfig) -> nn.Module:
        """Build a component on the current default device, with the current random state.

        Raises:
            ConfigError: the config names or passes something wrong.
            BuildError: a constructor fails.
        """
        ...

    def blocks(self) -> tuple[Block, ...]:
        """What configs may name, sorted by name."""
        ...
