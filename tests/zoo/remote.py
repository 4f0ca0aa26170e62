"""Trains models of the zoo over the wire, with a client whose environment has none of their libraries.

Usage: python tests/zoo/remote.py [PATTERN ...] [--each NUMBER]. A server with the plug-in ``zoo.plugin`` builds models
that travel, of each library the ones that were recorded fastest. The client runs in an interpreter that sees the base
install only. Losses and final state are compared with a training of the original, bit for bit.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

import torch  # noqa: E402  after the path is set

from model_factory_server import PolicyConstructorModelFactory  # noqa: E402
from support.base_install import make_site  # noqa: E402
from support.compare import assert_same, train  # noqa: E402
from support.server import running_server  # noqa: E402
from zoo.libraries import models_of  # noqa: E402
from zoo.model import Model  # noqa: E402
from zoo.results import REMOTE, RESULTS, add_result, read_results  # noqa: E402

SEED = 7
STEPS = 3
FROM_EACH = 6
"""Models of each library, unless the command says another number."""
PLUGIN = "zoo.plugin"

CLIENT = """
import importlib.util, json, sys
sys.path[:0] = sys.argv[1:3]
address, folder, steps, libraries = sys.argv[3], sys.argv[4], int(sys.argv[5]), sys.argv[6:]
for package in ("model_factory_server", "einops", *libraries):
    assert importlib.util.find_spec(package) is None, package
import torch
from model_factory import RemoteModelFactory
from support.compare import train
torch.set_num_threads(1)
factory = RemoteModelFactory(address, seed=7, cache_dir=f"{folder}/cache")
for library in libraries:
    call = torch.load(f"{folder}/{library}.call")
    found, reason = {}, None
    try:
        blocks = factory.build(call["config"]).graph_modules.train()
        for name, inputs in call["inputs"].items():
            losses = train(blocks[name], inputs, steps)
            found[name] = {"losses": losses, "state": dict(blocks[name].state_dict())}
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    torch.save(found, f"{folder}/{library}.trained")
    print(json.dumps([library, reason]), flush=True)
"""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", default=["*"], help="names of models, with wildcards")
    parser.add_argument("--each", type=int, default=FROM_EACH, help="models of each library (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="results of the models (default: %(default)s)")
    parser.add_argument("--remote", type=Path, default=REMOTE, help="file to write (default: %(default)s)")
    arguments = parser.parse_args()
    for result in trained(chosen(read_results(arguments.results).values(), arguments.patterns, arguments.each)):
        add_result(arguments.remote, result)
        print("; ".join(map(str, result.values())), flush=True)


def chosen(results: Iterable[Mapping[str, Any]], patterns: Sequence[str], each: int) -> dict[str, list[Model]]:
    """Return models that travel and have parameters, by library: of each the ones that were recorded fastest."""
    ranked: dict[str, list[str]] = {}
    for item in sorted(results, key=lambda item: item.get("record", 0)):
        if item["status"] == "travels" and item["parameters"] and _matches(item["name"], patterns):
            ranked.setdefault(item["name"].partition("/")[0], []).append(item["name"])
    found: dict[str, list[Model]] = {}
    for library, names in sorted(ranked.items()):
        models = {model.name: model for model in models_of(library) if model.method == "forward"}
        found[library] = [models[name] for name in names if name in models][:each]
    return {library: models for library, models in found.items() if models}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def trained(libraries: Mapping[str, Sequence[Model]]) -> Iterator[dict[str, Any]]:
    """Train the models of each library remotely and in this process; yield the outcome of each model."""
    torch.set_num_threads(1)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for library, models in libraries.items():
            call = {"config": config(models), "inputs": {_block(model): model.inputs(0) for model in models}}
            torch.save(call, folder / f"{library}.call")
        with running_server(folder / "store", "--plugin", PLUGIN, "--workers", "1") as server:
            paths = [make_site(folder / "site"), ROOT / "tests", server.address, folder, STEPS]
            command = [sys.executable, "-I", "-S", "-c", CLIENT, *paths, *libraries]
            with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True) as client:
                assert client.stdout is not None
                for line in client.stdout:
                    library, reason = json.loads(line)
                    yield from _outcomes(libraries[library], torch.load(folder / f"{library}.trained"), reason)
            if client.returncode:
                raise RuntimeError(f"the client ended with exit code {client.returncode}")


def config(models: Sequence[Model]) -> dict[str, Any]:
    """Return the config of one build with each of the models as a block."""
    inputs, blocks, steps = [], {}, []
    for model in models:
        block = _block(model)
        blocks[block] = {"_type_": "zoo", "name": model.name}
        given = {name: f"{block}_{name}" for name in model.inputs(0)}
        inputs += given.values()
        kwargs = {name: f"${passed}" for name, passed in given.items()}
        steps.append({"call": f"module:{block}", "kwargs": kwargs, "out": f"{block}_result"})
    outputs = [step["out"] for step in steps]
    graph = {"inputs": inputs, "modules": blocks, "steps": steps, "outputs": outputs}
    return {"config": {"schema_version": 1, "model": {"graph": graph}}}


def _block(model: Model) -> str:
    return re.sub(r"\W", "_", model.name)


def _outcomes(models: Sequence[Model], found: Mapping[str, Any], reason: str | None) -> Iterator[dict[str, Any]]:
    originals = PolicyConstructorModelFactory(seed=SEED, plugins=[PLUGIN]).build(config(models)).graph_modules.train()
    for model in models:
        block = _block(model)
        if block not in found:
            yield {"name": model.name, "status": "failed", "reason": reason}
            continue
        losses = train(originals[block], model.inputs(0), STEPS)
        try:
            assert_same(found[block], {"losses": losses, "state": dict(originals[block].state_dict())}, "trained model")
        except AssertionError as error:
            yield {"name": model.name, "status": "differs", "reason": str(error)}
        else:
            yield {"name": model.name, "status": "trains"}


if __name__ == "__main__":
    main()
