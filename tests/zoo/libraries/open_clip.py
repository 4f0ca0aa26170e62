"""Models of images and texts of open_clip."""

from __future__ import annotations

from typing import Any

import open_clip
from torch import nn

from zoo.model import BATCH, Model, integers, rows, tensors, together

_TEXT = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
_VIT = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
_CALL = together(tensors(image=(BATCH, 3, 32, 32)), integers(50, text=(BATCH, 8)))


def models() -> list[Model]:
    """Return the models."""
    visions: dict[str, dict[str, Any]] = {
        "ViT": _VIT,
        "ViT+patch_dropout": {**_VIT, "patch_dropout": 0.25},
        "ViT+attentional_pool": {**_VIT, "attentional_pool": True, "attn_pooler_queries": 4},
        "ResNet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
    }
    return rows(
        "open_clip", {f"CLIP.{name}": (lambda vision=vision: _clip(vision), _CALL) for name, vision in visions.items()}
    )


def _clip(vision: dict[str, Any]) -> nn.Module:
    return open_clip.CLIP(16, vision, _TEXT, output_dict=True)
