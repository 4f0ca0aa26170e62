"""The block library: module types of configs beside ``torch.nn``.

Every block except the pretrained ``radiov3`` has ``example_inputs()``: keyword arguments of typical calls with small
tensors. The server records the forward with these calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from model_factory_server.constructor.blocks.action_autoencoder import ActionDecoder, ActionEncoder
from model_factory_server.constructor.blocks.conv import ConvBNAct, ResidualBlock
from model_factory_server.constructor.blocks.dsrl import (
    DSRLNoiseActorProcessor,
    DSRLNoiseLatentActor,
    DSRLQFunction,
    DSRLQFunctionProcessor,
)
from model_factory_server.constructor.blocks.mlp import MLP
from model_factory_server.constructor.blocks.parts.refused_blocks import REFUSED_BLOCKS, refusing_factory
from model_factory_server.constructor.blocks.parts.resnet_layers import LoadWeights, missing_weights
from model_factory_server.constructor.blocks.radio import LoadRadio, radiov3_factory
from model_factory_server.constructor.blocks.resfit import ResfitQFunction, ResfitResidualActor
from model_factory_server.constructor.blocks.resnet import DSRLImgEncoder, ResNet34Encoder
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
    "dsrl_noise_actor_processor": DSRLNoiseActorProcessor,
    "dsrl_noise_latent_actor": DSRLNoiseLatentActor,
    "dsrl_q_function": DSRLQFunction,
    "dsrl_q_function_processor": DSRLQFunctionProcessor,
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


PRETRAINED: dict[str, Callable[..., Any]] = {
    "dsrl_img_encoder": DSRLImgEncoder,
    "resfit_q_function": ResfitQFunction,
    "resfit_residual_actor": ResfitResidualActor,
    "resnet34": ResNet34Encoder,
}
"""Blocks on a pretrained ResNet-34: the first argument loads the weights, and no config can give it."""


def register(
    registry: Registry, load_radio: LoadRadio | None = None, load_resnet34: LoadWeights = missing_weights
) -> None:
    """Register every block under the name in configs.

    Args:
        registry: Gets the blocks.
        load_radio: Loads the model of ``radiov3``.
        load_resnet34: Loads the weights of the blocks on a ResNet-34.
    """
    for name, block in BLOCKS.items():
        registry.register_module(name, block, tags=("block",))
    for name, pretrained in PRETRAINED.items():
        registry.register_module(name, with_weights(pretrained, load_resnet34), tags=("pretrained",))
    for name in REFUSED_BLOCKS:
        registry.register_module(name, refusing_factory(name), tags=("refused",))
    registry.register_module("radiov3", radiov3_factory(load_radio), tags=("pretrained",))


def with_weights(block: Callable[..., Any], load_weights: LoadWeights) -> Callable[..., Any]:
    """Return the factory of a pretrained block, with the description of the block."""
    factory = functools.partial(block, load_weights)
    factory.__doc__ = block.__doc__
    return factory
