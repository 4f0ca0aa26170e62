"""Comparison of what two environments saw of a model: equal, close, or different."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

CLOSE = 1e-3
"""Largest difference of a close result, relative to the largest number of the compared tensor."""

Outcome = dict[str, Any]


def outcome(found: Mapping[str, torch.Tensor] | None, expected: Mapping[str, torch.Tensor], refused: str) -> Outcome:
    """Return ``status`` (equal, close, random, refused or different) and what there is to say.

    A module is random if its training draws random numbers, which torch draws differently in the other version; its
    weights and its results in eval mode are equal.

    Args:
        found: The tensors of the compared environment by place, or None.
        expected: The tensors of the environment of the server.
        refused: The error of a refused model; empty for others.
    """
    if found is None:
        return {"status": "refused", "reason": refused}
    if list(found) != list(expected):
        return {"status": "different", "reason": f"other tensors: {sorted(set(found) ^ set(expected))[:5]}"}
    is_random = bool(expected.get("random", False))
    largest, where = 0.0, ""
    for place, tensor in expected.items():
        other = found[place]
        if other.dtype != tensor.dtype or other.shape != tensor.shape:
            return {"status": "different", "reason": f"{place}: {other.dtype} {tuple(other.shape)}"}
        if _bits(other).equal(_bits(tensor)):
            continue
        if is_random and not place.startswith(("state", "eval")):
            return {
                "status": "random",
                "reason": "other random numbers in train mode; the same weights and results in eval mode",
            }
        difference = _difference(other, tensor)
        if difference > CLOSE:
            return {"status": "different", "reason": f"{place}: relative difference {difference:.2g}"}
        if difference >= largest:
            largest, where = difference, place
    return {"status": "close", "difference": largest, "reason": where} if where else {"status": "equal"}


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.resolve_conj().contiguous().view(-1).view(torch.uint8)


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest finite number of ``other``; at least that to 1e-6."""
    kind = torch.complex128 if other.is_complex() else torch.float64
    one, other = one.to(kind), other.to(kind)
    if not one.isfinite().equal(other.isfinite()):
        return float("inf")
    finite = other.isfinite()
    scale = max(float(other[finite].abs().max()) if finite.any() else 0.0, 1e-6)
    return float((one[finite] - other[finite]).abs().max()) / scale if finite.any() else 0.0
