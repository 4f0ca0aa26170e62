from dataclasses import dataclass
from typing import Any

from torch import nn

from model_constructor.registry.default_registry import get_default_registry


@dataclass(frozen=True)
class Ref:
    name: str


@dataclass(frozen=True)
class Step:
    call_kind: str
    call_name: str
    args: list
    kwargs: dict
    out: Any


class GraphModel(nn.Module):
    def __init__(self, inputs, modules, steps, outputs, return_policy, ops):
        super().__init__()
        self.inputs = inputs
        self.graph_modules = nn.ModuleDict(modules)
        self._steps = steps
        self._outputs = outputs
        self._return_policy = return_policy
        self._ops = ops

    def forward(self, **values):
        for step in self._steps:
            call = self.graph_modules[step.call_name] if step.call_kind == "module" else self._ops[step.call_name]
            result = call(*resolve(step.args, values), **resolve(step.kwargs, values))
            if isinstance(step.out, str):
                values[step.out] = result
            else:
                values.update(zip(step.out, result, strict=True))
        if self._return_policy == "dict":
            return {key: values[name] for key, name in self._outputs.items()}
        results = tuple(values[name] for name in self._outputs)
        return results if self._return_policy == "tuple" else results[0]


def resolve(value, values):
    if isinstance(value, Ref):
        return values[value.name]
    if isinstance(value, list):
        return [resolve(item, values) for item in value]
    if isinstance(value, dict):
        return {key: resolve(item, values) for key, item in value.items()}
    return value


def build_model(config_or_path, *, registry=None):
    registry = registry or get_default_registry()
    assert config_or_path["schema_version"] == 1
    assert not config_or_path["settings"]["allow_imports"]
    assert not config_or_path["settings"]["allow_target"]
    graph = config_or_path["model"]["graph"]
    modules = {name: make(spec, registry) for name, spec in graph["modules"].items()}
    steps = [compile_step(step) for step in graph["steps"]]
    outputs = graph["outputs"]
    policy = "dict" if isinstance(outputs, dict) else "single" if len(outputs) == 1 else "tuple"
    ops = {step.call_name: registry.functions[step.call_name] for step in steps if step.call_kind == "op"}
    return GraphModel(list(graph["inputs"]), modules, steps, outputs, policy, ops)


def make(spec, registry):
    kwargs = {key: value for key, value in spec.items() if key != "_type_"}
    return registry.factory(spec["_type_"])(**kwargs)


def compile_step(step):
    kind, _, name = step["call"].partition(":")
    return Step(kind, name, refs(step.get("args", [])), refs(step.get("kwargs", {})), step["out"])


def refs(value):
    if isinstance(value, str) and value.startswith("$"):
        return Ref(value[1:])
    if isinstance(value, list):
        return [refs(item) for item in value]
    if isinstance(value, dict):
        return {key: refs(item) for key, item in value.items()}
    return value
