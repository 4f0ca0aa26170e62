import logging
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, reduce
from torch import nn

from model_constructor.errors import ConfigError
from model_constructor.registry import default_registry


class PatchEncoder(nn.Module):
    """No example_inputs: recorded when it is called, or for the config's signature."""

    def __init__(self, patch, channels, width):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(channels * patch * patch, width)
        self.position = nn.Parameter(torch.randn(width) / width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, image):
        if image.ndim == 3:
            image = rearrange(image, "c h w -> 1 c h w")
        patches = rearrange(image, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch, q=self.patch)
        tokens = self.dropout(self.embed(patches) + self.position)
        return tokens, reduce(tokens, "b n d -> b d", "mean")


class Counter(nn.Module):
    """Notes how many of its kind this process has seen: in the environment, in the registry and on the disk's path."""

    def __init__(self):
        super().__init__()
        count = int(os.environ.get("COUNTERS", "0")) + 1
        os.environ["COUNTERS"] = str(count)
        registry = default_registry.get_default_registry()
        registry.register_module(f"counter{len(registry.factories)}", Counter)
        self.register_buffer("seen", torch.tensor([count, len(registry.factories)]))

    def forward(self, x):
        return x + self.seen.sum()


class Ranked(nn.Module):
    """Weighs features by their ranks, which numpy finds: no program can stand for it. Once in a while it says so."""

    def __init__(self, width, every=2):
        super().__init__()
        self.every = every
        self.calls = 0
        self.weights = nn.Parameter(torch.randn(width))
        self.mix = nn.Linear(width, width)

    def forward(self, x):
        self.calls += 1
        ranks = np.argsort(np.argsort(x.detach().cpu().numpy(), axis=-1, kind="stable"), axis=-1)
        weighted = rearrange(x, "b d -> b 1 d") * self.weights[torch.from_numpy(ranks)][:, None]
        return self.mix(weighted[:, 0]) if self.calls % self.every else weighted[:, 0]


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        raise OSError(f"cannot read {Path(__file__).with_name('weights.pt')}")


class Pretrained(nn.Module):
    """Loads weights by their address, as the models of torchvision do."""

    def __init__(self, file="layer.pth"):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        url = f"https://example.invalid/{file}"
        self.layer.load_state_dict(torch.hub.load_state_dict_from_url(url, weights_only=True))

    def forward(self, x):
        return self.layer(x).relu()


class Backbone(nn.Module):
    """A model of a hub repository."""

    def __init__(self, repository="NVlabs/RADIO"):
        super().__init__()
        self.model = torch.hub.load(repository, "radio_model", version="tiny")

    def forward(self, image):
        summary, features = self.model(image, feature_fmt="NCHW")
        return features.mean(dim=(2, 3)) @ self.model.summary.weight.T + summary


class Warns(nn.Module):
    """Warns as libraries do."""

    def __init__(self, width):
        super().__init__()
        warnings.warn(f"a width of {width} is slow", stacklevel=1)
        logger = logging.getLogger("model_constructor.blocks")
        logger.propagate = False
        logger.warning("no table at %s: uses %s", Path(__file__).with_name("table.json"), "defaults")
        logger.info("width is %d", width)
        self.layer = nn.Linear(width, width)

    def forward(self, x):
        return self.layer(x) * 2


class Picky(nn.Module):
    def __init__(self, says, kind="config", path=None):
        super().__init__()
        error = (ConfigError if kind == "config" else ValueError)(says)
        if path is not None:
            error.path = path
        raise error


def blend(first, second, *, ratio):
    return first * ratio + second * (1 - ratio)


def register(registry):
    registry.register_module("patch_encoder", PatchEncoder)
    registry.register_module("counter", Counter)
    registry.register_module("broken", Broken)
    registry.register_module("ranked", Ranked)
    registry.register_module("pretrained", Pretrained)
    registry.register_module("backbone", Backbone)
    registry.register_module("warns", Warns)
    registry.register_module("picky", Picky)
    registry.register_op("blend", blend)
