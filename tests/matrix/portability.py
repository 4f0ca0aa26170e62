"""A build without a server: describe, encode, decode, write and map the weights, rebuild."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from model_factory.describe.describe import describe, named_tensors
from model_factory.descriptor.codec import (
    Programs,
    decode_descriptor,
    decode_programs,
    encode_descriptor,
    encode_programs,
)
from model_factory.descriptor.rebuild import rebuild
from model_factory.descriptor.tree import Descriptor
from model_factory.descriptor.weights import map_weights, write_weights
from model_factory_server.export.exporter import export_model
from support.recording import InProcessRecorder, ask


def rebuilt_elsewhere(module: nn.Module, programs: Programs = (), descriptor: Descriptor | None = None) -> nn.Module:
    """Return the module of a trainer, with ``programs`` as the forwards of the blocks."""
    descriptor = describe(module) if descriptor is None else descriptor
    arrived = decode_descriptor(encode_descriptor(descriptor))
    assert arrived == descriptor
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        with path.open("wb") as file:
            write_weights(file, named_tensors(module, descriptor))
        with path.open("rb") as file:
            tensors = map_weights(file)  # the mapping outlives the name of the file
    return rebuild(arrived, tensors, decode_programs(encode_programs(programs)))


def rebuilt_with_programs(module: nn.Module) -> nn.Module:
    """As :func:`rebuilt_elsewhere`, with the programs that a server records for a build of ``module``."""
    exported = export_model(module)
    return rebuilt_elsewhere(module, exported.programs, exported.descriptor)


def with_recorder(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module, InProcessRecorder]:
    """Return a module, its rebuild without programs, and the recorder that the rebuild asks for programs."""
    torch.manual_seed(0)
    original = make()
    remote = rebuilt_elsewhere(original)
    recorder = InProcessRecorder(lambda: copy.deepcopy(original))
    ask(remote, recorder)
    return original, remote, recorder
