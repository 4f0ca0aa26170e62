"""The models of ``make versions``, and a call of each, written down for clients that have no server package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from matrix import blocks
from matrix import cases as matrix_cases
from support import cases as policies

SEED = 11
GROUPS = {"policies": "policies and their parts", "blocks": "custom blocks", "nn": "classes of `torch.nn`"}
"""Group of models -> its name in ``docs/versions.md``."""


def write_calls(folder: Path) -> None:
    """Write ``calls.json``, the configs and names, and ``calls.pt``, the arguments by name."""
    entries: list[dict[str, Any]] = []
    arguments: dict[str, Any] = {}
    for name, case in policies.CASES.items():
        entries.append({"group": "policies", "name": name, "config": str(case.config)})
        arguments[f"policies/{name}"] = case.inputs(2, 3)
    for name in blocks.BLOCKS:
        entries.append({"group": "blocks", "name": name, "block": f"kind_{name}"})
        torch.manual_seed(SEED)
        arguments[f"blocks/{name}"] = [torch.randn(3, blocks.WIDTH, requires_grad=True)]
    for name, items in matrix_cases.CASES.items():
        for number, case in enumerate(items):
            entry = {"group": "nn", "name": f"{name}-{number}", "block": f"nn_{name}_{number}"}
            spec = {"_type_": f"nn.{name}", "_args_": list(case.args), **case.kwargs}
            entries.append(entry if case.make is not None else entry | {"spec": spec})
            if case.inputs is not None:
                torch.manual_seed(SEED)
                arguments[f"nn/{name}-{number}"] = list(case.inputs())
    (folder / "calls.json").write_text(json.dumps(entries), encoding="utf-8")
    torch.save(_leaves(arguments), folder / "calls.pt")


def _leaves(value: Any) -> Any:
    """Return the same nesting, with each tensor detached; the flag of gradients is kept."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: _leaves(item) for key, item in value.items()}
    return [_leaves(item) for item in value] if isinstance(value, list | tuple) else value
