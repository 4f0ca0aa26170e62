"""``graph``: named modules, and steps to call modules and ops."""

from __future__ import annotations

from typing import Any

from model_factory.config.schema.model_config import ModelConfig, Settings
from model_factory.config.schema.outputs import read_result
from model_factory.config.schema.specs import read_module_spec
from model_factory.config.schema.steps import read_steps
from model_factory.config.schema.value_names import ValueNames
from model_factory.config.syntax.cursor import Cursor

GRAPH_KEYS = ("inputs", "modules", "nodes", "order", "steps", "outputs", "return")


def read_graph(graph: Cursor, settings: Settings) -> ModelConfig:
    """Return the model of a ``graph``. Raises ConfigError."""
    entries = graph.entries(GRAPH_KEYS)
    values = ValueNames()
    inputs = values.read_inputs(graph.entry("inputs"))
    modules: dict[str, dict[str, Any]] = {}  # a graph of ops alone needs no modules
    for name, spec in entries["modules"].entries().items() if "modules" in entries else ():
        modules[spec.check_name(name)] = read_module_spec(spec, strict=settings.strict)
    steps = read_steps(graph, modules, values)
    return ModelConfig(
        inputs=inputs,
        modules=modules,
        steps=tuple(steps.values()),
        outputs=read_result(graph, values),
        settings=settings,
        module_paths={name: (*graph.path, "modules", name) for name in modules},
        step_paths=tuple(steps),
    )
