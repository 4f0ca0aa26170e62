"""Networks for medical images of MONAI."""

from __future__ import annotations

from functools import partial
from typing import Any

from monai.networks import nets

from zoo.model import BATCH, Inputs, Model, images, integers, rows, tensors, together

_UNET = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": (4, 8, 16), "strides": (2, 2)}
_VIT = {"in_channels": 1, "hidden_size": 16, "mlp_dim": 32, "num_heads": 2}
_GRAY = images(32, 48, channels=1)
_FIXED = images(32, channels=1)


def models() -> list[Model]:
    """Return the models."""
    small = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    table: dict[str, tuple[Any, Inputs]] = {
        "UNet": (partial(nets.UNet, **_UNET, num_res_units=1), _GRAY),
        "AttentionUnet": (partial(nets.AttentionUnet, **_UNET), _GRAY),
        "BasicUNet": (partial(nets.BasicUNet, **small, features=(4, 4, 8, 8, 16, 4)), _GRAY),
        "SegResNet": (partial(nets.SegResNet, init_filters=8, blocks_down=(1, 1), blocks_up=(1,), **small), _GRAY),
        "VNet": (partial(nets.VNet, **small), _FIXED),
        "DynUNet": (
            partial(
                nets.DynUNet, **small, kernel_size=(3, 3, 3), strides=(1, 2, 2), upsample_kernel_size=(2, 2),
                filters=(4, 8, 16),
            ),
            _GRAY,
        ),
        "DenseNet": (
            partial(nets.DenseNet, **small, init_features=8, growth_rate=4, block_config=(2, 2), bn_size=2), _GRAY
        ),
        "ResNet": (
            partial(
                nets.ResNet, block="basic", layers=[1, 1, 1, 1], block_inplanes=[8, 8, 16, 16], spatial_dims=2,
                n_input_channels=1, num_classes=3,
            ),
            _GRAY,
        ),
        "HighResNet": (
            partial(
                nets.HighResNet, **small,
                layer_params=(
                    {"name": "conv_0", "n_features": 4, "kernel_size": 3},
                    {"name": "res_1", "n_features": 8, "kernels": (3, 3), "repeat": 2},
                    {"name": "conv_1", "n_features": 8, "kernel_size": 1},
                    {"name": "conv_2", "kernel_size": 1},
                ),
            ),
            _GRAY,
        ),
        "ViT": (
            partial(
                nets.ViT, **_VIT, img_size=(32, 32), patch_size=(8, 8), num_layers=2, spatial_dims=2, num_classes=3,
                classification=True,
            ),
            _FIXED,
        ),
        "ViTAutoEnc": (
            partial(
                nets.ViTAutoEnc, in_channels=1, img_size=(32, 32), patch_size=(4, 4), hidden_size=16, mlp_dim=32,
                num_layers=4, num_heads=2, spatial_dims=2,
            ),
            _FIXED,
        ),
        "UNETR": (
            partial(
                nets.UNETR, in_channels=1, out_channels=2, img_size=(32, 32), feature_size=4, hidden_size=24,
                mlp_dim=32, num_heads=2, spatial_dims=2,
            ),
            images(32, channels=1, name="x_in"),
        ),
        "SwinUNETR": (
            partial(
                nets.SwinUNETR, in_channels=1, out_channels=2, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2),
                feature_size=12, spatial_dims=2, window_size=4,
            ),
            images(64, channels=1, name="x_in"),
        ),
        "VoxelMorphUNet": (
            partial(
                nets.VoxelMorphUNet, spatial_dims=2, in_channels=2, unet_out_channels=8, channels=(4, 8),
                final_conv_channels=(4,),
            ),
            tensors(concatenated_pairs=(BATCH, 2, 32, 32)),
        ),
        "AutoEncoder": (
            partial(nets.AutoEncoder, **small, channels=(4, 8), strides=(2, 2), inter_channels=(8,)), _GRAY
        ),
        "VQVAE": (
            partial(
                nets.VQVAE, spatial_dims=2, in_channels=1, out_channels=1, channels=(8, 8), num_res_layers=1,
                num_res_channels=(8, 8), downsample_parameters=((2, 4, 1, 1), (2, 4, 1, 1)),
                upsample_parameters=((2, 4, 1, 1, 0), (2, 4, 1, 1, 0)), num_embeddings=8, embedding_dim=4,
            ),
            images(32, 48, channels=1, name="images"),
        ),
        "AutoencoderKL": (
            partial(
                nets.AutoencoderKL, spatial_dims=2, in_channels=1, out_channels=1, channels=(8, 8), num_res_blocks=1,
                attention_levels=(False, True), latent_channels=2, norm_num_groups=4,
            ),
            _GRAY,
        ),
        "DiffusionModelUNet": (
            partial(
                nets.DiffusionModelUNet, spatial_dims=2, in_channels=1, out_channels=1, channels=(8, 16),
                attention_levels=(False, True), num_head_channels=8, norm_num_groups=4, num_res_blocks=1,
            ),
            together(_GRAY, integers(100, timesteps=(BATCH,))),
        ),
        "Regressor": (partial(nets.Regressor, (1, 32, 32), (3,), (4, 8), (2, 2)), _FIXED),
        "MILModel": (
            partial(nets.MILModel, num_classes=2, mil_mode="att", pretrained=False, backbone="resnet18"),
            tensors(x=(BATCH, 3, 3, 32, 32)),
        ),
        "PatchDiscriminator": (
            partial(nets.PatchDiscriminator, spatial_dims=2, channels=4, in_channels=1, num_layers_d=2), _GRAY
        ),
        "DecoderOnlyTransformer": (
            partial(
                nets.DecoderOnlyTransformer, num_tokens=20, max_seq_len=16, attn_layers_dim=16, attn_layers_depth=1,
                attn_layers_heads=2,
            ),
            integers(20, x=(BATCH, (7, 7, 9))),
        ),
        "MedNeXt": (
            partial(
                nets.MedNeXt, **small, init_filters=4, encoder_expansion_ratio=2, decoder_expansion_ratio=2,
                bottleneck_expansion_ratio=2, blocks_down=(1, 1), blocks_bottleneck=1, blocks_up=(1, 1),
            ),
            _GRAY,
        ),
    }  # fmt: skip
    return rows("monai", table)
