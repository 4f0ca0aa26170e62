"""A build without a server: describe, encode, decode, write and map the weights, rebuild."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import nn

from model_factory.descriptor.codec import (
    Programs,
    decode_descriptor,
    decode_programs,
    encode_descriptor,
    encode_programs,
)
from model_factory.descriptor.rebuild import rebuild
from model_factory.descriptor.weights import map_weights, write_weights
from model_factory_server.export.describe.describe import describe, named_tensors
from model_factory_server.export.exporter import record_model


def rebuilt_elsewhere(module: nn.Module, programs: Programs = ()) -> nn.Module:
    """Return the module of a trainer, with ``programs`` as the forwards of the blocks."""
    descriptor = describe(module)
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
    return rebuilt_elsewhere(module, record_model(module))
