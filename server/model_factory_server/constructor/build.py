"""Builds the model of a checked config: modules from specs, and the steps as the program of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from model_factory.config import ConfigPath, ModelConfig
from model_factory.errors import ConfigError, FormatError
from model_factory.program.ir import ModuleCall, OpCall, Program, Step
from model_factory.program.runtime.graph_model import GRAPH_MODULES, GraphModel, plugin_op_child
from model_factory.program.runtime.step_compiler import compile_step
from model_factory_server.constructor.instantiate import instantiate_module
from model_factory_server.constructor.permissions import Permissions
from model_factory_server.constructor.registry import Registry

_OWN_ATTRIBUTES = frozenset(vars(nn.Module()))


class PluginOp(nn.Module):
    """An op of a plug-in as a module, so that the op is recorded like a block.

    Example:
        >>> import torch
        >>> PluginOp(torch.add)(torch.ones(2), torch.ones(2))
        tensor([2., 2.])
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the op with the arguments of the step."""
        return self.fn(*args, **kwargs)


def build_model(config: ModelConfig, registry: Registry, permissions: Permissions) -> GraphModel:
    """Build the model of a config on the current default device, with the current random state.

    Modules are built in written order, which is also the order of the state dict. Each plug-in op in the steps becomes
    a child ``op:NAME`` of ``graph_modules``.

    Raises:
        ConfigError: a spec or the name of an op is wrong; ``path`` is the place in the config.
        BuildError: a constructor fails.

    Example:
        >>> from model_factory.config import resolve_mapping
        >>> from model_factory_server.constructor.registry import default_registry
        >>> layer = {"_type_": "nn.Linear", "in_features": 3, "out_features": 2}
        >>> document = {"schema_version": 1, "model": {"sequential": {"layers": [layer]}}}
        >>> config = resolve_mapping(document, {}, "<config>")
        >>> build_model(config.model, default_registry(), Permissions()).graph_modules
        ModuleDict(
          (layer0): Linear(in_features=3, out_features=2, bias=True)
        )
    """
    allowed = permissions.narrowed(config.settings)
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
    """Return the step in the notation of programs; an op of a plug-in is added to ``modules``."""
    if isinstance(step, ModuleCall):
        return replace(step, path=f"{GRAPH_MODULES}.{step.path}")
    assert isinstance(step, OpCall)  # configs have no other steps
    kwargs = {key: (*path[:-1], "kwargs", key) for key in step.kwargs}
    plugin = registry.plugin_op(step.name)
    if plugin is None:
        found = replace(step, name=registry.resolve_op(step.name, path, kwargs))
        try:
            compile_step(found)
        except FormatError as error:
            raise ConfigError(str(error), path=path) from None
        return found
    plugin.check_arguments(step.args, kwargs, path)
    child = add_op(modules, step.name, plugin.call)
    return ModuleCall(path=child, args=step.args, kwargs=step.kwargs, out=step.out)


def add_op(modules: dict[str, nn.Module], name: str, op: Callable[..., Any]) -> str:
    """Add an op of a plug-in to the modules of a graph, once; return the path of the module.

    Example:
        >>> import torch
        >>> add_op({}, "blend", torch.lerp)
        'graph_modules.op:blend'
    """
    child = plugin_op_child(name)
    modules.setdefault(child, PluginOp(op))
    return f"{GRAPH_MODULES}.{child}"
