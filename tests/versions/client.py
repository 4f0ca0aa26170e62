"""A trainer: builds, trains, saves and opens models in an environment that has the client only.

Usage: python client.py train SERVER FOLDER OUT    builds and runs the models of FOLDER/calls.json; writes OUT
       python client.py open FILES FOLDER OUT      opens and runs the model files in FILES; writes OUT

The script runs with every version of the range; no module of the project's tests is imported. Results are tensors by
name in ``OUT/results.pt``; ``OUT/refused.json`` has the error of each refused model.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

import model_factory
from model_factory import ModelFactoryError, RemoteModelFactory

SEED = 7
STEPS = 3
BATCH_OF_BUILDS = 40
PACKAGES = "torch numpy protobuf grpcio safetensors".split()

Results = dict[str, Any]


def main() -> None:
    """Run the command."""
    task, source, folder, out = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    warnings.simplefilter("ignore", UserWarning)  # torch's hints on single arguments
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    calls = json.loads((folder / "calls.json").read_text("utf-8"))
    arguments = torch.load(folder / "calls.pt", weights_only=True)
    results, refused = (trained if task == "train" else opened)(source, calls, arguments, out)
    torch.save(results, out / "results.pt")
    (out / "refused.json").write_text(json.dumps(refused), encoding="utf-8")
    classes = {key_of(call): attribute_names(call["spec"]) for call in calls if "spec" in call}
    (out / "attributes.json").write_text(json.dumps(classes), encoding="utf-8")
    versions = {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}
    (out / "versions.json").write_text(json.dumps(versions), encoding="utf-8")


def trained(address: str, calls: list[dict[str, Any]], arguments: dict[str, Any], out: Path) -> tuple[Results, Any]:
    """Build the models on a server, save each as a file, and train each."""
    (out / "files").mkdir(exist_ok=True)
    results, refused = {}, {}
    with tempfile.TemporaryDirectory() as cache:
        factory = RemoteModelFactory(address, seed=SEED, cache_dir=cache, share_values=True)
        for key, model in built(factory, calls, refused):
            try:
                if not any(map(nn.parameter.is_lazy, model.parameters())):  # has a program only after a call
                    model_factory.save(model, file_of(out / "files", key))
                results[key] = observed(model, arguments.get(key))
            except (ModelFactoryError, NotImplementedError, AttributeError, RuntimeError, TypeError) as error:
                refused[key] = f"{type(error).__name__}: {error}"
    return results, refused


def built(factory: RemoteModelFactory, calls: list[dict[str, Any]], refused: dict[str, str]) -> Any:
    """Yield the models by name; a refused config is halved, down to the refused model."""
    blocks = [call for call in calls if "block" in call]
    groups = [blocks[start : start + BATCH_OF_BUILDS] for start in range(0, len(blocks), BATCH_OF_BUILDS)]
    while groups:
        group = groups.pop(0)
        try:
            yield from models(factory, group)
        except ModelFactoryError as error:
            if len(group) == 1:
                refused[key_of(group[0])] = f"{type(error).__name__}: {error}"
            else:
                half = len(group) // 2
                groups[:0] = [group[:half], group[half:]]
    for call in calls:
        if "config" in call:
            yield key_of(call), factory.build({"config_path": call["config"]})


def models(factory: RemoteModelFactory, group: list[dict[str, Any]]) -> list[tuple[str, nn.Module]]:
    """Build the blocks of one config."""
    modules = {f"m{number}": {"_type_": call["block"]} for number, call in enumerate(group)}
    steps = [{"call": f"module:{name}", "args": ["$x"], "out": f"{name}_out"} for name in modules]
    graph = {"inputs": ["x"], "modules": modules, "steps": steps, "outputs": [step["out"] for step in steps]}
    model = factory.build({"config": {"schema_version": 1, "model": {"graph": graph}}})
    return [(key_of(call), model.graph_modules[name]) for name, call in zip(modules, group)]  # noqa: B905


def key_of(call: dict[str, Any]) -> str:
    """Return the name of a model, with its group."""
    return f"{call['group']}/{call['name']}"


def file_of(folder: Path, key: str) -> Path:
    """Return the path of a model's file."""
    return folder / f"{key.replace('/', '+')}.mf"


def opened(files: str, calls: list[dict[str, Any]], arguments: dict[str, Any], out: Path) -> tuple[Results, Any]:
    """Open the model files of another environment, and train each model."""
    results, refused = {}, {}
    for call in calls:
        path = file_of(Path(files), key_of(call))
        if not path.exists():
            continue
        try:
            results[key_of(call)] = observed(model_factory.load(path), arguments.get(key_of(call)))
        except (ModelFactoryError, NotImplementedError, AttributeError, RuntimeError, TypeError) as error:
            refused[key_of(call)] = f"{type(error).__name__}: {error}".replace(f"{path}: ", "")
    return results, refused


def observed(model: nn.Module, arguments: Any) -> dict[str, Any]:
    """Return what can be seen of a module: its state, a call, and training steps in eval mode, then in train mode.

    The last item is whether the steps in train mode drew random numbers.
    """
    found = named("state", dict(model.state_dict()))
    if arguments is None:
        return found
    torch.manual_seed(SEED)
    with torch.no_grad():
        found |= named("eval", call(model.eval(), copied(arguments)))
    found |= steps("eval", model, arguments)
    before = torch.get_rng_state()
    found |= steps("train", model.train(), arguments)
    return found | {"random": torch.tensor(not torch.equal(torch.get_rng_state(), before))}


def steps(mode: str, model: nn.Module, arguments: Any) -> dict[str, Any]:
    """Train for a few steps; return losses, gradients, and the state afterwards.

    The optimiser is SGD: AdamW divides by the size of a gradient, so that rounding errors in the place of a gradient of
    zero (of the bias of keys in attention) would become whole steps.
    """
    found: dict[str, Any] = {}
    optimizer: Any = None
    for step in range(STEPS):
        given = copied(arguments)
        loss = sum_of([value for _, value in tensors_of(call(model, given)) if value.requires_grad])
        if loss is None:
            break
        model.zero_grad()
        loss.backward()
        gradients = {name: item.grad for name, item in model.named_parameters()}
        found |= named(f"{mode} step {step}", {"loss": loss, "gradients": gradients, "inputs": gradients_of(given)})
        trained = [item for item in model.parameters() if item.grad is not None and not item.grad.is_sparse]
        if trained and optimizer is None:  # after the first call, which gives lazy parameters their shapes
            optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9)
        if optimizer is not None:
            optimizer.step()
    return found | named(f"{mode} afterwards", dict(model.state_dict()))


def call(model: nn.Module, arguments: Any) -> Any:
    """Call a module by position or by name; no argument is a leaf of autograd, since a forward may write to it."""
    given = mapped(arguments, lambda item: item * 1 if item.requires_grad else item)
    return model(**given) if isinstance(given, dict) else model(*given)


def copied(value: Any) -> Any:
    """Return the same nesting with fresh tensors."""
    return mapped(value, lambda item: item.detach().clone().requires_grad_(item.requires_grad))


def mapped(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return the same nesting with other tensors."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: mapped(item, function) for key, item in value.items()}
    return [mapped(item, function) for item in value] if isinstance(value, (list, tuple)) else value


def gradients_of(value: Any) -> list[Any]:
    """Return the gradients of the tensors in a nesting."""
    return [item.grad for _, item in tensors_of(value) if item.requires_grad]


def named(what: str, value: Any) -> dict[str, torch.Tensor]:
    """Return copies of the tensors in a nesting by place; a tensor without a shape yet is left out."""
    found = tensors_of(value, what)
    return {place: item.detach().to_dense().clone() for place, item in found if not nn.parameter.is_lazy(item)}


def tensors_of(value: Any, place: str = "") -> list[tuple[str, torch.Tensor]]:
    """Return the tensors in a nesting with their places."""
    if isinstance(value, torch.Tensor):
        return [(place, value)]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return [found for key, item in items for found in tensors_of(item, f"{place}.{key}")]


def attribute_names(spec: dict[str, Any]) -> Any:
    """Construct a class of this version of torch; return the attributes of each module inside, or None for no class."""
    if not hasattr(nn, spec["_type_"].partition(".")[2]):
        return None
    known = set(vars(nn.Module()))
    return {path: sorted(set(vars(item)) - known) for path, item in constructed(spec).named_modules()}


def constructed(value: Any) -> Any:
    """Construct the classes of a spec of the config language."""
    if isinstance(value, dict) and "_type_" in value:
        named_arguments = {key: constructed(item) for key, item in value.items() if not key.startswith("_")}
        return getattr(nn, value["_type_"].partition(".")[2])(*constructed(value.get("_args_", [])), **named_arguments)
    if isinstance(value, dict):
        return {key: constructed(item) for key, item in value.items()}
    return [constructed(item) for item in value] if isinstance(value, list) else value


def sum_of(values: list[torch.Tensor]) -> Any:
    """Return one number that depends on every value, also behind a layer that normalises; None without values."""
    parts = [value.reshape(-1).abs().double() for value in values if value.numel()]
    ramps = [torch.linspace(0.5, 1.5, part.numel(), dtype=torch.float64) for part in parts]
    return torch.stack([(part * ramp).mean() for part, ramp in zip(parts, ramps)]).sum() if parts else None  # noqa: B905


if __name__ == "__main__":
    main()
