"""Recurrent policies: the state of an episode is an argument and a result, so that a rollout can pass the state on."""

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
        """Map ``observations (batch, seq, o)`` and a ``goal (batch, g)`` to actions, for each observation.

        ``hidden (layers, batch, h)`` is the state that an earlier call returned: None at the start of an episode.
        Returns ``actions (batch, seq, a)`` and the new ``hidden``.
        """
        features = self.film(self.encoder(observations), goal)
        states, hidden = self.gru(features, hidden)
        return {"actions": self.head(states), "hidden": hidden}

    def example_inputs(self) -> list[dict[str, Any]]:
        """Return a training batch and a step of a rollout, to record the forward; sizes stay free."""
        observations = torch.zeros(2, 5, self.dims["observation"])
        goal = torch.zeros(2, self.dims["goal"])
        hidden = torch.zeros(self.gru.num_layers, 2, self.gru.hidden_size)
        return [
            {"observations": observations, "goal": goal},
            {"observations": observations[:, :1], "goal": goal, "hidden": hidden},
        ]


class LSTMPolicy(nn.Module):
    """An LSTM over observations with a Gaussian head: the mean of the actions and the logarithm of their spread."""

    def __init__(self, observation_dim: int, action_dim: int, hidden_dim: int = 128, num_layers: int = 2) -> None:
        super().__init__()
        self.observation_dim = observation_dim
        self.encoder = nn.Sequential(nn.Linear(observation_dim, hidden_dim), nn.LayerNorm(hidden_dim), nn.GELU())
        self.lstm = nn.LSTM(hidden_dim, hidden_dim, num_layers, batch_first=True, dropout=0.1 if num_layers > 1 else 0)
        self.mean = nn.Linear(hidden_dim, action_dim)
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    def forward(self, observations: Tensor, state: tuple[Tensor, Tensor] | None = None) -> dict[str, Any]:
        """Map ``observations (batch, seq, o)`` to a Gaussian over actions for each of them.

        ``state`` is what an earlier call returned, two tensors ``(layers, batch, h)``: None at the start of an episode.
        Returns ``mean (batch, seq, a)``, ``log_std (batch, seq, a)`` and the new ``state``.
        """
        hidden, state = self.lstm(self.encoder(observations), state)
        mean = self.mean(hidden)
        return {"mean": mean, "log_std": self.log_std.clamp(-5.0, 2.0).expand_as(mean), "state": state}

    def example_inputs(self) -> list[dict[str, Any]]:
        """Return a training batch, and a step of a rollout."""
        observations = torch.zeros(2, 5, self.observation_dim)
        state = torch.zeros(self.lstm.num_layers, 2, self.lstm.hidden_size)
        return [{"observations": observations}, {"observations": observations[:, :1], "state": (state, state.clone())}]
