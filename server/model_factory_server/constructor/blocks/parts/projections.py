"""Projections of features to the width of a transformer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Projection = Callable[[int, int], nn.Sequential]
"""Makes the layers from ``(..., features)`` to ``(..., width)`` from the two sizes."""


def normed_projection(features: int, width: int) -> nn.Sequential:
    """Two linear layers between layer norms: ``(..., features)`` to ``(..., width)``.

    Example:
        >>> import torch
        >>> normed_projection(3, 4)(torch.zeros(2, 5, 3)).shape
        torch.Size([2, 5, 4])
    """
    return nn.Sequential(
        nn.LayerNorm(features),
        nn.Linear(features, 2 * width),
        nn.SiLU(),
        nn.Dropout(0.0),
        nn.Linear(2 * width, width),
        nn.LayerNorm(width),
    )


def input_normed_projection(features: int, width: int) -> nn.Sequential:
    """Two linear layers behind a layer norm, with dropout: ``(..., features)`` to ``(..., width)``.

    Example:
        >>> import torch
        >>> input_normed_projection(3, 4)(torch.zeros(2, 5, 3)).shape
        torch.Size([2, 5, 4])
    """
    return nn.Sequential(
        nn.LayerNorm(features),
        nn.Linear(features, 2 * width),
        nn.SiLU(),
        nn.Dropout(0.05),
        nn.Linear(2 * width, width),
    )


def silu_projection(features: int, width: int) -> nn.Sequential:
    """A linear layer and SiLU: ``(..., features)`` to ``(..., width)``.

    Example:
        >>> import torch
        >>> silu_projection(3, 4)(torch.zeros(2, 5, 3)).shape
        torch.Size([2, 5, 4])
    """
    return nn.Sequential(nn.Linear(features, width), nn.SiLU())


def projection_unless_equal(projection: Projection, features: int | None, width: int) -> nn.Sequential | None:
    """Return ``projection(features, width)``; None for unused features, and for features of this width.

    Example:
        >>> projection_unless_equal(silu_projection, 3, 4)[0]
        Linear(in_features=3, out_features=4, bias=True)
        >>> projection_unless_equal(silu_projection, 4, 4)
    """
    return None if features is None or features == width else projection(features, width)


def project(name: str, values: Tensor, projection: nn.Module | None, width: int) -> Tensor:
    """Project argument ``name`` of a forward to ``(..., width)``; without a projection, return ``values``.

    Raises:
        ValueError: ``projection`` is None and the last axis of ``values`` is not ``width`` wide.
    """
    if projection is not None:
        return projection(values)  # type: ignore[no-any-return]
    if values.shape[-1] != width:
        raise ValueError(
            f"{name} is {values.shape[-1]} wide; the block has no projection, so {name} must be {width} wide"
        )
    return values
