"""A checked config to a model: its modules built, its steps as the model's program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from model_factory.config import ConfigPath, ModelConfig
from model_factory.errors import ConfigError
from model_factory.program.ir import ModuleCall, OpCall, Program, Step
from model_factory.program.runtime.modules import GRAPH_MODULES, GraphModel, plugin_op_child
from model_factory_server.constructor.instantiate import instantiate_module
from model_factory_server.constructor.policy import Policy
from model_factory_server.constructor.registry import Registry

_OWN_ATTRIBUTES = frozenset(vars(nn.Module()))


class PluginOp(nn.Module):
    """An operator's own op as a module, so that it can be recorded and handed out like one."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the op."""
        return self.fn(*args, **kwargs)


def build_model(config: ModelConfig, registry: Registry, policy: Policy) -> GraphModel:
    """Build the model of a config on the current default device, with the current random state.

    Modules are built in written order, which is also the order of the state dict. Each plug-in op that the steps call
    is one more child of ``graph_modules``, under ``op:NAME``.

    Raises:
        ConfigError: a spec or an op's name is wrong; ``path`` is its place in the config.
        BuildError: a module's constructor fails.
    """
    allowed = policy.narrowed(config.settings)
    for name in config.modules:
        if name in _OWN_ATTRIBUTES:
            raise ConfigError(
                f"a module cannot be named {name!r}: every torch module has an attribute of that name. Remedy: another "
                "name",
                path=config.module_paths[name],
            )
    modules = {
        name: instantiate_module(name, spec, registry, allowed, path=config.module_paths[name])
        for name, spec in config.modules.items()
    }
    steps = []
    for step, path in zip(config.steps, config.step_paths, strict=True):
        steps.append(_resolve_call(step, registry, modules, (*path, "call")))
    return GraphModel(Program(inputs=config.inputs, steps=tuple(steps), result=config.outputs), modules)


def _resolve_call(step: Step, registry: Registry, modules: dict[str, nn.Module], path: ConfigPath) -> Step:
    """Return a config's step as a program has it; adds an operator's op to ``modules``."""
    if isinstance(step, ModuleCall):
        return replace(step, path=f"{GRAPH_MODULES}.{step.path}")
    assert isinstance(step, OpCall)  # a config has no other steps
    kwargs = {key: (*path[:-1], "kwargs", key) for key in step.kwargs}
    plugin = registry.plugin_op(step.name)
    if plugin is None:
        return replace(step, name=registry.resolve_op(step.name, path, kwargs))
    plugin.check_arguments(step.args, kwargs, path)
    child = add_op(modules, step.name, plugin.call)
    return ModuleCall(path=child, args=step.args, kwargs=step.kwargs, out=step.out)


def add_op(modules: dict[str, nn.Module], name: str, op: Callable[..., Any]) -> str:
    """Add an operator's op to the modules of a graph, unless it is there; return the path of the module."""
    child = plugin_op_child(name)
    modules.setdefault(child, PluginOp(op))
    return f"{GRAPH_MODULES}.{child}"
