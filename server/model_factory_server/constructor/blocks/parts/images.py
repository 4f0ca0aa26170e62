"""Steps from an image of a camera to the input of a vision backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_factory_server.constructor.blocks.parts.checks import check_rank

IMAGE = {3: "(channels, h, w)", 4: "(batch, channels, h, w)"}

RESIZED = (240, 320)
"""Height and width after a resize, in pixels."""

# ImageNet's statistics of red, green and blue.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)

_MAX_UNIT_VALUE = 1.5  # above any value of a 0..1 image, below the maximum of any 0..255 image with content


def to_unit_range(images: Tensor) -> Tensor:
    """Divide images by 255 if the maximum of all values is over 1.5.

    Example:
        >>> to_unit_range(torch.tensor([0.0, 255.0])), to_unit_range(torch.tensor([0.0, 1.5]))
        (tensor([0., 1.]), tensor([0.0000, 1.5000]))
    """
    # torch.where instead of an if: a program records one branch of an if.
    return torch.where(images.amax() > _MAX_UNIT_VALUE, images / 255.0, images)


class Normalize(nn.Module):
    """Subtracts ImageNet's mean of each color and divides by the standard deviation.

    Example:
        >>> Normalize()(torch.full((1, 3, 1, 1), 0.5)).flatten()
        tensor([0.0655, 0.1964, 0.4178])
    """

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(batch, 3, h, w)`` to the same shape.

        Raises:
            TypeError: the images are not floating point.
            ValueError: the images do not have three channels.
        """
        if not images.is_floating_point():
            raise TypeError(f"images must be floating point, got {images.dtype}")
        if images.shape[1] != len(_MEAN):
            raise ValueError(f"images must have {len(_MEAN)} channels, got {images.shape[1]}")
        mean, std = (torch.tensor(row, dtype=images.dtype, device=images.device) for row in (_MEAN, _STD))
        return (images - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)

    def example_inputs(self) -> list[dict[str, object]]:
        """Return a call with a batch of images."""
        return [{"images": torch.zeros(2, 3, 4, 5)}]


def prepared(name: str, image: Tensor, normalize: nn.Module, *, resize: bool) -> Tensor:
    """Return the image argument ``name`` of a forward in 0..1, as a batch, resized if wanted, and normalized.

    Args:
        name: Name of the argument, for errors.
        image: ``(3, h, w)`` or ``(batch, 3, h, w)`` with values in 0..1, or in 0..255 if the maximum is over 1.5.
        normalize: A :class:`Normalize`.
        resize: Whether images become 240 pixels high and 320 wide.

    Returns:
        ``(batch, 3, h', w')``; the batch is 1 for an image without a batch axis.

    Raises:
        TypeError: the image is not floating point, and its maximum is not over 1.5.
        ValueError: the rank is neither 3 nor 4, or there are not three channels.
    """
    check_rank(name, image, IMAGE)
    if not image.is_floating_point() and not image.max() > _MAX_UNIT_VALUE:
        raise TypeError(f"{name} is {image.dtype} with values up to 1: only values in 0..255 may be integers")
    images = to_unit_range(image)
    images = images.unsqueeze(0) if images.ndim == 3 else images
    if resize:
        images = functional.interpolate(images, size=RESIZED, mode="bilinear", align_corners=False)
    return normalize(images)  # type: ignore[no-any-return]
