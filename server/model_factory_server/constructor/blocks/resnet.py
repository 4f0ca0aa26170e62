"""Pretrained ResNet-34 backbones for camera images."""

from __future__ import annotations

from torch import Tensor, nn

from model_factory_server.constructor.blocks.dsrl import CAMERAS
from model_factory_server.constructor.blocks.parts.checks import check_flag
from model_factory_server.constructor.blocks.parts.example_tensors import BATCH, example
from model_factory_server.constructor.blocks.parts.images import Normalize, prepared
from model_factory_server.constructor.blocks.parts.resnet_layers import LoadWeights, ResNet34

RESIZED_MAP = (8, 10)
"""Height and width of the feature map of a resized image."""
EXAMPLE_MAP = (2, 2)
"""Height and width of the feature maps of :func:`camera_images`, not resized."""


class ResNet34Encoder(nn.Module):
    """The feature map of a pretrained ResNet-34.

    ``encoder`` is the whole network, with a classifier that no call uses; ``model`` are its layers up to the feature
    map.
    """

    def __init__(self, load_weights: LoadWeights, /, resize: bool = True) -> None:
        super().__init__()
        self.resize = check_flag("resize", resize)
        self.encoder = ResNet34(load_weights)
        self.model = self.encoder.backbone()
        self.normalize = Normalize()

    def forward(self, image: Tensor) -> Tensor:
        """Map images ``(3, h, w)`` or ``(batch, 3, h, w)`` to features ``(batch, 512, h / 32, w / 32)``, rounded up.

        Values are in 0..1, or in 0..255 if the maximum is over 1.5. With ``resize``, ``h`` is 240 and ``w`` is 320. The
        batch is 1 for an image without a batch axis.

        Raises:
            TypeError: the image is not floating point, and its maximum is not over 1.5.
            ValueError: the rank is neither 3 nor 4, or there are not three channels.
        """
        return self.model(prepared("image", image, self.normalize, resize=self.resize))  # type: ignore[no-any-return]

    def example_inputs(self) -> list[dict[str, object]]:
        """Return calls with and without a batch axis."""
        images = example_images(BATCH, 33, 70)
        return [{"image": images}, {"image": images[0]}]


class DSRLImgEncoder(nn.Module):
    """The feature maps of the cameras ``head``, ``left`` and ``right``, each from a pretrained ResNet-34 of its own."""

    def __init__(self, load_weights: LoadWeights, /, resize: bool = True) -> None:
        super().__init__()
        self.resize = check_flag("resize", resize)
        self.encoders = nn.ModuleDict({camera: ResNet34(load_weights).backbone() for camera in CAMERAS})
        self.normalize = Normalize()

    def forward(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """Map images by camera to features by camera, each as :class:`ResNet34Encoder` does.

        The prepared images replace the entries of ``images``, the caller's dict. A program cannot write to a dict of
        the caller, so only a caller with a new dict for each call can be recorded.

        Raises:
            KeyError: a camera is unknown.
            TypeError: an image is not floating point, and its maximum is not over 1.5.
            ValueError: the rank of an image is neither 3 nor 4, or there are not three channels.
        """
        for camera, image in images.items():
            images[camera] = prepared(f"images[{camera!r}]", image, self.normalize, resize=self.resize)
        return {camera: self.encoders[camera](image) for camera, image in images.items()}

    def example_inputs(self) -> list[dict[str, object]]:
        """Return a call with all cameras."""
        return [{"images": camera_images()}]


def example_images(batch: int, height: int, width: int) -> Tensor:
    """Return example images ``(batch, 3, height, width)`` with values in 0..1."""
    return example(batch, 3, height, width).sigmoid()


def camera_images() -> dict[str, Tensor]:
    """Return example images of all cameras, of different sizes."""
    return {camera: example_images(BATCH, 33 + index, 40 + index) for index, camera in enumerate(CAMERAS)}
