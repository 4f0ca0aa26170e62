import operator

import torch
from torch import nn

from model_constructor.errors import ConfigError


class Registry:
    def __init__(self):
        self.factories = {}
        self.functions = {}

    def register_module(self, name, factory, **_more):
        self.factories[name] = factory

    def register_op(self, name, fn, **_more):
        self.functions[name] = fn

    def factory(self, name):
        if name not in self.factories:
            raise ConfigError(f"Unknown module type {name!r}")
        return self.factories[name]


_DEFAULT = Registry()


def get_default_registry():
    if not _DEFAULT.factories:
        from model_constructor import blocks  # noqa: PLC0415  which imports this module

        _DEFAULT.register_module("nn.Linear", nn.Linear)
        _DEFAULT.register_module("nn.LazyLinear", nn.LazyLinear)
        _DEFAULT.register_op("add", operator.add)
        _DEFAULT.register_op("cat", torch.cat)
        _DEFAULT.register_op("identity", lambda x: x)
        blocks.register(_DEFAULT)
    return _DEFAULT
