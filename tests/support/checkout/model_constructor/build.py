"""From a config to a model: its modules, and the steps that its forward takes."""

from dataclasses import dataclass

from torch import nn

from model_constructor.errors import ConfigError
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
    out: object


class Model(nn.Module):
    def __init__(self, inputs, modules, steps, outputs, return_policy, ops):
        super().__init__()
        self.inputs = inputs
        self.graph_modules = nn.ModuleDict(modules)
        self._steps = steps
        self._outputs = outputs
        self._return_policy = return_policy
        self._ops = ops

    def forward(self, *args, **kwargs):
        values = dict(zip(self.inputs, args, strict=False)) | kwargs
        for step in self._steps:
            call = self.graph_modules[step.call_name] if step.call_kind == "module" else self._ops[step.call_name]
            result = call(*_filled(step.args, values), **_filled(step.kwargs, values))
            if isinstance(step.out, str):
                values[step.out] = result
            elif isinstance(step.out, dict):
                values.update((name, result[key]) for key, name in step.out.items())
            else:
                values.update(zip(step.out, result, strict=True))
        if self._return_policy == "dict":
            return {key: values[name] for key, name in self._outputs.items()}
        found = [values[name] for name in self._outputs]
        return found[0] if self._return_policy == "single" else tuple(found)


def build_model(config_or_path, *, registry=None):
    registry = registry or get_default_registry()
    model = config_or_path["model"]
    graph = model["graph"] if "graph" in model else _graph_of(model["sequential"])
    modules = {name: _module(spec, registry) for name, spec in graph["modules"].items()}
    steps = [_step(step) for step in graph["steps"]]
    outputs = graph["outputs"]
    policy = graph.get("return") or (
        "dict" if isinstance(outputs, dict) else "single" if len(outputs) == 1 else "tuple"
    )
    if isinstance(outputs, list):
        outputs = [name.removeprefix("$") for name in outputs]
        outputs = {name: name for name in outputs} if policy == "dict" else outputs
    else:
        outputs = {key: name.removeprefix("$") for key, name in outputs.items()}
    ops = {step.call_name: registry.ops[step.call_name] for step in steps if step.call_kind == "op"}
    return Model(list(graph["inputs"]), modules, steps, outputs, policy, ops)


def _graph_of(sequential):
    layers = {f"layer{index}": spec for index, spec in enumerate(sequential["layers"])}
    names = [*sequential.get("inputs", ["x"]), *(f"h{index}" for index in range(len(layers)))]
    steps = [
        {"call": f"module:{name}", "args": [f"${before}"], "out": after}
        for name, before, after in zip(layers, names[:-1], names[1:], strict=True)
    ]
    return {"inputs": names[:1], "modules": layers, "steps": steps, "outputs": [names[-1]]}


def _module(spec, registry):
    arguments = {key: value for key, value in spec.items() if key != "_type_"}
    return registry.module(spec["_type_"])(**arguments)


def _step(step):
    kind, _, name = step["call"].partition(":")
    if kind not in {"module", "op"}:
        raise ConfigError(f"Unknown call {step['call']!r}")
    return Step(kind, name, _refs(step.get("args", [])), _refs(step.get("kwargs", {})), step["out"])


def _refs(value):
    if isinstance(value, str) and value.startswith("$"):
        return Ref(value[1:])
    if isinstance(value, list):
        return [_refs(item) for item in value]
    return {key: _refs(item) for key, item in value.items()} if isinstance(value, dict) else value


def _filled(value, values):
    if isinstance(value, Ref):
        return values[value.name]
    if isinstance(value, list):
        return [_filled(item, values) for item in value]
    return {key: _filled(item, values) for key, item in value.items()} if isinstance(value, dict) else value
