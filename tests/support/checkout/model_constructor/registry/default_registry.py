"""The process-wide registry, filled at its first use."""

import torch
from torch import nn

from model_constructor.errors import ConfigError


class Registry:
    def __init__(self):
        self.factories = {}
        self.ops = {"identity": lambda value: value, "add": torch.add, "cat": torch.cat}

    def register_module(self, name, factory):
        self.factories[name] = factory

    def register_op(self, name, op):
        self.ops[name] = op

    def module(self, name):
        if name in self.factories:
            return self.factories[name]
        stock = getattr(nn, name.removeprefix("nn."), None) if name.startswith("nn.") else None
        if stock is None:
            raise ConfigError(f"Unknown module type {name!r}")
        return stock


_registry = None


def get_default_registry():
    global _registry  # noqa: PLW0603
    if _registry is None:
        from model_constructor import blocks  # noqa: PLC0415

        _registry = Registry()
        blocks.register(_registry)
    return _registry
