"""Weights files: what comes out of one is what went in, aligned as torch allocates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model_factory.descriptor import pinned
from model_factory.descriptor.weights import ALIGNMENT, map_weights, write_weights
from model_factory.errors import FormatError

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


@pytest.mark.parametrize("size", [1, 7, 64, 100_000])
def test_copies_through_buffers_of_any_size(
    size: int, tensors: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinned, "BUFFER_BYTES", size)
    flat = [tensor.reshape(-1).view(torch.uint8) for tensor in tensors.values()]
    expected = b"".join(tensor.numpy().tobytes() for tensor in flat)
    path = tmp_path / "bytes"
    with path.open("wb") as file:
        for piece in pinned.to_host(flat):
            file.write(piece)
    assert path.read_bytes() == expected
    again = [torch.empty_like(tensor) for tensor in flat]
    with path.open("rb", buffering=0) as file:
        pinned.to_device(file, again)
    assert all(one.equal(other) for one, other in zip(again, flat, strict=True))


def test_a_file_that_ends_early_is_no_tensor(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(bytes(9))
    with (tmp_path / "short").open("rb") as file, pytest.raises(FormatError, match="ends before its last tensor"):
        pinned.to_device(file, [torch.empty(10, dtype=torch.uint8)])


@pytest.mark.gpu
@needs_gpu
def test_to_a_gpu_and_back(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    large = torch.randn(3 * pinned.BUFFER_BYTES // 4 + 5)
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
