"""The commands that talk to a server."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import nn

from model_factory.blocks import BlockArgument
from model_factory.descriptor.codec import encode_descriptor
from model_factory.descriptor.describe import describe as describe_module
from model_factory.descriptor.weights import write_weights
from model_factory.errors import ModelFactoryError, StoreError
from model_factory.graph.runner import torch_const
from model_factory.remote.factory import RemoteModelFactory
from model_factory.store.staging import staged


def build(configs: Mapping[str, str], server: str, *, seed: int | None, dtype: str | None, output: Path | None) -> int:
    """Build models and say what came of it; write them to ``output`` if given."""
    factory = RemoteModelFactory(server, seed=seed, dtype=None if dtype is None else _dtype(dtype))
    started = time.monotonic()
    models = factory.build(configs)
    assert isinstance(models, dict)
    seconds = time.monotonic() - started
    for name, model in models.items():
        parameters = sum(item.numel() for item in model.parameters())
        print(f"{name}: {parameters:,} parameters")
        if output is not None:
            for path in _write(output, name, model):
                print(f"  {path}")
    print(f"{len(models)} models in {seconds:.2f} s")
    return 0


def describe(configs: Mapping[str, str], server: str, *, travel: bool) -> int:
    """Print a table of each model's modules, with ``travel`` how each of them does and why."""
    described = RemoteModelFactory(server).describe(configs, travel=travel)
    assert isinstance(described, dict)
    for name, architecture in described.items():
        print(f"{name}\n\n{architecture}\n")
    return 0


def blocks(server: str, names: Sequence[str]) -> int:
    """Print what the server can build."""
    found = [
        block
        for block in RemoteModelFactory(server).blocks()
        if not names or any(block.name.startswith(name) for name in names)
    ]
    if not found:
        raise ModelFactoryError(f"the server has no block whose name starts with {' or '.join(map(repr, names))}")
    for block in found:
        about = ", ".join((block.origin, *block.tags))
        print(f"{block.name}({', '.join(_argument(argument) for argument in block.arguments)})  [{about}]")
        if block.summary:
            print(f"    {block.summary}")
    return 0


def _argument(argument: BlockArgument) -> str:
    return argument.name if not argument.default else f"{argument.name}={argument.default}"


def _dtype(name: str) -> torch.dtype:
    value = torch_const(name)
    if not isinstance(value, torch.dtype):
        raise ModelFactoryError(f"{name!r} is not a dtype")
    return value


def _write(output: Path, name: str, model: nn.Module) -> list[Path]:
    """Write a model's state dict and descriptor; whole files or none."""
    weights, descriptor = output / f"{name}.safetensors", output / f"{name}.descriptor.json"
    with _whole_file(weights) as file:
        write_weights(file, model.state_dict())
    with _whole_file(descriptor) as file:
        file.write(encode_descriptor(describe_module(model)))
    return [weights, descriptor]


@contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write to that appears at ``path`` when all went well, and not at all otherwise."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged(path.parent) as new:
            yield new.file
            new.publish(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
