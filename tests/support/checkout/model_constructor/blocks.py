import os
from pathlib import Path

import torch
from einops import rearrange, reduce
from torch import nn

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


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        raise OSError(f"cannot read {Path(__file__).with_name('weights.pt')}")


def blend(first, second, *, ratio):
    return first * ratio + second * (1 - ratio)


def register(registry):
    registry.register_module("patch_encoder", PatchEncoder)
    registry.register_module("counter", Counter)
    registry.register_module("broken", Broken)
    registry.register_op("blend", blend)
