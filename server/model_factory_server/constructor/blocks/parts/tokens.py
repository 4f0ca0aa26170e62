"""Joins sequences of tokens; learned tokens come first."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model_factory_server.constructor.blocks.parts.checks import check_count, check_flag, check_rank

SEQUENCE = {3: "(batch, seq, features)"}
SEMANTIC = {2: "(batch, features)", 3: "(batch, k, features)"}
VISUAL = {
    4: "(batch, cameras, channels, seq)",
    5: "(batch, cameras, channels, height, width)",
    6: "(batch, cameras, time, channels, height, width)",
}


def prepend(tokens: Tensor, rest: Tensor) -> Tensor:
    """Put ``tokens (batch, n, d)`` in front of ``rest (batch, m, d)``."""
    return torch.cat((tokens, rest), dim=1)


def semantic_sequence(name: str, semantic: Tensor) -> Tensor:
    """Return the semantics ``(batch, f)`` or ``(batch, k, f)`` of argument ``name`` as ``(batch, 1 or k, f)``."""
    check_rank(name, semantic, SEMANTIC)
    return semantic.unsqueeze(1) if semantic.ndim == 2 else semantic


def camera_tokens(name: str, visual: Tensor) -> Tensor:
    """Return the features of argument ``name`` as ``(batch, cameras, tokens, channels)``.

    ``visual`` has one of the layouts of ``VISUAL``; pixels go row by row, image after image.

    Example:
        >>> camera_tokens("cond_visual", torch.zeros(2, 3, 4, 5, 6)).shape
        torch.Size([2, 3, 30, 4])
    """
    check_rank(name, visual, VISUAL)
    channel_axis = 3 if visual.ndim == 6 else 2
    return visual.movedim(channel_axis, -1).flatten(2, -2)


def make_cls_token(use_cls_token: bool, num_cls_token: int | None, width: int) -> nn.Parameter | None:
    """Return learned tokens ``(num_cls_token, width)``, truncated normal with standard deviation 0.02, or ``None``."""
    if not check_flag("use_cls_token", use_cls_token):
        return None
    token = torch.empty(check_count("num_cls_token", num_cls_token), width)
    return nn.Parameter(nn.init.trunc_normal_(token, std=0.02))


def prepend_cls(cls_token: nn.Parameter | None, tokens: Tensor) -> Tensor:
    """Put learned tokens ``(n, d)`` in front of each sample of ``tokens (batch, seq, d)``, if given."""
    if cls_token is None:
        return tokens
    return prepend(cls_token.unsqueeze(0).expand(tokens.shape[0], -1, -1), tokens)
