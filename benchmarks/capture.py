"""Compares ways to turn a module into data: torch.export, torch.fx and the programs of model-factory.

Usage: python -m benchmarks.capture [--only SET] [--way WAY] [--details]

Each way captures each model of four sets. The table counts the models with which the captured module

* runs: eval mode gives the outputs of the original;
* keeps types: the leaf layers have the classes of the original, so `isinstance(layer, nn.Linear)` works;
* trains: captured in train mode, one step gives the gradients and buffers of the original under one seed;
* switches: `train()` and `eval()` of one captured module give the results of the original in both modes;
* takes other batches: eval mode works with twice the batch.

Libraries that are not installed are reported as missing.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves, tree_map

from model_factory.describe.describe import describe, named_tensors
from model_factory.descriptor.codec import decode_descriptor, decode_programs, encode_descriptor, encode_programs
from model_factory.descriptor.rebuild import rebuild
from model_factory.descriptor.weights import map_weights, write_weights
from model_factory_server import PolicyConstructorModelFactory
from model_factory_server.export.exporter import record_model

ROOT = Path(__file__).parents[1]
QUESTIONS = ("runs", "keeps types", "trains", "switches", "takes other batches")
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
Inputs = Mapping[str, Any]


class Example(NamedTuple):
    """A model and the keyword arguments of one call."""

    name: str
    model: nn.Module
    inputs: Inputs


# The ways to capture.


def by_export(model: nn.Module, inputs: Inputs, *, strict: bool, any_batch: bool = True) -> nn.Module:
    """Capture with torch.export; ``any_batch`` lets the first axis of each tensor change if torch.export allows it."""
    free = tree_map(lambda value: {0: Dim.AUTO} if isinstance(value, Tensor) and value.dim() else None, dict(inputs))
    shapes = free if any_batch else None
    return torch.export.export(model, (), dict(inputs), dynamic_shapes=shapes, strict=strict).module()


def by_fx(model: nn.Module, inputs: Inputs) -> nn.Module:
    """Capture with torch.fx; arguments that are no tensors are fixed, as symbolic_trace wants."""
    given = {name: value for name, value in inputs.items() if tree_leaves(value) and isinstance(value, Tensor)}
    names = [name for name in _parameters_of(model) if name not in given]
    traced = fx.symbolic_trace(model, concrete_args={name: inputs.get(name) for name in names})
    return _Keywords(traced, names)


def by_program(model: nn.Module, inputs: Inputs) -> nn.Module:
    """Capture with model-factory: record, encode, decode and rebuild, without the original code."""
    model.example_inputs = lambda: [dict(inputs)]
    programs = record_model(model)
    descriptor = describe(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        with path.open("wb") as file:
            write_weights(file, named_tensors(model, descriptor))
        with path.open("rb") as file:
            tensors = map_weights(file)
    arrived = decode_descriptor(encode_descriptor(descriptor))
    return rebuild(arrived, tensors, decode_programs(encode_programs(programs)))


WAYS: dict[str, Callable[[nn.Module, Inputs], nn.Module]] = {
    "torch.export, strict": partial(by_export, strict=True),
    "torch.export, non-strict": partial(by_export, strict=False),
    "torch.fx": by_fx,
    "model-factory": by_program,
}


class _Keywords(nn.Module):
    """A module of torch.fx that drops the fixed arguments."""

    def __init__(self, traced: nn.Module, fixed: list[str]) -> None:
        super().__init__()
        self.traced = traced
        self._fixed = fixed

    def forward(self, **inputs: Any) -> Any:
        return self.traced(**{name: value for name, value in inputs.items() if name not in self._fixed})


def _parameters_of(model: nn.Module) -> list[str]:
    code = type(model).forward.__code__
    return list(code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount])


# What is asked of a captured module.


def examine(way: Callable[[nn.Module, Inputs], nn.Module], example: Example) -> tuple[dict[str, bool], str]:
    """Return the outcome of each of ``QUESTIONS``, and why the first capture failed."""
    outcomes = dict.fromkeys(QUESTIONS, False)
    pristine = example.model  # never run: a module that has run may hold tensors that cannot be copied
    original = copy.deepcopy(pristine).eval()
    try:
        captured = way(copy.deepcopy(pristine).eval(), example.inputs)
        _same(_run(captured, example.inputs), _run(original, example.inputs))
    except Exception as error:  # noqa: BLE001  any failure of a capture is an outcome
        return outcomes, f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"
    outcomes["runs"] = True
    outcomes["keeps types"] = not _layers(original) - _layers(captured)
    outcomes["takes other batches"] = _holds(lambda: _other_batch(captured, original, example.inputs))
    outcomes["switches"] = _holds(lambda: _both_modes(captured, copy.deepcopy(pristine), example.inputs))
    outcomes["trains"] = _holds(lambda: _one_step(way, copy.deepcopy(pristine).train(), example.inputs))
    return outcomes, ""


def _holds(check: Callable[[], None]) -> bool:
    try:
        check()
    except Exception:  # noqa: BLE001  any failure is an outcome
        return False
    return True


def _run(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    torch.manual_seed(0)
    outputs = model(**inputs)
    if hasattr(outputs, "keys"):
        outputs = {name: outputs[name] for name in outputs.keys()}  # noqa: SIM118  named results are no mappings
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _same(actual: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(actual, expected, **TOLERANCE)


def _layers(model: nn.Module) -> Counter[str]:
    """Count the torch.nn classes of all leaves; an empty Sequential is no layer."""
    leaves = [type(module) for module in model.modules() if not list(module.children())]
    layers = [leaf for leaf in leaves if leaf.__module__.startswith("torch.nn.modules") and leaf is not nn.Sequential]
    return Counter(layer.__name__ for layer in layers)


def _other_batch(captured: nn.Module, original: nn.Module, inputs: Inputs) -> None:
    twice = tree_map(lambda value: torch.cat([value, value]) if isinstance(value, Tensor) else value, dict(inputs))
    _same(_run(captured, twice), _run(original, twice))


def _both_modes(captured: nn.Module, original: nn.Module, inputs: Inputs) -> None:
    for mode in (True, False):
        _same(_run(captured.train(mode), inputs), _run(original.train(mode), inputs))


def _one_step(way: Callable[[nn.Module, Inputs], nn.Module], original: nn.Module, inputs: Inputs) -> None:
    """Compare gradients and changed buffers of one backward pass; a capture may drop an unused buffer."""
    captured = way(copy.deepcopy(original), inputs)
    found = []
    for model in (captured, original):
        before = [item.clone() for item in model.buffers()]
        torch.stack([leaf.float().square().mean() for leaf in _run(model, inputs)]).sum().backward()
        changed = [item for item, old in zip(model.buffers(), before, strict=True) if not torch.equal(item, old)]
        found.append((_by_size([item.grad for item in model.parameters() if item.grad is not None]), _by_size(changed)))
    assert found[1][0], "the original has no gradients"
    for actual, expected in zip(*found, strict=True):
        _same(actual, expected)


def _by_size(tensors: list[Tensor]) -> list[Tensor]:
    """Sorted: ways of capturing order and name tensors differently."""
    return sorted(tensors, key=lambda item: (item.numel(), item.double().sum().item()))


# The sets of models.


def blocks_of_the_library() -> Iterator[Example]:
    """Every block that is called in the configs of the golden tests, with its own example inputs."""
    yield from _blocks(PolicyConstructorModelFactory(seed=0), ROOT / "tests" / "golden" / "data")


def policies() -> Iterator[Example]:
    """The policy networks of the example plug-ins."""
    sys.path.insert(0, str(ROOT / "examples" / "plugins"))
    yield from _blocks(PolicyConstructorModelFactory(seed=0, plugins=["policies"]), ROOT / "examples" / "plugins")


def _blocks(factory: PolicyConstructorModelFactory, folder: Path) -> Iterator[Example]:
    for path in sorted(folder.glob("*.yaml")):
        for name, block in factory.build({"config_path": path}).graph_modules.items():
            examples = block.example_inputs() if hasattr(block, "example_inputs") else []
            if examples:
                yield Example(f"{path.stem}.{name}", block, _random(examples[0]))


def _random(inputs: Inputs) -> Inputs:
    """Random values in the place of zeros."""

    def fill(value: Any) -> Any:
        return torch.rand_like(value) if isinstance(value, Tensor) and value.is_floating_point() else value

    return tree_map(fill, dict(inputs))


_WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_IMAGE = {"image_size": 32, "patch_size": 8}
_TOKENS = {"vocab_size": 50, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
_DECODER = {**_WIDTHS, **_TOKENS, "num_key_value_heads": 2, "use_cache": False}
_TRANSFORMERS = {
    "ViT": {**_WIDTHS, **_IMAGE},
    "Dinov2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **_IMAGE},
    "SiglipVision": {**_WIDTHS, **_IMAGE},
    "CLIPVision": {**_WIDTHS, **_IMAGE},
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "ConvNext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "Bert": {**_WIDTHS, **_TOKENS},
    "Roberta": {**_WIDTHS, **_TOKENS},
    "DistilBert": {"vocab_size": 50, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "GPT2": {"vocab_size": 50, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4, "use_cache": False},
    "Llama": _DECODER,
    "Mistral": _DECODER,
    "Qwen2": _DECODER,
}


def models_of_transformers() -> Iterator[Example]:
    """Small models of transformers, from their configuration."""
    library = importlib.import_module("transformers")
    for name, sizes in _TRANSFORMERS.items():
        torch.manual_seed(0)
        model = getattr(library, f"{name}Model")(getattr(library, f"{name}Config")(**sizes))
        image = {"pixel_values": torch.rand(2, 3, 32, 32)}
        yield Example(name, model, {"input_ids": torch.arange(2, 16).view(2, 7)} if "vocab_size" in sizes else image)


_TORCHVISION = "resnet18 mobilenet_v3_small squeezenet1_1 shufflenet_v2_x0_5 regnet_y_400mf mnasnet0_5 efficientnet_b0"
_TIMM = "resnet10t convnext_atto mobilevit_xxs levit_128s edgenext_xx_small poolformer_s12"


def models_of_images() -> Iterator[Example]:
    """Small models of torchvision and timm, with new weights."""
    for name in _TORCHVISION.split():
        yield _of_images(f"torchvision.{name}", getattr(importlib.import_module("torchvision.models"), name), 64)
    for name in _TIMM.split():
        size = 224 if name.startswith("levit") else 64
        yield _of_images(f"timm.{name}", partial(importlib.import_module("timm").create_model, name), size)


def _of_images(name: str, make: Callable[[], nn.Module], size: int) -> Example:
    torch.manual_seed(0)
    model = make()
    return Example(name, model, {_parameters_of(model)[0]: torch.rand(2, 3, size, size)})


SETS: dict[str, Callable[[], Iterator[Example]]] = {
    "blocks": blocks_of_the_library,
    "policies": policies,
    "transformers": models_of_transformers,
    "images": models_of_images,
}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="benchmarks.capture", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=SETS, action="append", help="one set; may be repeated")
    parser.add_argument("--way", choices=WAYS, action="append", help="one way; may be repeated")
    parser.add_argument("--details", action="store_true", help="a line for each model and way")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print("| models | way | " + " | ".join(QUESTIONS) + " |")
    print("|---" * (len(QUESTIONS) + 2) + "|")
    for name in arguments.only or SETS:
        _compare(name, arguments.way or list(WAYS), details=arguments.details)


def _compare(name: str, ways: list[str], *, details: bool) -> None:
    """Print the rows of one set."""
    counts = {way: dict.fromkeys(QUESTIONS, 0) for way in ways}
    total = 0
    try:
        for example in SETS[name]():
            total += 1
            for way in ways:
                started = time.monotonic()
                outcomes, reason = examine(WAYS[way], example)
                for question, holds in outcomes.items():
                    counts[way][question] += holds
                if details:
                    shown = ", ".join(question for question, holds in outcomes.items() if holds) or reason
                    print(f"{example.name}, {way} ({time.monotonic() - started:.1f} s): {shown}", file=sys.stderr)
    except ImportError as error:
        print(f"missing: {error}", file=sys.stderr)
    for way, found in counts.items():
        print(f"| {name} | {way} | " + " | ".join(f"{found[item]} of {total}" for item in QUESTIONS) + " |", flush=True)


if __name__ == "__main__":
    main()
