"""A module's way to a trainer without the wire: described, encoded, decoded, weights written and mapped, rebuilt."""

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
    """Return what a trainer gets of ``module``, with ``programs`` as the forwards of its blocks."""
    descriptor = describe(module)
    arrived = decode_descriptor(encode_descriptor(descriptor))
    assert arrived == descriptor
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        with path.open("wb") as file:
            write_weights(file, named_tensors(module, descriptor))
        with path.open("rb") as file:
            tensors = map_weights(file)  # the mapping outlives the file's name
    return rebuild(arrived, tensors, decode_programs(encode_programs(programs)))


def travel_recorded(module: nn.Module) -> nn.Module:
    """As :func:`travel`, with the programs that a server records when it builds ``module``."""
    return rebuilt_elsewhere(module, record_model(module))
