"""The small models that most tests build, and inputs for them at any batch and sequence size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

CONFIGS = Path(__file__).parents[1] / "configs"

MakeInputs = Callable[[int, int, Callable[..., torch.Tensor]], dict[str, Any]]
"""From batch, sequence length and a maker of random tensors to the forward's inputs by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One small model."""

    name: str
    """Of its file in ``configs/small``."""
    make_inputs: MakeInputs

    @property
    def config(self) -> Path:
        return CONFIGS / "small" / f"{self.name}.yaml"

    def inputs(self, batch: int, seq: int, seed: int = 0) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        return self.make_inputs(batch, seq, lambda *shape: torch.randn(shape, generator=generator))


def _senses(batch: int, seq: int, random: Callable[..., torch.Tensor]) -> dict[str, Any]:
    return {
        "cond_proprio": random(batch, seq, 12),
        "cond_visual": [random(batch, seq + camera, 16) for camera in range(3)],
        "cond_semantic": [random(batch, 1 + prompt, 20) for prompt in range(2)],
        "action": None,
    }


def _decoder(batch: int, seq: int, random: Callable[..., torch.Tensor]) -> dict[str, Any]:
    return {
        "time": random(batch).sigmoid(),
        "noise": random(batch, 8, 6),
        "memory_input": random(batch, seq, 32),
        "discrete_semantic_input": None,
    }


def _prior(batch: int, seq: int, random: Callable[..., torch.Tensor]) -> dict[str, Any]:
    return {
        "cond_proprio": random(batch, seq, 12),
        "cond_visual": random(batch, 2, 16, seq, 2),
        "cond_semantic": random(batch, 20),
        "action": None,
    }


def _posterior(batch: int, seq: int, random: Callable[..., torch.Tensor]) -> dict[str, Any]:
    return _prior(batch, seq, random) | {"action": random(batch, seq + 1, 6)}


def _images(batch: int, seq: int, random: Callable[..., torch.Tensor]) -> dict[str, Any]:
    return {"x": random(batch, 3, 4 + seq, 5)}


def _vectors(batch: int, seq: int, random: Callable[..., torch.Tensor]) -> dict[str, Any]:
    return {"x": random(batch, seq, 12)}


CASES = {
    case.name: case
    for case in (
        Case(name="info_embedder", make_inputs=_senses),
        Case(name="multimodal_bridge", make_inputs=_senses),
        Case(name="action_decoder", make_inputs=_decoder),
        Case(name="vae_prior", make_inputs=_prior),
        Case(name="vae_posterior", make_inputs=_posterior),
        Case(name="conv_graph", make_inputs=_images),
        Case(name="mlp", make_inputs=_vectors),
    )
}
