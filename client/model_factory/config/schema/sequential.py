"""``sequential``: a list of layers, each called with the value of the layer before."""

from __future__ import annotations

from model_factory.config.schema.model_config import ModelConfig, Settings
from model_factory.config.schema.outputs import read_result
from model_factory.config.schema.specs import read_module_spec
from model_factory.config.schema.value_names import INPUT, ValueNames
from model_factory.config.syntax.cursor import Cursor
from model_factory.program.ir import ModuleCall, Ref, Step

SEQUENTIAL_KEYS = ("inputs", "layers", "outputs", "return")
_DEFAULT_INPUT = "x"


def read_sequential(sequential: Cursor, settings: Settings) -> ModelConfig:
    """Return the model of a ``sequential``: layer i is module ``layer{i}`` and makes value ``h{i}``.

    Raises ConfigError.
    """
    entries = sequential.entries(SEQUENTIAL_KEYS)
    values = ValueNames()
    inputs: tuple[str, ...] = (_DEFAULT_INPUT,)
    if "inputs" in entries:
        inputs = values.read_inputs(entries["inputs"])
        if len(inputs) != 1:
            raise entries["inputs"].error(f"a sequential model has exactly one input, found {len(inputs)}")
    else:
        values.add(_DEFAULT_INPUT, INPUT, sequential.gap("inputs"))
    layers = sequential.entry("layers").items("specs", empty=False)
    modules = {}
    steps: list[Step] = []
    last = Ref(inputs[0])
    for index, layer in enumerate(layers):
        modules[f"layer{index}"] = read_module_spec(layer, strict=settings.strict)
        values.add(f"h{index}", index, layer)
        steps.append(ModuleCall(path=f"layer{index}", args=(last,), out=f"h{index}"))
        last = Ref(f"h{index}")
    paths = tuple(layer.path for layer in layers)
    return ModelConfig(
        inputs=inputs,
        modules=modules,
        steps=tuple(steps),
        outputs=read_result(sequential, values, default=last),
        settings=settings,
        module_paths=dict(zip(modules, paths, strict=True)),
        step_paths=paths,
    )
