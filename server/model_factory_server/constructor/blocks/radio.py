"""The pretrained vision backbone RADIO ("AM-RADIO: Agglomerative Vision Foundation Model") as a block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn import functional

from model_factory.errors import BuildError
from model_factory_server.constructor.blocks.parts.checks import check_count, check_rank
from model_factory_server.constructor.blocks.parts.images import IMAGE, to_unit_range

LoadRadio: TypeAlias = "Callable[[], Any]"
"""Loads the pretrained model, a module with a method ``get_nearest_supported_resolution(height, width)``."""

AUTO = "auto"
FIXED_SIZE = (336, 504)
"""Requested height and width, in pixels, unless ``resize_method`` is ``auto``."""


class RadioV3(nn.Module):
    """Scales and resizes images, and returns features and summary of a pretrained model.

    The block has no ``example_inputs()``: the sizes depend on the pretrained model. The server records the forward at
    the first call.
    """

    def __init__(self, model: nn.Module, channels: Sequence[int] = (1024, 3072), resize_method: str = AUTO) -> None:
        super().__init__()
        self.channels = check_channels(channels)
        self.resize_method = resize_method
        self.model: Any = model  # with the method of LoadRadio

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map images ``(channels, h, w)`` or ``(batch, channels, h, w)`` to ``(features, summary)``.

        Values are in 0..1, or in 0..255 if the maximum is over 1.5. ``features`` is ``(batch, d, h', w')``, ``summary``
        is ``(batch, d')``; the batch is 1 for an image without a batch axis.

        Raises:
            ValueError: the rank is neither 3 nor 4.
        """
        check_rank("image", image, IMAGE)
        images = to_unit_range(image.unsqueeze(0) if image.ndim == 3 else image)
        height, width = images.shape[-2:] if self.resize_method == AUTO else FIXED_SIZE
        size = self.model.get_nearest_supported_resolution(height, width)
        images = functional.interpolate(images, size=(size.height, size.width), mode="bilinear", align_corners=False)
        summary, features = self.model(images, feature_fmt="NCHW")
        return features, summary


def check_channels(channels: Sequence[int]) -> list[int]:
    """Return the widths of features and summary.

    Raises:
        ValueError: ``channels`` is not a list of positive integers.

    Example:
        >>> check_channels((1024, 3072))
        [1024, 3072]
    """
    if not isinstance(channels, list | tuple):
        raise ValueError(f"channels must be a list of positive integers, got {channels!r}")  # noqa: TRY004
    return [check_count(f"channels[{index}]", width) for index, width in enumerate(channels)]


def radiov3_factory(load_radio: LoadRadio | None) -> Callable[..., RadioV3]:
    """Return the factory of ``radiov3``; the operator chooses the pretrained model, a config cannot."""

    def radiov3(channels: Sequence[int] = (1024, 3072), resize_method: str = AUTO) -> RadioV3:
        """The pretrained vision backbone RADIO: features and summary of images."""
        if load_radio is None:
            raise BuildError("radiov3 takes its model from the operator's hub settings, and this registry has none")
        check_channels(channels)  # before anything large is loaded
        return RadioV3(load_radio(), channels, resize_method)

    return radiov3
