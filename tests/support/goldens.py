"""Numbers of the reference: config, state, inputs and outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from model_factory.config import resolve_file
from model_factory.config.schema.model_config import ModelConfig

DATA = Path(__file__).parents[1] / "golden" / "data"
NAMES = sorted(path.stem for path in DATA.glob("*.yaml"))
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


class Golden:
    """Tensors and metadata of a golden."""

    def __init__(self, name: str, folder: Path = DATA) -> None:
        self.name = name
        self.path = folder / f"{name}.yaml"
        with safe_open(folder / f"{name}.safetensors", "pt") as file:
            metadata = file.metadata()
            self._tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a mapping
        self.modules: dict[str, str] = json.loads(metadata["modules"])
        self.param_order: list[str] = json.loads(metadata["param_order"])
        self.inputs = self._nested(json.loads(metadata["inputs"]), "input/")
        self.outputs = self._nested(json.loads(metadata["outputs"]), "output/")

    @property
    def config(self) -> ModelConfig:
        return resolve_file(self.path, {}).model

    def tensors(self, kind: str) -> dict[str, torch.Tensor]:
        return {key.removeprefix(kind): value for key, value in self._tensors.items() if key.startswith(kind)}

    def _nested(self, form: dict[str, Any], path: str) -> Any:
        ((kind, body),) = form.items()
        if kind == "tensor":
            return self._tensors[path]
        if kind == "value":
            return body
        entries = body.items() if kind == "dict" else enumerate(body)
        inside = path if path.endswith("/") else f"{path}."
        built = [(key, self._nested(item, f"{inside}{key}")) for key, item in entries]
        return dict(built) if kind == "dict" else [item for _, item in built]
