"""``sequential`` and ``graph``: two ways to write a model, read into the same typed form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model_factory.config.schema.model_config import ModelConfig, Settings
from model_factory.config.schema.outputs import read_result
from model_factory.config.schema.specs import check_module_spec
from model_factory.config.schema.steps import read_steps
from model_factory.config.schema.values import INPUT, Values
from model_factory.config.syntax.expect import (
    check_name,
    require_entry,
    require_keys,
    require_list,
    require_map,
    require_name,
)
from model_factory.config.syntax.nodes import ConfigPath, MapNode, Node, error_at, lower
from model_factory.program.ir import ModuleCall, Ref, Step

_SEQUENTIAL_KEYS = ("inputs", "layers", "outputs", "return")
_GRAPH_KEYS = ("inputs", "modules", "nodes", "order", "steps", "outputs", "return")
_DEFAULT_INPUT = "x"


def read_sequential(body: MapNode, path: ConfigPath, settings: Settings) -> ModelConfig:
    """Return the model of a ``sequential``: layer i is module ``layer{i}`` and makes value ``h{i}``."""
    require_keys(body, path, _SEQUENTIAL_KEYS)
    values = Values()
    inputs_path = (*path, "inputs")
    if "inputs" in body.entries:
        inputs = _read_inputs(body.entries["inputs"], inputs_path, values)
        if len(inputs) != 1:
            reason = f"a sequential model has exactly one input, found {len(inputs)}"
            raise error_at(body.entries["inputs"], inputs_path, reason)
    else:
        inputs = (_DEFAULT_INPUT,)
        values.add(_DEFAULT_INPUT, INPUT, body, inputs_path)
    layers_path = (*path, "layers")
    layers = require_list(require_entry(body, path, "layers"), layers_path, "specs", empty=False).items
    modules: dict[str, dict[str, Any]] = {}
    steps: list[Step] = []
    last = Ref(inputs[0])
    for index, layer in enumerate(layers):
        modules[f"layer{index}"] = lower(check_module_spec(layer, (*layers_path, index), strict=settings.strict))
        values.add(f"h{index}", index, layer, (*layers_path, index))
        steps.append(ModuleCall(path=f"layer{index}", args=(last,), out=f"h{index}"))
        last = Ref(f"h{index}")
    layer_paths = tuple((*layers_path, index) for index in range(len(layers)))
    return ModelConfig(
        inputs=inputs,
        modules=modules,
        steps=tuple(steps),
        outputs=read_result(body, path, values, default=last),
        settings=settings,
        module_paths=dict(zip(modules, layer_paths, strict=True)),
        step_paths=layer_paths,
    )


def read_graph(body: MapNode, path: ConfigPath, settings: Settings) -> ModelConfig:
    """Return the model of a ``graph``."""
    require_keys(body, path, _GRAPH_KEYS)
    values = Values()
    inputs = _read_inputs(require_entry(body, path, "inputs"), (*path, "inputs"), values)
    modules = _read_modules(body, (*path, "modules"), settings)
    steps = read_steps(body, path, modules, values)
    return ModelConfig(
        inputs=inputs,
        modules=modules,
        steps=tuple(steps.values()),
        outputs=read_result(body, path, values),
        settings=settings,
        module_paths={name: (*path, "modules", name) for name in modules},
        step_paths=tuple(steps),
    )


def _read_inputs(node: Node, path: ConfigPath, values: Values) -> tuple[str, ...]:
    names = []
    for index, item in enumerate(require_list(node, path, "names", empty=False).items):
        name = require_name(item, (*path, index))
        values.add(name, INPUT, item, (*path, index))
        names.append(name)
    return tuple(names)


def _read_modules(body: MapNode, path: ConfigPath, settings: Settings) -> Mapping[str, dict[str, Any]]:
    """Return the specs by module name; a graph of ops alone needs no modules."""
    if "modules" not in body.entries:
        return {}
    modules: dict[str, dict[str, Any]] = {}
    for name, spec in require_map(body.entries["modules"], path).entries.items():
        check_name(name, spec, (*path, name))
        modules[name] = lower(check_module_spec(spec, (*path, name), strict=settings.strict))
    return modules
