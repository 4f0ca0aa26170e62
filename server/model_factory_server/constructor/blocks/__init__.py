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
from model_factory_server.constructor.blocks.vfp_decoder import (
    NaiveActionDecoder,
    VFPGate,
    VFPMoE,
    VFPSingleActionDecoder,
)
from model_factory_server.constructor.blocks.vfp_embedder import VFPSingleInfoEmbedder, VFPSingleMultimodalBridge
from model_factory_server.constructor.blocks.vfp_observation import (
    CfgVQVAEProprioProjector,
    NaiveInfoEmbedder,
    NaiveProprioProjector,
    VFPInfoEmbedder,
    VFPProprioProjector,
)
from model_factory_server.constructor.blocks.vfp_vae import (
    CfgVQVAEInfoEncoder,
    VFPSinglePosterior,
    VFPSinglePrior,
    VQCodebook,
)

if TYPE_CHECKING:
    from model_factory_server.constructor.registry import Registry

BLOCKS = {
    "a_decoder": ActionDecoder,
    "a_encoder": ActionEncoder,
    "cfg_vqvae_action_decoder": NaiveActionDecoder,
    "cfg_vqvae_codebook": VQCodebook,
    "cfg_vqvae_info_encoder": CfgVQVAEInfoEncoder,
    "cfg_vqvae_posterior": VFPSinglePosterior,
    "cfg_vqvae_prior": VFPSinglePrior,
    "cfg_vqvae_proprio_projector": CfgVQVAEProprioProjector,
    "conv_bn_act": ConvBNAct,
    "dsrl_noise_latent_actor": DSRLNoiseLatentActor,
    "dsrl_q_function": DSRLQFunction,
    "mlp": MLP,
    "naive_action_decoder": NaiveActionDecoder,
    "naive_info_embedder": NaiveInfoEmbedder,
    "naive_proprio_projector": NaiveProprioProjector,
    "residual_block": ResidualBlock,
    "vfp_gate": VFPGate,
    "vfp_info_embedder": VFPInfoEmbedder,
    "vfp_moe": VFPMoE,
    "vfp_posterior": VFPSinglePosterior,
    "vfp_prior": VFPSinglePrior,
    "vfp_proprio_projector": VFPProprioProjector,
    "vfp_single_action_decoder": VFPSingleActionDecoder,
    "vfp_single_info_embedder": VFPSingleInfoEmbedder,
    "vfp_single_multimodal_bridge": VFPSingleMultimodalBridge,
    "vfp_single_posterior": VFPSinglePosterior,
    "vfp_single_prior": VFPSinglePrior,
    "vfp_vqvae_codebook": VQCodebook,
}


def register(registry: Registry, load_radio: LoadRadio | None = None) -> None:
    """Register every block under the name in configs; ``load_radio`` loads the model of ``radiov3``."""
    for name, block in BLOCKS.items():
        registry.register_module(name, block, tags=("block",))
    registry.register_module("radiov3", radiov3_factory(load_radio), tags=("pretrained",))
