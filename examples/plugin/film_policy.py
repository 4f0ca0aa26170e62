"""A recurrent policy conditioned on a goal, as a plug-in of model-factory.

A plug-in is a module with ``register(registry)``. It runs on the server alone: trainers get the policy as a trainable
module and need none of this.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class FiLM(nn.Module):
    """Scales and shifts features by a condition ("FiLM: Visual Reasoning with a General Conditioning Layer", eq. 2)."""

    def __init__(self, condition_dim: int, feature_dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(condition_dim, 2 * feature_dim)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Map features ``(batch, seq, f)`` and a condition ``(batch, c)`` to ``(batch, seq, f)``."""
        scale, shift = self.project(condition).unsqueeze(1).chunk(2, dim=-1)
        return features * (1 + scale) + shift


class FiLMGRUPolicy(nn.Module):
    """A GRU over observations, conditioned on a goal, with a linear head for actions."""

    def __init__(
        self, observation_dim: int, goal_dim: int, action_dim: int, hidden_dim: int = 128, num_layers: int = 1
    ) -> None:
        super().__init__()
        self.dims = {"observation": observation_dim, "goal": goal_dim}
        self.encoder = nn.Sequential(nn.Linear(observation_dim, hidden_dim), nn.SiLU())
        self.film = FiLM(goal_dim, hidden_dim)
        self.gru = nn.GRU(hidden_dim, hidden_dim, num_layers, batch_first=True)
        self.head = nn.Linear(hidden_dim, action_dim)

    def forward(self, observations: Tensor, goal: Tensor, hidden: Tensor | None = None) -> dict[str, Tensor]:
        """Map ``observations (batch, seq, o)`` and a ``goal (batch, g)`` to actions, one for each observation.

        ``hidden (layers, batch, h)`` is the state that an earlier call returned: None at the start of an episode.
        Returns ``actions (batch, seq, a)`` and the new ``hidden``.
        """
        features = self.film(self.encoder(observations), goal)
        states, hidden = self.gru(features, hidden)
        return {"actions": self.head(states), "hidden": hidden}

    def example_inputs(self) -> list[dict[str, Any]]:
        """Return a training batch, and a step of a rollout. From these the forward is recorded; sizes stay free."""
        observations = torch.zeros(2, 5, self.dims["observation"])
        goal = torch.zeros(2, self.dims["goal"])
        hidden = torch.zeros(self.gru.num_layers, 2, self.gru.hidden_size)
        return [
            {"observations": observations, "goal": goal},
            {"observations": observations[:, :1], "goal": goal, "hidden": hidden},
        ]


def register(registry: Any) -> None:
    """Say under which names configs reach what is here."""
    registry.register_module("film_gru_policy", FiLMGRUPolicy)
