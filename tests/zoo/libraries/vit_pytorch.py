"""Vision transformers of vit-pytorch."""

from __future__ import annotations

import importlib
import inspect
from functools import partial
from typing import Any

from torch import nn

from zoo.model import BATCH, Model, images, rows, tensors

_VIT = {
    "image_size": 32, "patch_size": 8, "num_classes": 10, "dim": 32, "depth": 2, "heads": 4, "mlp_dim": 64,
}  # fmt: skip
_HEAD = {"dim_head": 8}
_DROP = {"dropout": 0.1, "emb_dropout": 0.1}

_CONFIGS: dict[str, dict[str, Any]] = {
    "vit.ViT": {**_VIT, **_DROP},
    "simple_vit.SimpleViT": _VIT,
    "deepvit.DeepViT": _VIT,
    "cait.CaiT": {**_VIT, "cls_depth": 1, "layer_dropout": 0.05},
    "vit_with_patch_dropout.ViT": {**_VIT, "patch_dropout": 0.25},
    "simple_vit_with_qk_norm.SimpleViT": _VIT,
    "normalized_vit.nViT": _VIT,
    "cct.CCT": {
        "img_size": (32, 32), "embedding_dim": 32, "n_conv_layers": 1, "kernel_size": 7, "num_layers": 2,
        "num_heads": 4, "mlp_ratio": 2.0, "num_classes": 10,
    },
    "pit.PiT": {**_VIT, "image_size": 32, "depth": (1, 1)},
    "levit.LeViT": {
        "image_size": 64, "num_classes": 10, "stages": 2, "dim": (16, 32), "depth": 1, "heads": (2, 4), "mlp_mult": 2,
        "dropout": 0.1,
    },
    "cvt.CvT": {
        "num_classes": 10,
        **{f"s{stage}_{key}": value for stage in (1, 2, 3) for key, value in
           {"emb_dim": 16 * stage, "emb_kernel": 3, "emb_stride": 2, "proj_kernel": 3, "kv_proj_stride": 2,
            "heads": stage, "depth": 1, "mlp_mult": 2}.items()},
    },
    "twins_svt.TwinsSVT": {
        "num_classes": 10,
        **{f"s{stage}_{key}": value for stage in (1, 2, 3, 4) for key, value in
           {"emb_dim": 8 * stage, "patch_size": 2, "local_patch_size": 2, "global_k": 2, "depth": 1}.items()},
    },
    "crossformer.CrossFormer": {
        "num_classes": 10, "dim": (32, 32, 64, 64), "depth": (1, 1, 1, 1), "global_window_size": (4, 2, 2, 1),
        "local_window_size": 2,
    },
    "max_vit.MaxViT": {
        "num_classes": 10, "dim_conv_stem": 16, "dim": 16, "dim_head": 8, "depth": (1, 1), "window_size": 4,
        "mbconv_expansion_rate": 2, "mbconv_shrinkage_rate": 0.25, "dropout": 0.1,
    },
    "nest.NesT": {
        "image_size": 32, "patch_size": 4, "dim": 16, "heads": 2, "num_hierarchies": 2, "block_repeats": (1, 1),
        "num_classes": 10,
    },
    "mobile_vit.MobileViT": {
        "image_size": (64, 64), "dims": [16, 16, 16], "channels": [8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 16], "num_classes": 10,
    },
    "xcit.XCiT": {**_VIT, "cls_depth": 1, "local_patch_kernel_size": 3},
    "rvt.RvT": _VIT,
    "ats_vit.ViT": {**_VIT, "max_tokens_per_depth": (8, 4)},
    "look_vit.LookViT": {
        "image_size": 32, "num_classes": 10, "depth": 1, "patch_size": 8, "heads": 4, "dim": 32, "mlp_factor": 2,
        "dim_head": 8, "highres_patch_size": 4, "highres_mlp_factor": 2, "cross_attn_heads": 4,
        "cross_attn_dim_head": 8, "patch_conv_kernel_size": 7,
    },
}  # fmt: skip
_LARGER = {
    **dict.fromkeys("levit.LeViT mobile_vit.MobileViT twins_svt.TwinsSVT crossformer.CrossFormer".split(), 64),
    **dict.fromkeys(["max_vit.MaxViT"], 64),
}
"""The side of the images, where it is not 32."""
_ANY_SIZE = {"crossformer.CrossFormer": 128, "cvt.CvT": 64, "max_vit.MaxViT": 128}


def models() -> list[Model]:
    """Return the models."""
    table: dict[str, Any] = {}
    for name, config in _CONFIGS.items():
        inputs = images(_LARGER.get(name, 32), _ANY_SIZE.get(name), name=_first_argument(name))
        table[name] = partial(_class(name), **config), inputs
    frames = {key: value for key, value in _VIT.items() if key not in {"depth", "patch_size"}}
    frames |= {"image_patch_size": 8, "frames": 4, "frame_patch_size": 2}
    series = {"seq_len": 32, "patch_size": 8, "num_classes": 10, "dim": 32, "depth": 1, "heads": 4, "mlp_dim": 64}
    table |= {
        "efficient.ViT": (_efficient, images(32, name="img")),
        "vivit.ViViT": (
            partial(_class("vivit.ViViT"), **frames, spatial_depth=1, temporal_depth=1),
            tensors(video=(BATCH, 3, 4, 32, 32)),
        ),
        "vit_3d.ViT": (partial(_class("vit_3d.ViT"), **frames, depth=1), tensors(video=(BATCH, 3, 4, 32, 32))),
        "vit_1d.ViT": (partial(_class("vit_1d.ViT"), **series), tensors(series=(BATCH, 3, 32))),
    }
    return rows("vit_pytorch", table)


def _class(name: str) -> Any:
    module, _, cls = name.partition(".")
    return getattr(importlib.import_module(f"vit_pytorch.{module}"), cls)


def _first_argument(name: str) -> str:
    return list(inspect.signature(_class(name).forward).parameters)[1]


def _efficient() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    config = {"image_size": 32, "patch_size": 8, "num_classes": 10, "dim": 32}
    return _class("efficient.ViT")(**config, transformer=nn.TransformerEncoder(layer, 1))
