"""Policies and networks of stable-baselines3 and sb3-contrib."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.qrdqn.policies import QuantileNetwork
from sb3_contrib.tqc.policies import TQCPolicy
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from zoo.model import BATCH, Model, integers, rows, tensors, together

_STATE = spaces.Box(-1, 1, (5,), np.float32)
_ACTION = spaces.Box(-1, 1, (3,), np.float32)
_IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
_BOTH = spaces.Dict({"state": _STATE, "image": _IMAGE})
_OBS = tensors(obs=(BATCH, 5))


def models() -> list[Model]:
    """Return the models."""
    table: dict[str, Any] = {
        "ActorCriticPolicy": (partial(_policy, ActorCriticPolicy), _OBS),
        "ActorCriticPolicy.discrete": (partial(_policy, ActorCriticPolicy, spaces.Discrete(4)), _OBS),
        "ActorCriticPolicy.multidiscrete": (partial(_policy, ActorCriticPolicy, spaces.MultiDiscrete([3, 4])), _OBS),
        "ActorCriticCnnPolicy": (
            lambda: ActorCriticCnnPolicy(_IMAGE, _ACTION, lambda _progress: 1e-3),
            integers(255, obs=(BATCH, 3, 36, 36)),
        ),
        "MultiInputActorCriticPolicy": (
            lambda: MultiInputActorCriticPolicy(_BOTH, _ACTION, lambda _progress: 1e-3),
            lambda size: {"obs": _both(size)},
        ),
        "CombinedExtractor": (lambda: CombinedExtractor(_BOTH), lambda size: {"observations": _scaled(size)}),
        "FlattenExtractor": (lambda: FlattenExtractor(_STATE), tensors(observations=(BATCH, 5))),
        "NatureCNN": (lambda: NatureCNN(_IMAGE, 16), tensors(observations=(BATCH, 3, 36, 36))),
        "DQN.q_net": (lambda: _policy(DQNPolicy, spaces.Discrete(4)).q_net, _OBS),
        "SAC.actor": (lambda: _policy(SACPolicy).actor, _OBS),
        "SAC.critic": (
            lambda: _policy(SACPolicy).critic, together(tensors(obs=(BATCH, 5)), tensors(actions=(BATCH, 3)))
        ),
        "TD3.actor": (lambda: _policy(TD3Policy).actor, _OBS),
        "TD3.critic": (lambda: _policy(TD3Policy).critic, tensors(obs=(BATCH, 5), actions=(BATCH, 3))),
        "TQC.critic": (lambda: _policy(TQCPolicy).critic, tensors(obs=(BATCH, 5), action=(BATCH, 3))),
        "QRDQN.quantile_net": (_quantiles, _OBS),
    }  # fmt: skip
    evaluate = Model(
        name="stable_baselines3/ActorCriticPolicy.evaluate_actions",
        make=partial(_policy, ActorCriticPolicy),
        inputs=tensors(obs=(BATCH, 5), actions=(BATCH, 3)),
        method="evaluate_actions",
    )
    return [*rows("stable_baselines3", table), evaluate]


def _policy(cls: Any, action: spaces.Space = _ACTION, **options: Any) -> nn.Module:
    return cls(_STATE, action, lambda _progress: 1e-3, net_arch=[16, 16], **options)


def _quantiles() -> nn.Module:
    return QuantileNetwork(
        _STATE, spaces.Discrete(4), features_extractor=FlattenExtractor(_STATE), features_dim=5, net_arch=[16]
    )


def _both(size: int) -> dict[str, torch.Tensor]:
    return tensors(state=(BATCH, 5))(size) | integers(255, image=(BATCH, 3, 36, 36))(size)


def _scaled(size: int) -> dict[str, torch.Tensor]:
    found = _both(size)
    return found | {"image": found["image"] / 255}
