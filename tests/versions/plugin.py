"""A plug-in for the server: every class of ``torch.nn``, and one custom block for each property of modules."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from matrix import blocks, cases

SEED = 5


def register(registry: Any) -> None:
    """Register each case of a class as ``nn_NAME_NUMBER``, and each custom block as ``kind_NAME``."""
    for name, make in blocks.BLOCKS.items():
        registry.register_module(f"kind_{name}", functools.partial(_seeded, make))
    for name, items in cases.CASES.items():
        for number, case in enumerate(items):
            registry.register_module(f"nn_{name}_{number}", functools.partial(_seeded, case.build, name))


def _seeded(make: Callable[..., nn.Module], *arguments: str) -> nn.Module:
    """Build a module with weights that do not depend on the other modules of a config."""
    torch.manual_seed(SEED)
    return make(*arguments)
