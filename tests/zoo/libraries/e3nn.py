"""Layers of equivariant features of e3nn."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from e3nn import nn as equivariant
from e3nn import o3

from zoo.model import BATCH, Inputs, Model, rows, tensors


def models() -> list[Model]:
    """Return the models."""
    table: dict[str, tuple[Any, Inputs]] = {
        "Linear": (partial(o3.Linear, "4x0e+2x1o", "3x0e+2x1o"), tensors(features=(BATCH, 10))),
        "FullyConnectedTensorProduct": (
            partial(o3.FullyConnectedTensorProduct, "2x0e+1x1o", "1x0e+1x1o", "2x0e+1x1o"),
            tensors(x=(BATCH, 5), y=(BATCH, 4)),
        ),
        "SphericalHarmonics": (
            partial(o3.SphericalHarmonics, [0, 1, 2], normalize=True), tensors(x=(BATCH, 3))
        ),
        "Norm": (partial(o3.Norm, "2x0e+2x1o"), tensors(features=(BATCH, 8))),
        "Gate": (
            partial(equivariant.Gate, "2x0e", [torch.tanh], "2x0e", [torch.sigmoid], "2x1o"),
            tensors(features=(BATCH, 10)),
        ),
        "BatchNorm": (partial(equivariant.BatchNorm, "2x0e+2x1o"), tensors(input=(BATCH, 8))),
        "FullyConnectedNet": (
            partial(equivariant.FullyConnectedNet, [3, 8, 4], torch.nn.functional.silu), tensors(input=(BATCH, 3))
        ),
    }  # fmt: skip
    return rows("e3nn", table)
