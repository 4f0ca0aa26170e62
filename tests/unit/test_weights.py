"""Weights files: what comes out of one is what went in, aligned as torch allocates."""

from __future__ import annotations

from pathlib import Path

import torch

from model_factory.descriptor.weights import ALIGNMENT, map_weights, write_weights


def test_tensors_of_all_sizes_come_back_aligned(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = (torch.float32, torch.float64, torch.float16, torch.bool)
    tensors = {
        f"{kind}.{count}": torch.randn(count, generator=generator).to(kind)
        for count in (0, 1, 3, 6, 16, 36, 64, 100, 1024)
        for kind in kinds
    }
    with (tmp_path / "weights").open("wb") as file:
        write_weights(file, tensors)
    with (tmp_path / "weights").open("rb") as file:
        found = map_weights(file)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].equal(tensor), name
        assert found[name].dtype == tensor.dtype
        assert found[name].data_ptr() % ALIGNMENT == 0, name
