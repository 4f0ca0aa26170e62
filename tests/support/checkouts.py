"""A policy_constructor checkout of the tests' own, and a config for it."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

SOURCE = Path(__file__).with_name("checkout")


def write_checkout(folder: Path) -> Path:
    """Copy the small checkout into a folder of the test's own."""
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pyproject.toml").write_text('[project]\nname = "model-constructor"\nversion = "1.2.3"\n')
    return folder


@contextmanager
def imported(checkout: Path) -> Iterator[Any]:
    """The checkout's package in this process; nothing of it is left afterwards."""
    before = list(sys.path)
    sys.path.insert(0, str(checkout))
    try:
        yield importlib.import_module("model_constructor")
    finally:
        sys.path[:] = before
        for name in [name for name in sys.modules if name.partition(".")[0] == "model_constructor"]:
            del sys.modules[name]


def policy_config(**changes: Any) -> dict[str, Any]:
    """A model with an einops block, stock layers, and ops in the closed table and outside it."""
    graph = {
        "inputs": ["image", "state"],
        "modules": {
            "vision": {"_type_": "patch_encoder", "patch": 2, "channels": 3, "width": 8},
            "state": {"_type_": "nn.Linear", "in_features": 5, "out_features": 8},
            "head": {"_type_": "nn.Linear", "in_features": 16, "out_features": 4},
        },
        "steps": [
            {"call": "module:vision", "args": ["$image"], "out": ["tokens", "pooled"]},
            {"call": "module:state", "args": ["$state"], "out": "proprio"},
            {"call": "op:identity", "args": ["$pooled"], "out": "same"},
            {"call": "op:blend", "args": ["$same", "$proprio"], "kwargs": {"ratio": 0.25}, "out": "mixed"},
            {"call": "op:add", "args": ["$mixed", "$proprio"], "out": "total"},
            {"call": "op:cat", "args": [["$mixed", "$total"]], "kwargs": {"dim": -1}, "out": "joint"},
            {"call": "module:head", "args": ["$joint"], "out": "action"},
        ],
        "outputs": {"action": "action", "tokens": "tokens"},
    }
    return {"schema_version": 1, "model": {"graph": graph}} | changes


def policy_inputs(batch: int, size: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return {
        "image": torch.randn(batch, 3, size, size + 2, generator=generator),
        "state": torch.randn(batch, 5, generator=generator),
    }


SIGNATURE = {"image": {"shape": [2, 3, 4, 6]}, "state": {"shape": [2, 5], "dtype": "float32"}}
