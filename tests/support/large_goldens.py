"""Numbers of the reference for large blocks: the state is a formula, and gradients are norms and probes."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from support.goldens import DATA, Golden

LARGE = DATA / "large"
LARGE_NAMES = sorted(path.stem for path in LARGE.glob("*.yaml"))


class LargeGolden(Golden):
    """Tensors and metadata of a golden without a state."""

    def __init__(self, name: str) -> None:
        super().__init__(name, LARGE)
        with safe_open(LARGE / f"{name}.safetensors", "pt") as file:
            metadata = file.metadata()
        self.state_shapes: dict[str, list[int]] = json.loads(metadata["state_order"])
        self.python_seed = int(metadata["python_seed"])


def load_formula(model: nn.Module) -> None:
    """Give parameters and buffers the values of the formula."""
    with torch.no_grad():
        for position, (name, parameter) in enumerate(model.named_parameters()):
            parameter.copy_(_parameter(position, name, parameter))
        for position, (name, buffer) in enumerate(model.named_buffers()):
            buffer.copy_(_buffer(position, name, buffer))


def _parameter(position: int, name: str, like: Tensor) -> Tensor:
    i = torch.arange(like.numel(), dtype=torch.float64)
    wave = torch.sin(1.7 * i + 0.003 * i * (i % 97) + 0.9 * position)
    if like.ndim > 1:
        return (wave * (3 / (like.numel() / like.shape[0])) ** 0.5).view(like.shape)
    return 1 + 0.2 * wave if name.endswith("weight") else 0.2 * wave


def _buffer(position: int, name: str, like: Tensor) -> Tensor:
    if like.ndim == 0:
        return torch.zeros((), dtype=like.dtype)
    wave = torch.sin(1.3 * torch.arange(like.numel(), dtype=torch.float64) + 0.7 * position).view(like.shape)
    return 0.1 * wave if name.endswith("mean") else 1 + 0.3 * wave


def check_outputs(outputs: Any, golden: LargeGolden) -> None:
    """Compare outputs to 1e-4 of the largest value."""
    if isinstance(golden.outputs, dict):
        assert list(outputs) == list(golden.outputs)
        pairs = [(outputs[key], golden.outputs[key]) for key in outputs]
    else:
        pairs = [(outputs, golden.outputs)]
    for actual, expected in pairs:
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def check_gradients(model: nn.Module, golden: LargeGolden) -> None:
    """Compare norms to 1e-3, and probes to 2e-3 of the norm."""
    norms, probes = golden.tensors("grad_norm/"), golden.tensors("grad_probe/")
    assert [name for name, _ in model.named_parameters()] == golden.param_order
    assert norms.keys() == probes.keys() == set(golden.param_order)
    for name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        flat = gradient.double().flatten()
        norm, expected = flat.norm().item(), norms[name].item()
        assert abs(norm - expected) <= 1e-3 * expected, name
        probe = (flat * torch.cos(0.11 * torch.arange(len(flat), dtype=torch.float64))).sum().item()
        assert abs(probe - probes[name].item()) <= 2e-3 * expected, name
