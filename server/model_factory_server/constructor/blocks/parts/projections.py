"""Projections of features to the width of a transformer."""

from __future__ import annotations

from torch import Tensor, nn


def normed_projection(features: int, width: int) -> nn.Sequential:
    """Two linear layers between layer norms: ``(..., features)`` to ``(..., width)``."""
    return nn.Sequential(
        nn.LayerNorm(features),
        nn.Linear(features, 2 * width),
        nn.SiLU(),
        nn.Dropout(0.0),
        nn.Linear(2 * width, width),
        nn.LayerNorm(width),
    )


def silu_projection(features: int, width: int) -> nn.Sequential:
    """One linear layer and SiLU: ``(..., features)`` to ``(..., width)``."""
    return nn.Sequential(nn.Linear(features, width), nn.SiLU())


def project(name: str, values: Tensor, projection: nn.Module | None, width: int) -> Tensor:
    """Project ``values`` to ``(..., width)``, or pass them through where there is no projection.

    Raises:
        ValueError: there is no projection and the values, argument ``name`` of a forward, are not ``width`` wide.
    """
    if projection is not None:
        return projection(values)  # type: ignore[no-any-return]
    if values.shape[-1] != width:
        raise ValueError(
            f"{name} is {values.shape[-1]} wide; the block has no projection for it, so it must be {width} wide"
        )
    return values
