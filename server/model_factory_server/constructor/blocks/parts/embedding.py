"""Sinusoidal embeddings of token positions and of time, without parameters and buffers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_PERIOD = 10000.0


def add_positions(tokens: Tensor, width: int) -> Tensor:
    """Add sinusoidal positions to tokens ``(batch, seq, width)``; same shape and dtype.

    Even channels are ``sin(p * f)``, odd ones ``cos(p * f)``, with ``f = exp(-ln(10000) * [0, 2, 4, ...] / width)``
    ("Attention Is All You Need", section 3.5).

    Example:
        >>> add_positions(torch.zeros(1, 2, 2), width=2)
        tensor([[[0.0000, 1.0000],
                 [0.8415, 0.5403]]])
    """
    position = torch.arange(tokens.shape[1], device=tokens.device, dtype=torch.float32)
    channel = torch.arange(0, width, 2, device=tokens.device, dtype=torch.float32)
    angle = position.unsqueeze(1) * torch.exp(channel * (-math.log(MAX_PERIOD) / width))
    interleaved = torch.stack((torch.sin(angle), torch.cos(angle)), dim=2).flatten(1)
    return tokens + interleaved[:, :width].unsqueeze(0).to(tokens.dtype)


def embed_time(time: Tensor, width: int) -> Tensor:
    """Embed times ``(batch,)`` as float32 ``(batch, width)``: sines, then cosines; ``width`` is even and at least 4.

    Frequencies: ``exp(-ln(10000) * [0 .. width/2 - 1] / (width/2 - 1))``.

    Example:
        >>> embed_time(torch.tensor([0.0]), width=4)
        tensor([[0., 0., 1., 1.]])
    """
    half = width // 2
    channel = torch.arange(half, device=time.device, dtype=torch.float32)
    angle = time.to(torch.float32).unsqueeze(1) * torch.exp(channel * (-math.log(MAX_PERIOD) / (half - 1)))
    return torch.cat((torch.sin(angle), torch.cos(angle)), dim=1)
