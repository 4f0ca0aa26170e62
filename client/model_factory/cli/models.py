"""The commands ``build``, ``describe``, ``blocks`` and ``checkpoints``."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from model_factory.cli.output import say, say_lines
from model_factory.client.factory import RemoteModelFactory
from model_factory.descriptor.codec import encode_descriptor
from model_factory.descriptor.weights import write_weights
from model_factory.errors import ModelFactoryError
from model_factory.identity import BuildInfo
from model_factory.model_file.live import portable_model
from model_factory.model_file.save import save
from model_factory.program.torch_names import torch_dtype
from model_factory.store.staging import whole_file

MODEL_FILE = ".mf"
"""Suffix of a model file."""


def build(configs: Mapping[str, str], server: str, *, seed: int | None, dtype: str | None, output: Path | None) -> int:
    """Build models and print their sizes; write the models to ``output`` if given.

    A path with the suffix ``.mf`` is one model file; a single config is saved as a module. Any other path is a folder
    with the files of each model. A node with a warm cache needs no server.
    """
    factory = RemoteModelFactory(server, seed=seed, dtype=None if dtype is None else torch_dtype(dtype))
    started = time.monotonic()
    models = factory.build(configs)
    assert isinstance(models, dict)
    seconds = time.monotonic() - started
    in_one_file = output is not None and output.suffix == MODEL_FILE
    for name, model in models.items():
        parameters = sum(item.numel() for item in model.parameters())
        say(f"{name}: {parameters:,} parameters")
        if output is not None and not in_one_file:
            for path in _write(output, name, model):
                say(f"  {path}")
    if output is not None and in_one_file:
        save(models if len(models) > 1 else next(iter(models.values())), output)
        say(f"  {output}")
    say(f"{len(models)} models in {seconds:.2f} s")
    return 0


def describe(configs: Mapping[str, str], server: str, *, portability: bool) -> int:
    """Print a table of each model's modules; ``portability`` adds how each module is sent to a trainer, and why."""
    described = RemoteModelFactory(server).describe(configs, portability=portability)
    assert isinstance(described, dict)
    for name, architecture in described.items():
        say(name)
        say_lines(f"\n{architecture}\n")
    return 0


def blocks(server: str, names: Sequence[str]) -> int:
    """Print the blocks of a server; ``names`` selects blocks by the beginning of the name."""
    found = [
        block
        for block in RemoteModelFactory(server).blocks()
        if not names or any(block.name.startswith(name) for name in names)
    ]
    if not found:
        raise ModelFactoryError(f"no block of the server has a name that begins with {' or '.join(map(repr, names))}")
    for block in found:
        about = ", ".join((block.origin, *block.tags))
        say(f"{block.signature}  [{about}]")
        if block.summary:
            say(f"    {block.summary}")
    return 0


def checkpoints(server: str) -> int:
    """Print the names of the checkpoints that configs can use on a server."""
    names = RemoteModelFactory(server).checkpoints()
    for name in names:
        say(name)
    if not names:
        say("the server has no checkpoints; its operator adds one with --checkpoint NAME=PATH", error=True)
    return 0


def _write(output: Path, name: str, model: nn.Module) -> list[Path]:
    """Write a model's state dict, descriptor and build info, as whole files."""
    weights, descriptor = output / f"{name}.safetensors", output / f"{name}.descriptor.json"
    build_info = output / f"{name}.build_info.json"
    with whole_file(weights) as file:
        write_weights(file, model.state_dict())
    with whole_file(descriptor) as file:
        file.write(encode_descriptor(portable_model(model).descriptor))
    with whole_file(build_info) as file:
        file.write(f"{json.dumps(BuildInfo.of(model).as_dict(), indent=2)}\n".encode())
    return [weights, descriptor, build_info]
