"""Policy networks as a plug-in of model-factory: ``--plugin policies``.

A plug-in is a module with ``register(registry)``. It runs on the server alone: trainers get the policies as trainable
modules and need none of this.
"""

from __future__ import annotations

from typing import Any

from policies.act import ActionChunkingCVAE
from policies.diffusion import ConditionalUNet1d
from policies.recurrent import FiLMGRUPolicy, LSTMPolicy
from policies.resnet import ResNetEncoder


def register(registry: Any) -> None:
    """Say under which names configs reach what is here."""
    registry.register_module("act_cvae", ActionChunkingCVAE)
    registry.register_module("conditional_unet1d", ConditionalUNet1d)
    registry.register_module("film_gru_policy", FiLMGRUPolicy)
    registry.register_module("lstm_policy", LSTMPolicy)
    registry.register_module("resnet_encoder", ResNetEncoder)
