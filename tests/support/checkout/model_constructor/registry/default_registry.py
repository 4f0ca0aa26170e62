import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from model_constructor.errors import ConfigError


@dataclass(frozen=True)
class Entry:
    name: str
    target: Any


class Registry:
    def __init__(self):
        self.modules = {}
        self.ops = {}

    def register_module(self, name, factory, **_more):
        self.modules[name] = Entry(name, factory)

    def register_op(self, name, fn, **_more):
        self.ops[name] = Entry(name, fn)

    def get_module(self, name, config_path=None):
        if name not in self.modules:
            raise ConfigError(f"Unknown module type {name!r}", config_path=config_path, suggestions=["nn.Linear"])
        return self.modules[name]

    def get_op(self, name):
        return self.ops[name]

    def list_modules(self):
        return sorted(self.modules)

    def list_ops(self):
        return sorted(self.ops)


_DEFAULT = Registry()


def get_default_registry():
    if not _DEFAULT.modules:
        from model_constructor import blocks  # noqa: PLC0415  which imports this module

        _DEFAULT.register_module("nn.Linear", nn.Linear)
        _DEFAULT.register_module("nn.LazyLinear", nn.LazyLinear)
        _DEFAULT.register_op("add", operator.add)
        _DEFAULT.register_op("cat", torch.cat)
        _DEFAULT.register_op("identity", lambda x: x)
        blocks.register(_DEFAULT)
    return _DEFAULT
