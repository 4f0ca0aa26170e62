"""The block library: module types of configs beside ``torch.nn``.

Every block except the pretrained ``radiov3`` has ``example_inputs()``: keyword arguments of typical calls with small
tensors. The server records the forward with these calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_factory_server.constructor.blocks.action_autoencoder import ActionDecoder, ActionEncoder
from model_factory_server.constructor.blocks.conv import ConvBNAct, ResidualBlock
from model_factory_server.constructor.blocks.dsrl import DSRLNoiseLatentActor, DSRLQFunction
from model_factory_server.constructor.blocks.mlp import MLP
from model_factory_server.constructor.blocks.radio import LoadRadio, radiov3_factory
from model_factory_server.constructor.blocks.vfp_decoder import VFPMoE, VFPSingleActionDecoder
from model_factory_server.constructor.blocks.vfp_embedder import VFPSingleInfoEmbedder, VFPSingleMultimodalBridge
from model_factory_server.constructor.blocks.vfp_vae import VFPSinglePosterior, VFPSinglePrior

if TYPE_CHECKING:
    from model_factory_server.constructor.registry import Registry

BLOCKS = {
    "a_decoder": ActionDecoder,
    "a_encoder": ActionEncoder,
    "conv_bn_act": ConvBNAct,
    "dsrl_noise_latent_actor": DSRLNoiseLatentActor,
    "dsrl_q_function": DSRLQFunction,
    "mlp": MLP,
    "residual_block": ResidualBlock,
    "vfp_moe": VFPMoE,
    "vfp_single_action_decoder": VFPSingleActionDecoder,
    "vfp_single_info_embedder": VFPSingleInfoEmbedder,
    "vfp_single_multimodal_bridge": VFPSingleMultimodalBridge,
    "vfp_single_posterior": VFPSinglePosterior,
    "vfp_single_prior": VFPSinglePrior,
}


def register(registry: Registry, load_radio: LoadRadio | None = None) -> None:
    """Register every block under the name in configs; ``load_radio`` loads the model of ``radiov3``."""
    for name, block in BLOCKS.items():
        registry.register_module(name, block, tags=("block",))
    registry.register_module("radiov3", radiov3_factory(load_radio), tags=("pretrained",))
