"""Classifiers, segmentation and detection of torchvision."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torchvision import models as vision
from torchvision.models import detection, segmentation, video

from zoo.model import BATCH, Model, images, rows, tensors

_ANY_SIZE = """
    alexnet resnet18 googlenet mobilenet_v3_small shufflenet_v2_x0_5 squeezenet1_1
""".split()


def models() -> list[Model]:
    """Return the models."""
    table: dict[str, Any] = {}
    for name in _ANY_SIZE:
        options = {"init_weights": True} if name == "googlenet" else {}
        table[name] = partial(getattr(vision, name), num_classes=10, **options), images(96, 128)
    vit = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 4, "hidden_dim": 32, "mlp_dim": 64}
    swin = {"patch_size": [4, 4], "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": [4, 4]}
    maxvit = {"input_size": (64, 64), "stem_channels": 16, "partition_size": 4, "block_channels": [16, 32]}
    maxvit |= {"block_layers": [1, 1], "head_dim": 8, "stochastic_depth_prob": 0.2}
    table |= {
        "vit": (partial(vision.VisionTransformer, **vit), images(32)),
        "swin": (partial(vision.SwinTransformer, **swin), images(32, 64)),
        "swin_v2": (
            partial(vision.SwinTransformer, **swin, block=vision.swin_transformer.SwinTransformerBlockV2),
            images(32, 64),
        ),
        "maxvit": (partial(vision.MaxVit, **maxvit), images(64)),
        "segmentation.lraspp_mobilenet": (partial(_segmentation, "lraspp_mobilenet_v3_large"), images(64, 96)),
        "video.r3d_18": (video.r3d_18, tensors(x=(BATCH, 3, (4, 4, 8), 32, 32))),
        "video.mvit": (_mvit, tensors(x=(BATCH, 3, 4, 32, 32))),
        "video.s3d": (partial(video.s3d, num_classes=5), tensors(x=(BATCH, 3, 16, 64, 64))),
        "detection.backbone_fpn": (_backbone, images(64, 96)),
        "detection.ssd_head": (
            partial(detection.ssd.SSDHead, [8, 16], [4, 6], 5),
            lambda size: {"x": [tensors(a=(BATCH, 8, 8, 8))(size)["a"], tensors(a=(BATCH, 16, 4, 4))(size)["a"]]},
        ),
        "detection.retinanet_resnet50_fpn": (partial(_detector, "retinanet_resnet50_fpn"), _lists_of_images),
    }
    return rows("torchvision", table)


def _segmentation(name: str) -> nn.Module:
    return getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=5)


def _backbone() -> nn.Module:
    return detection.backbone_utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None)


def _detector(name: str) -> nn.Module:
    """A detector that is called in eval mode only: in train mode it needs targets."""
    options = {"weights": None, "weights_backbone": None, "num_classes": 4, "min_size": 64, "max_size": 64}
    model = getattr(detection, name)(**options).eval()
    model.train = lambda _mode=True: model
    return model


def _lists_of_images(size: int) -> dict[str, Any]:
    return {"images": list(tensors(x=(BATCH, 3, 64, 64))(size)["x"].sigmoid())}


def _mvit() -> nn.Module:
    block = video.mvit.MSBlockConfig
    settings = [
        block(1, 16, 16, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]),
        block(2, 16, 32, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1]),
    ]
    return video.mvit.MViT(
        (32, 32), 4, settings, residual_pool=True, residual_with_cls_embed=False, rel_pos_embed=True,
        proj_after_attn=True, num_classes=5,
        patch_embed_kernel=(3, 3, 3), patch_embed_stride=(1, 2, 2), patch_embed_padding=(1, 1, 1),
    )  # fmt: skip
