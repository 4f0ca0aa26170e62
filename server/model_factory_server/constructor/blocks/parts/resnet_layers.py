"""The residual network ResNet-34 (He et al. 2015, "Deep Residual Learning for Image Recognition").

Names, order and random draws are those of ``torchvision.models.resnet34``, so published weights fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import Tensor, nn

from model_factory.errors import BuildError

LoadWeights: TypeAlias = "Callable[[], Mapping[str, Tensor]]"
"""Loads the state dict of a :class:`ResNet34`, from the operator's hub folder."""

WIDTH = 512
"""Channels of the last feature map."""

_STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))  # number of blocks and channels of layer1 to layer4
_CLASSES = 1000


def missing_weights() -> Mapping[str, Tensor]:
    """Refuse to load weights, for registries without the operator's settings."""
    raise BuildError("blocks on a ResNet-34 take weights from the operator's hub settings, and this registry has none")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: ``(batch, channels, h, w)`` to ``(batch, out_channels, h', w')``."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.downsample: nn.Sequential | None = None
        shortcut = None
        if stride != 1 or in_channels != out_channels:  # made first and registered last: the order of random draws
            shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in_channels, h, w)`` to ``(batch, out_channels, h / stride, w / stride)``, rounded up."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + (x if self.downsample is None else self.downsample(x))
        return self.relu(out)  # type: ignore[no-any-return]


class ResNet34(nn.Module):
    """ResNet-34 with weights of the operator: images ``(batch, 3, h, w)`` to scores ``(batch, 1000)``."""

    def __init__(self, load_weights: LoadWeights) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, _STAGES[0][1], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(_STAGES[0][1])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = _STAGES[0][1]
        for number, (count, width) in enumerate(_STAGES, start=1):
            first = BasicBlock(channels, width, stride=1 if number == 1 else 2)
            self.add_module(
                f"layer{number}", nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(count - 1)))
            )
            channels = width
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(WIDTH, _CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if not self.fc.weight.is_meta:  # a model that is only planned has no values
            self.load_state_dict(load_weights())

    def backbone(self) -> nn.Sequential:
        """Return the layers up to the last feature map, the same objects.

        The layers map images ``(batch, 3, h, w)`` to ``(batch, 512, h / 32, w / 32)``, rounded up.
        """
        return nn.Sequential(*list(self.children())[:-2])

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images ``(batch, 3, h, w)`` to scores of ImageNet's classes, ``(batch, 1000)``."""
        features: Tensor = self.backbone()(images)
        return self.fc(self.avgpool(features).flatten(1))  # type: ignore[no-any-return]
