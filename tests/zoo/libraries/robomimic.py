"""Networks of robomimic."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from robomimic.config import config_factory
from robomimic.models import base_nets, obs_core, obs_nets, policy_nets, transformers, vae_nets
from robomimic.utils import obs_utils
from torch import nn

from zoo.model import BATCH, Inputs, Model, rows, tensors


def models() -> list[Model]:
    """Return the models."""
    obs_utils.initialize_default_obs_encoder(config_factory("bc").observation.encoder)
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["state", "action"]}, "goal": {}})
    table: dict[str, tuple[Any, Inputs]] = {
        "MLP": (
            partial(base_nets.MLP, 5, 3, layer_dims=(16, 16)), tensors(inputs=(BATCH, 5))
        ),
        "RNN_Base": (
            partial(base_nets.RNN_Base, 5, 8, 1), tensors(inputs=(BATCH, (4, 4, 6), 5))
        ),
        "ResNet18Conv": (
            partial(base_nets.ResNet18Conv, pretrained=False), tensors(inputs=(BATCH, 3, 32, 32))
        ),
        "SpatialSoftmax": (
            partial(base_nets.SpatialSoftmax, (4, 8, 8), num_kp=4), tensors(feature=(BATCH, 4, 8, 8))
        ),
        "VisualCore": (_visual_core, tensors(inputs=(BATCH, 3, 32, 32))),
        "GPT_Backbone": (
            partial(transformers.GPT_Backbone, embed_dim=16, context_length=6, num_layers=1, num_heads=2),
            tensors(inputs=(BATCH, 6, 16)),
        ),
        "ActorNetwork": (
            lambda: policy_nets.ActorNetwork(OrderedDict(state=[5]), 3, [16]),
            lambda size: {"obs_dict": tensors(state=(BATCH, 5))(size)},
        ),
        "RNNActorNetwork": (
            lambda: policy_nets.RNNActorNetwork(OrderedDict(state=[5]), 3, 8, 1, [16]),
            lambda size: {"obs_dict": tensors(state=(BATCH, 4, 5))(size)},
        ),
        "ObservationEncoder": (
            _observation_encoder, lambda size: {"obs_dict": tensors(state=(BATCH, 5))(size)}
        ),
        "VAE": (
            _autoencoder, lambda size: {name: tensors(action=(BATCH, 3))(size) for name in ("inputs", "outputs")}
        ),
    }  # fmt: skip
    return rows("robomimic", table)


def _autoencoder() -> nn.Module:
    shapes = OrderedDict(action=[3])
    return vae_nets.VAE(shapes, shapes, (8,), (8,), 4, torch.device("cpu"), decoder_is_conditioned=False)


def _visual_core() -> nn.Module:
    return obs_core.VisualCore(
        (3, 32, 32), backbone_class="ResNet18Conv", backbone_kwargs={"pretrained": False}, pool_class="SpatialSoftmax",
        pool_kwargs={"num_kp": 4}, feature_dimension=8,
    )  # fmt: skip


def _observation_encoder() -> nn.Module:
    encoder = obs_nets.ObservationEncoder()
    encoder.register_obs_key("state", [5])
    encoder.make()
    return encoder
