"""Filters, features and augmentations of kornia."""

from __future__ import annotations

from functools import partial
from typing import Any

from kornia import augmentation, color, feature, filters
from torch import nn

from zoo.model import Inputs, Model, images, rows


def models() -> list[Model]:
    """Return the models."""
    image = images(32, 40, name="input")
    patches = images(32, channels=1, name="input")
    table: dict[str, tuple[Any, Inputs]] = {
        "GaussianBlur2d+Sobel": (
            lambda: nn.Sequential(filters.GaussianBlur2d((3, 3), (1.0, 1.0)), filters.Sobel()),
            image,
        ),
        "UnsharpMask": (partial(filters.UnsharpMask, (3, 3), (1.0, 1.0)), image),
        "Laplacian": (partial(filters.Laplacian, 3), image),
        "MedianBlur": (partial(filters.MedianBlur, (3, 3)), image),
        "Canny": (filters.Canny, images(32, 40, name="input", channels=1)),
        "RgbToHsv": (color.RgbToHsv, images(32, 40, name="image")),
        "RgbToLab": (color.RgbToLab, images(32, 40, name="image")),
        "HardNet": (partial(feature.HardNet, pretrained=False), patches),
        "SOSNet": (partial(feature.SOSNet, pretrained=False), patches),
        "HyNet": (partial(feature.HyNet, pretrained=False), images(32, name="x", channels=1)),
        "TFeat": (partial(feature.TFeat, pretrained=False), patches),
        "KeyNet": (partial(feature.KeyNet, pretrained=False), images(32, 40, name="x", channels=1)),
        "XFeatModel": (feature.XFeatModel, images(64, 96, name="x", channels=1)),
        "RandomHorizontalFlip": (partial(augmentation.RandomHorizontalFlip, p=0.5), image),
        "RandomAffine": (partial(augmentation.RandomAffine, 15.0, (0.1, 0.1), p=1.0), image),
        "RandomCrop": (partial(augmentation.RandomCrop, (28, 28), padding=4, p=1.0), image),
        "RandomErasing": (partial(augmentation.RandomErasing, p=1.0), image),
        "ColorJitter": (partial(augmentation.ColorJitter, 0.1, 0.1, 0.1, 0.1, p=1.0), image),
        "Normalize": (partial(augmentation.Normalize, mean=0.5, std=0.25), image),
    }
    return rows("kornia", table)
