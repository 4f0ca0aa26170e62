"""Segmentation models of segmentation-models-pytorch."""

from __future__ import annotations

from functools import partial
from typing import Any

import segmentation_models_pytorch

from zoo.model import Model, images, rows

_RESNET = "Unet MAnet FPN PSPNet DeepLabV3Plus UPerNet Segformer".split()
_ENCODERS = "mobilenet_v2 efficientnet-b0 mit_b0".split()


def models() -> list[Model]:
    """Return the models."""
    table: dict[str, Any] = {}
    for name in _RESNET:
        table[name] = partial(_model, name, "resnet18"), images(64, 96)
    for encoder in _ENCODERS:
        table[f"Unet+{encoder}"] = partial(_model, "Unet", encoder), images(64, 96)
    return rows("segmentation_models_pytorch", table)


def _model(name: str, encoder: str) -> Any:
    return getattr(segmentation_models_pytorch, name)(encoder, encoder_weights=None, classes=3)
