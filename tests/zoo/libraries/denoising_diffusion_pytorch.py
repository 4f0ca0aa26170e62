"""Networks and losses of denoising-diffusion-pytorch."""

from __future__ import annotations

from functools import partial
from typing import Any

import denoising_diffusion_pytorch as diffusion

from zoo.model import BATCH, Inputs, Model, images, rows, tensors


def models() -> list[Model]:
    """Return the models."""
    table: dict[str, tuple[Any, Inputs]] = {
        "Unet": (
            partial(diffusion.Unet, dim=8, dim_mults=(1, 2), flash_attn=False),
            _with_time(tensors(x=(BATCH, 3, (16, 16, 24), (16, 16, 24)))),
        ),
        "Unet1D": (
            partial(diffusion.Unet1D, dim=8, dim_mults=(1, 2), channels=3),
            _with_time(tensors(x=(BATCH, 3, (16, 16, 24)))),
        ),
        "GaussianDiffusion": (
            lambda: diffusion.GaussianDiffusion(
                diffusion.Unet(dim=8, dim_mults=(1, 2), flash_attn=False), image_size=16, timesteps=20
            ),
            images(16, name="img"),
        ),
        "GaussianDiffusion1D": (
            lambda: diffusion.GaussianDiffusion1D(
                diffusion.Unet1D(dim=8, dim_mults=(1, 2), channels=3), seq_length=16, timesteps=20
            ),
            tensors(img=(BATCH, 3, 16)),
        ),
        "KarrasUnet": (
            partial(
                diffusion.KarrasUnet, image_size=16, dim=8, dim_max=16, num_downsamples=1, num_blocks_per_stage=1,
                attn_res=(8,), attn_dim_head=8, fourier_dim=8, channels=3,
            ),
            _with_time(images(16)),
        ),
    }  # fmt: skip
    return rows("denoising_diffusion_pytorch", table)


def _with_time(inputs: Inputs) -> Inputs:
    return lambda size: inputs(size) | tensors(time=(BATCH,))(size)
