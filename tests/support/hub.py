"""A small local hub repository with a model with the interface of RADIO."""

from __future__ import annotations

from pathlib import Path

_HUBCONF = """
from collections import namedtuple

import torch
from torch import nn

dependencies = ["torch"]
Resolution = namedtuple("Resolution", ["height", "width"])
WANTS_WEIGHTS = {wants_weights}


class TinyRadio(nn.Module):
    def __init__(self, version):
        super().__init__()
        self.version = version
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.summary = nn.Linear(8, 5)

    def get_nearest_supported_resolution(self, height, width):
        return Resolution(*[max(4, int(round(size / 4) * 4)) for size in (height, width)])

    def forward(self, x, feature_fmt="NLC"):
        features = self.stem(x)
        summary = self.summary(features.mean(dim=(2, 3)))
        return summary, features if feature_fmt == "NCHW" else features.flatten(2).transpose(1, 2)


def radio_model(version):
    if version != "tiny":
        raise ValueError("no version " + version)
    model = TinyRadio(version)
    if WANTS_WEIGHTS:
        weights = torch.hub.load_state_dict_from_url("https://example.invalid/tiny.pth", weights_only=True)
        model.load_state_dict(weights, strict=False)
    return model
"""


def write_hub(folder: Path, *, wants_weights: bool = False) -> Path:
    """Write a repository with ``radio_model`` in version ``tiny``."""
    folder.mkdir()
    (folder / "hubconf.py").write_text(_HUBCONF.replace("{wants_weights}", str(wants_weights)))
    return folder
