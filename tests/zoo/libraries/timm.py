"""Image models of timm, by name; small images, and few layers where a model takes the number."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm import create_model

from zoo.model import Model, images, rows

_SMALL = {"num_classes": 10}
_CONVOLUTIONS = """
    resnet18 skresnet18 resnest14d densenet121 dla46_c dpn48b ese_vovnet19b_dw convnext_atto convnextv2_atto
    mobilenetv3_small_050 mobilenetv4_conv_small mobileone_s0 tf_efficientnet_b0 lcnet_035 mixnet_s ghostnet_050
    regnety_002 gernet_s poolformer_s12 starnet_s1 edgenext_xx_small efficientvit_b0 mobilevit_xxs test_resnet
    test_efficientnet test_byobnet test_convnext mambaout_femto
""".split()
"""Models of images of any size."""

_VIT = {"depth": 2, "embed_dim": 48, "num_heads": 4}
_FIXED: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": _VIT,
    "vit_base_patch16_siglip_256": _VIT,
    "vit_small_patch16_dinov3": _VIT,
    "beit_base_patch16_224": _VIT,
    "eva02_tiny_patch14_224": _VIT,
    "cait_xxs24_224": _VIT,
    "convit_tiny": _VIT,
    "test_vit": {},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1), "embed_dim": 24, "num_heads": (2, 2), "window_size": 4},
    "swinv2_tiny_window8_256": {"depths": (1, 1), "embed_dim": 24, "num_heads": (2, 2), "window_size": 4},
    "swinv2_cr_tiny_224": {"depths": (2, 2), "embed_dim": 24, "num_heads": (2, 2), "window_size": 4},
    "xcit_nano_12_p16_224": {"depth": 2},
    "samvit_base_patch16": {"depth": 2, "embed_dim": 48, "num_heads": 4, "global_attn_indexes": (1,)},
    "mixer_s16_224": {},
    "gmlp_s16_224": {},
}
"""Models that are built for the size of their images, with arguments for few layers."""

_WHOLE = {"levit_128s": 224, "efficientvit_m0": 224, "fastvit_t8": 64}
"""Models with their own size of images."""

_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet18+features": ("resnet18", {"features_only": True}),
    "convnext_atto+features": ("convnext_atto", {"features_only": True}),
    "efficientnet_b0+features": ("efficientnet_b0", {"features_only": True}),
    "vit_tiny_patch16_224+droppath": (
        "vit_tiny_patch16_224",
        {**_VIT, "img_size": 64, "drop_path_rate": 0.5},
    ),
    "vit_tiny_patch16_224+dynamic": (
        "vit_tiny_patch16_224",
        {**_VIT, "img_size": 64, "dynamic_img_size": True},
    ),
}
_OTHER_SIDE = {"vit_tiny_patch16_224+dynamic"}


def models() -> list[Model]:
    """Return the models."""
    table = {}
    for name in _CONVOLUTIONS:
        table[name] = partial(create_model, name, **_SMALL), images(64, 96)
    for name, options in _FIXED.items():
        table[name] = partial(create_model, name, img_size=64, **options, **_SMALL), images(64)
    for name, side in _WHOLE.items():
        table[name] = partial(create_model, name, **_SMALL), images(side)
    for name, (model, options) in _OPTIONS.items():
        other = 96 if name in _OTHER_SIDE or options.get("features_only") else None
        table[name] = partial(create_model, model, **options), images(64, other)
    return rows("timm", table)
