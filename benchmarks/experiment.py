"""The example experiment: four components with the sizes of a real experiment, 175 M parameters, 668 MiB."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from torch import nn

from benchmarks.payload import digest_of_tensors

EXAMPLE = Path(__file__).parents[1] / "examples" / "flow_policy"
CONFIGS = EXAMPLE / "configs"
COMPONENTS = {
    "observation_encoder": "observation_encoder.yaml",
    "velocity_decoder": "velocity_decoder.yaml",
    "prior": "prior.yaml",
    "posterior": "posterior.yaml",
}
SEED = 7


def example() -> ModuleType:
    """Import the code of the example: data and losses."""
    spec = importlib.util.spec_from_file_location("flow_policy_train", EXAMPLE / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digests(models: dict[str, nn.Module]) -> dict[str, str]:
    """Return a digest of the state of each model."""
    return {name: digest_of_tensors(model.state_dict()) for name, model in models.items()}


def size_of(models: dict[str, nn.Module]) -> int:
    """Return the bytes of all parameters and buffers."""
    return sum(tensor.nbytes for model in models.values() for tensor in model.state_dict().values())
