"""Configs that many tests write."""

from __future__ import annotations

from typing import Any


def layers(*specs: Any) -> dict[str, Any]:
    """A config of layers one after the other."""
    return {"schema_version": 1, "model": {"sequential": {"layers": list(specs)}}}


def graph(**changes: Any) -> dict[str, Any]:
    """A config of a graph with one module and one step; ``changes`` replace its keys."""
    body = {
        "inputs": ["x"],
        "modules": {"a": {"_type_": "nn.ReLU"}},
        "steps": [{"call": "module:a", "args": ["$x"], "out": "y"}],
        "outputs": ["y"],
    }
    return {"schema_version": 1, "model": {"graph": body | changes}}
