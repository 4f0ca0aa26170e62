"""Quantizers of vector-quantize-pytorch."""

from __future__ import annotations

from functools import partial
from typing import Any

import vector_quantize_pytorch as quantize

from zoo.model import BATCH, Inputs, Model, rows, tensors

_LENGTHS = (7, 7, 9)


def models() -> list[Model]:
    """Return the models."""
    states = tensors(x=(BATCH, _LENGTHS, 32))
    table: dict[str, tuple[Any, Inputs]] = {
        "VectorQuantize": (
            partial(quantize.VectorQuantize, dim=32, codebook_size=8, decay=0.8), states
        ),
        "VectorQuantize+kmeans": (
            partial(quantize.VectorQuantize, dim=32, codebook_size=8, kmeans_init=True, kmeans_iters=2), states
        ),
        "VectorQuantize+cosine": (
            partial(quantize.VectorQuantize, dim=32, codebook_size=8, use_cosine_sim=True, threshold_ema_dead_code=0),
            states,
        ),
        "VectorQuantize+learnable": (
            partial(quantize.VectorQuantize, dim=32, codebook_size=8, learnable_codebook=True, ema_update=False), states
        ),
        "ResidualVQ": (partial(quantize.ResidualVQ, dim=32, codebook_size=8, num_quantizers=2), states),
        "FSQ": (partial(quantize.FSQ, levels=[8, 5, 5], dim=32), tensors(z=(BATCH, _LENGTHS, 32))),
        "ResidualFSQ": (partial(quantize.ResidualFSQ, levels=[8, 5, 3], dim=32, num_quantizers=2), states),
        "LFQ": (partial(quantize.LFQ, codebook_size=16, dim=32), states),
        "SimVQ": (partial(quantize.SimVQ, dim=32, codebook_size=8), states),
        "LatentQuantize": (
            partial(quantize.LatentQuantize, levels=[5, 5], dim=32), tensors(z=(BATCH, 32, _LENGTHS))
        ),
    }  # fmt: skip
    return rows("vector_quantize_pytorch", table)
