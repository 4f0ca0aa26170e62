"""Networks of diffusers, from tiny configurations."""

from __future__ import annotations

from functools import partial
from typing import Any

import diffusers
import torch

from zoo.model import BATCH, Inputs, Model, fixed, integers, rows, tensors, together

_BLOCKS = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
_SIDES = (16, 16, 24)
_SAMPLE = tensors(sample=(BATCH, 4, _SIDES, _SIDES))
_TIME = integers(100, timestep=(BATCH,))
_TEXT = tensors(encoder_hidden_states=(BATCH, 5, 16))
_HEADS = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}


def models() -> list[Model]:
    """Return the models."""
    table: dict[str, tuple[Any, Inputs]] = {
        "UNet1DModel": (
            partial(
                diffusers.UNet1DModel, sample_size=16, in_channels=3, out_channels=3, extra_in_channels=64,
                block_out_channels=(32, 32, 64), time_embedding_type="fourier", use_timestep_embedding=False,
            ),
            together(tensors(sample=(BATCH, 3, 64)), integers(100, timestep=(BATCH,))),
        ),
        "UNet2DModel": (
            partial(
                diffusers.UNet2DModel, sample_size=16, in_channels=4, out_channels=4, **_BLOCKS, attention_head_dim=4,
                down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            ),
            together(_SAMPLE, _TIME),
        ),
        "UNet2DConditionModel": (_condition, together(_SAMPLE, _TIME, _TEXT)),
        "AutoencoderKL": (
            partial(
                diffusers.AutoencoderKL, **_BLOCKS, down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16,
            ),
            tensors(sample=(BATCH, 3, _SIDES, _SIDES)),
        ),
        "VQModel": (
            partial(diffusers.VQModel, block_out_channels=(8,), norm_num_groups=4, num_vq_embeddings=8),
            tensors(sample=(BATCH, 3, _SIDES, _SIDES)),
        ),
        "AutoencoderTiny": (
            partial(
                diffusers.AutoencoderTiny, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
                num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
            ),
            tensors(sample=(BATCH, 3, _SIDES, _SIDES)),
        ),
        "DiTTransformer2DModel": (
            partial(diffusers.DiTTransformer2DModel, **_HEADS, in_channels=4, sample_size=16, norm_num_groups=4),
            together(
                tensors(hidden_states=(BATCH, 4, 16, 16)), integers(100, timestep=(BATCH,)),
                integers(10, class_labels=(BATCH,)),
            ),
        ),
        "Transformer2DModel": (
            partial(
                diffusers.Transformer2DModel, **_HEADS, in_channels=16, cross_attention_dim=16, norm_num_groups=4
            ),
            together(tensors(hidden_states=(BATCH, 16, _SIDES, _SIDES)), _TEXT),
        ),
        "SD3Transformer2DModel": (
            partial(
                diffusers.SD3Transformer2DModel, **_HEADS, sample_size=16, patch_size=2, in_channels=4, out_channels=4,
                joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16, pos_embed_max_size=16,
            ),
            together(
                tensors(hidden_states=(BATCH, 4, 16, 16), pooled_projections=(BATCH, 16)), _TEXT, _TIME,
            ),
        ),
        "PixArtTransformer2DModel": (
            partial(
                diffusers.PixArtTransformer2DModel, **_HEADS, in_channels=4, out_channels=8, sample_size=16,
                norm_num_groups=4, cross_attention_dim=16, caption_channels=16, use_additional_conditions=False,
            ),
            together(
                tensors(hidden_states=(BATCH, 4, 16, 16)), _TEXT, _TIME,
                fixed(added_cond_kwargs={"resolution": None, "aspect_ratio": None}),
            ),
        ),
        "FluxTransformer2DModel": (
            partial(
                diffusers.FluxTransformer2DModel, **_HEADS, num_single_layers=1, in_channels=8, joint_attention_dim=16,
                pooled_projection_dim=16, axes_dims_rope=(2, 2, 4), patch_size=1,
            ),
            together(
                tensors(hidden_states=(BATCH, 6, 8), pooled_projections=(BATCH, 16)), _TEXT,
                lambda size: {
                    "timestep": torch.rand(BATCH[size]), "img_ids": torch.arange(18.0).view(6, 3),
                    "txt_ids": torch.zeros(5, 3),
                },
            ),
        ),
        "WanTransformer3DModel": (
            partial(
                diffusers.WanTransformer3DModel, **_HEADS, in_channels=4, out_channels=4, text_dim=16, freq_dim=16,
                ffn_dim=32, rope_max_seq_len=32,
            ),
            together(tensors(hidden_states=(BATCH, 4, 2, _SIDES, _SIDES)), _TEXT, _TIME),
        ),
        "SanaTransformer2DModel": (
            partial(
                diffusers.SanaTransformer2DModel, in_channels=4, out_channels=4, num_attention_heads=2,
                attention_head_dim=8, num_layers=1, num_cross_attention_heads=2, cross_attention_head_dim=8,
                cross_attention_dim=16, caption_channels=16, sample_size=16,
            ),
            together(tensors(hidden_states=(BATCH, 4, 16, 16)), _TEXT, _TIME),
        ),
        "PriorTransformer": (
            partial(
                diffusers.PriorTransformer, **_HEADS, embedding_dim=8, num_embeddings=7, additional_embeddings=4
            ),
            together(
                tensors(hidden_states=(BATCH, 8), proj_embedding=(BATCH, 8), encoder_hidden_states=(BATCH, 7, 8)), _TIME
            ),
        ),
    }  # fmt: skip
    return rows("diffusers", table)


def _condition() -> torch.nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=16, **_BLOCKS, cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
