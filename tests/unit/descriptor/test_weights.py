"""Weights files: reading returns the written tensors, aligned like tensors that torch allocates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model_factory.descriptor.weights import ALIGNMENT, map_weights, write_weights

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    kinds = (torch.float32, torch.float64, torch.float16, torch.bool)
    return {
        f"{kind}.{count}": torch.randn(count, generator=generator).to(kind)
        for count in (0, 1, 3, 6, 16, 36, 64, 100, 1024)
        for kind in kinds
    }


def test_tensors_of_all_sizes_come_back_aligned(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with (tmp_path / "weights").open("wb") as file:
        write_weights(file, tensors)
    with (tmp_path / "weights").open("rb") as file:
        found = map_weights(file)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].equal(tensor), name
        assert found[name].dtype == tensor.dtype
        assert found[name].data_ptr() % ALIGNMENT == 0, name


@pytest.mark.gpu
@needs_gpu
def test_to_a_gpu_and_back(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    large = torch.randn((24 << 20) + 5)
    tensors = {**tensors, "large": large, "columns": torch.randn(64, 48).t()}
    with (tmp_path / "host").open("wb") as file:
        digest = write_weights(file, tensors)
    with (tmp_path / "host").open("rb", buffering=0) as file:
        landed = map_weights(file, "cuda")
    for name, tensor in tensors.items():
        assert landed[name].device.type == "cuda"
        assert landed[name].cpu().equal(tensor), name
    with (tmp_path / "device").open("wb") as file:
        assert write_weights(file, {name: landed[name] for name in tensors}) == digest
