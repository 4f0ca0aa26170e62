"""Policy networks as a plug-in of model-factory: ``--plugin policies``.

A plug-in is a module with ``register(registry)``. The code runs on the server only; trainers get trainable modules and
need no plug-in.
"""

from __future__ import annotations

from typing import Any

from policies.act import ActionChunkingCVAE
from policies.diffusion import ConditionalUNet1d
from policies.recurrent import FiLMGRUPolicy, LSTMPolicy
from policies.resnet import ResNetEncoder


def register(registry: Any) -> None:
    """Register the policies under the names for configs."""
    registry.register_module("act_cvae", ActionChunkingCVAE)
    registry.register_module("conditional_unet1d", ConditionalUNet1d)
    registry.register_module("film_gru_policy", FiLMGRUPolicy)
    registry.register_module("lstm_policy", LSTMPolicy)
    registry.register_module("resnet_encoder", ResNetEncoder)
