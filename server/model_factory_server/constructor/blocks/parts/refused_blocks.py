"""Names of blocks whose originals do not run: a config with such a block gets an error with the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from model_factory.errors import ConfigError

_PROJECTED_MAP = (
    "use resnet34, whose feature map is (batch, 512, h / 32, w / 32), and project the features in the trainer or in a "
    "block of a plug-in (--plugin)"
)
_HAND_EXTRACTOR = (
    "its forward needs the feature map of a ResNet-34, and gets scores of classes",
    _PROJECTED_MAP,
)
_OWN_BLOCK = "write the block as a plug-in (--plugin), for example with resnet34 and mlp"

REFUSED_BLOCKS = {
    "naive_hand_extractor": _HAND_EXTRACTOR,
    "state_decoder": ("its forward calls a list of modules, which has no forward", _OWN_BLOCK),
    "state_encoder": ("its forward needs feature maps of a ResNet-34, and gets scores of classes", _OWN_BLOCK),
    "vfp_hand_extractor": _HAND_EXTRACTOR,
}
"""Name in configs -> the fault of the original, and the remedy."""


def refusing_factory(name: str) -> Callable[..., NoReturn]:
    """Return the factory of a refused block, which takes any arguments.

    Example:
        >>> refusing_factory("state_decoder")(hidden_dim=8)
        Traceback (most recent call last):
        model_factory.errors.ConfigError: the block 'state_decoder' cannot be built: its forward calls a list of ...
    """
    fault, remedy = REFUSED_BLOCKS[name]

    def refused(**_arguments: Any) -> NoReturn:
        raise ConfigError(
            f"the block {name!r} cannot be built: {fault}, so the block fails in every known version of the original. "
            f"Remedy: {remedy}"
        )

    refused.__doc__ = f"Refused: {fault}."
    return refused
