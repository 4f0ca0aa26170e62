"""The selective state space model of mambapy."""

from __future__ import annotations

from mambapy.mamba import Mamba, MambaConfig

from zoo.model import BATCH, Model, rows, tensors


def models() -> list[Model]:
    """Return the models."""
    sequences = tensors(x=(BATCH, (7, 7, 9), 8))
    return rows("mambapy", {"Mamba": (lambda: Mamba(MambaConfig(d_model=8, n_layers=1, d_state=4)), sequences)})
