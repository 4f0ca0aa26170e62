"""Networks of rsl-rl."""

from __future__ import annotations

from typing import Any

from rsl_rl import modules

from zoo.model import BATCH, Inputs, Model, rows, tensors


def models() -> list[Model]:
    """Return the models."""
    table: dict[str, tuple[Any, Inputs]] = {
        "MLP": (lambda: modules.MLP(5, 3, [16, 16], "elu"), tensors(x=(BATCH, 5))),
        "EmpiricalNormalization": (lambda: modules.EmpiricalNormalization(5), tensors(x=(BATCH, 5))),
        "CNN": (
            lambda: modules.CNN((12, 12), 3, output_channels=[4, 8], kernel_size=3), tensors(x=(BATCH, 3, 12, 12))
        ),
    }  # fmt: skip
    return rows("rsl_rl", table)
