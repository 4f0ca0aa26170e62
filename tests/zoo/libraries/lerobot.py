"""Policies of lerobot."""

from __future__ import annotations

from typing import Any

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACT
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import (
    DiffusionConditionalUnet1d,
    DiffusionModel,
    DiffusionRgbEncoder,
)
from lerobot.policies.tdmpc.configuration_tdmpc import TDMPCConfig
from lerobot.policies.tdmpc.modeling_tdmpc import TDMPCTOLD
from torch import nn

from zoo.model import BATCH, Inputs, Model, integers, rows, tensors, together

_STATE = PolicyFeature(type=FeatureType.STATE, shape=(5,))
_ACTION = PolicyFeature(type=FeatureType.ACTION, shape=(3,))
_CAMERA = PolicyFeature(type=FeatureType.VISUAL, shape=(3, 32, 32))
_FEATURES = {
    "input_features": {"observation.state": _STATE, "observation.images.top": _CAMERA},
    "output_features": {"action": _ACTION},
}


def models() -> list[Model]:
    """Return the models."""
    table: dict[str, tuple[Any, Inputs]] = {
        "ACT": (_act, _batch(_act_batch)),
        "DiffusionRgbEncoder": (
            lambda: DiffusionRgbEncoder(_diffusion_config()), tensors(x=(BATCH, 3, 32, 32))
        ),
        "DiffusionConditionalUnet1d": (
            lambda: DiffusionConditionalUnet1d(_diffusion_config(), global_cond_dim=6),
            together(tensors(x=(BATCH, 8, 3), global_cond=(BATCH, 6)), integers(100, timestep=(BATCH,))),
        ),
    }  # fmt: skip
    methods = [
        Model(
            name="lerobot/TDMPCTOLD.encode",
            make=_world_model,
            inputs=_batch(_observation, "obs"),
            method="encode",
        ),
        Model(
            name="lerobot/DiffusionModel.compute_loss",
            make=lambda: DiffusionModel(_diffusion_config()),
            inputs=_batch(_diffusion_batch),
            method="compute_loss",
        ),
        Model(
            name="lerobot/TDMPCTOLD.latent_dynamics",
            make=_world_model,
            inputs=tensors(z=(BATCH, 8), a=(BATCH, 3)),
            method="latent_dynamics",
        ),
        Model(
            name="lerobot/TDMPCTOLD.Qs",
            make=_world_model,
            inputs=tensors(z=(BATCH, 8), a=(BATCH, 3)),
            method="Qs",
        ),
    ]  # fmt: skip
    return [*rows("lerobot", table), *methods]


def _batch(make: Any, name: str = "batch") -> Inputs:
    return lambda size: {name: make(size)}


def _observation(size: int) -> dict[str, torch.Tensor]:
    return {
        "observation.state": tensors(x=(BATCH, 5))(size)["x"],
        "observation.environment_state": tensors(x=(BATCH, 4))(size)["x"],
    }


def _act() -> nn.Module:
    return ACT(
        ACTConfig(
            **_FEATURES, chunk_size=4, n_action_steps=4, dim_model=16, n_heads=2, dim_feedforward=32,
            n_encoder_layers=1, n_decoder_layers=1, latent_dim=4, n_vae_encoder_layers=1,
            pretrained_backbone_weights=None,
        )
    )  # fmt: skip


def _act_batch(size: int) -> dict[str, Any]:
    return {
        "observation.state": tensors(x=(BATCH, 5))(size)["x"],
        "observation.images": [tensors(x=(BATCH, 3, 32, 32))(size)["x"]],
        "action": tensors(x=(BATCH, 4, 3))(size)["x"],
        "action_is_pad": torch.zeros(BATCH[size], 4, dtype=torch.bool),
    }


def _diffusion_config() -> DiffusionConfig:
    return DiffusionConfig(
        **_FEATURES, n_obs_steps=2, horizon=8, n_action_steps=4, down_dims=(8, 16), kernel_size=3, n_groups=4,
        diffusion_step_embed_dim=8, crop_shape=None, pretrained_backbone_weights=None, num_train_timesteps=20,
        spatial_softmax_num_keypoints=4,
    )  # fmt: skip


def _diffusion_batch(size: int) -> dict[str, Any]:
    return {
        "observation.state": tensors(x=(BATCH, 2, 5))(size)["x"],
        "observation.images": tensors(x=(BATCH, 2, 1, 3, 32, 32))(size)["x"],
        "action": tensors(x=(BATCH, 8, 3))(size)["x"],
        "action_is_pad": torch.zeros(BATCH[size], 8, dtype=torch.bool),
    }


def _world_model() -> nn.Module:
    environment = PolicyFeature(type=FeatureType.ENV, shape=(4,))
    features = {"observation.state": _STATE, "observation.environment_state": environment}
    return TDMPCTOLD(
        TDMPCConfig(
            input_features=features, output_features={"action": _ACTION}, latent_dim=8, mlp_dim=16,
            state_encoder_hidden_dim=8, q_ensemble_size=2,
        )
    )  # fmt: skip
