"""Models constructed in their weights file: it holds what it would hold otherwise, whatever a constructor does."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from model_factory.describe.describe import describe, named_tensors
from model_factory.digest import Blob
from model_factory.errors import BuildError
from model_factory_server.worker.weights_placement import AllocationLog, Placement, WeightsFile

SIZE = 160  # of a side: more bytes than are placed at least


class Owner(nn.Module):
    """Two layers, and whatever is done to them."""

    def __init__(self, change: Callable[[Owner], object] = lambda _: None) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)
        change(self)


def _swapped(owner: Owner) -> None:
    owner.one, owner.two = owner.two, owner.one


def _swapped_in_the_build(owner: Owner) -> None:
    if not owner.one.weight.is_meta:
        owner.one.weight, owner.two.weight = owner.two.weight, owner.one.weight


def _turned(owner: Owner) -> None:
    owner.one.weight.data = owner.one.weight.data.t()


def _cut(owner: Owner) -> None:
    owner.one.weight.data = owner.one.weight.data[: SIZE // 2]


def _tied(owner: Owner) -> None:
    owner.two.weight = owner.one.weight


def _doubled(owner: Owner) -> None:
    owner.double()


def _other_shapes_in_the_build(owner: Owner) -> None:
    if not owner.one.weight.is_meta:
        owner.two = nn.Linear(SIZE, 2 * SIZE)


def _more_in_the_build(owner: Owner) -> None:
    if not owner.one.weight.is_meta:
        torch.empty(SIZE, SIZE).fill_(7)
        owner.two = nn.Linear(SIZE, SIZE)


def _less_in_the_build(owner: Owner) -> None:
    if not owner.one.weight.is_meta:
        owner.two = nn.Linear(1, 1)


def _asked_otherwise(owner: Owner) -> None:
    owner.one.weight = nn.Parameter(torch.empty(size=(SIZE, SIZE), dtype=torch.float64).normal_())
    owner.two.weight = nn.Parameter(torch.empty([SIZE, SIZE], pin_memory=False, requires_grad=True))
    nn.init.ones_(owner.two.weight)


def _written_late(owner: Owner) -> None:
    owner.one.weight.data.mul_(3)


def _one_memory_for_two(owner: Owner) -> None:
    owner.register_buffer("late", torch.empty(SIZE, SIZE).normal_())
    old = owner.late.detach()
    owner.late.data = owner.late.clone()
    owner.late.mul_(2)
    owner.register_buffer("old", old)


def _set_to_another(owner: Owner) -> None:
    owner.register_buffer("late", torch.empty(SIZE, SIZE).fill_(1))
    owner.register_buffer("old", owner.late.detach())
    owner.late.set_(torch.empty(SIZE, SIZE))
    owner.late.fill_(2)


def _in_another_layout(owner: Owner) -> None:
    plain = torch.empty(20, 20, 20, 20).normal_()
    owner.register_buffer("late", plain.clone(memory_format=torch.channels_last))


def _on_another_default_device(owner: Owner) -> None:
    device = torch.get_default_device()
    torch.set_default_device("meta")
    try:
        owner.one = nn.Linear(SIZE, SIZE)
    finally:
        torch.set_default_device(None)
    if device.type != "meta":
        owner.one.to_empty(device=device)
        nn.init.ones_(owner.one.weight)
        nn.init.ones_(owner.one.bias)


def _into_one_that_is_there(owner: Owner) -> None:
    owner.register_buffer("late", torch.empty((SIZE, SIZE), out=torch.zeros(SIZE, SIZE)).fill_(3))


def _resized(owner: Owner) -> None:
    memory = owner.one.weight.untyped_storage()
    size = memory.nbytes()
    try:
        memory.resize_(0)
    except RuntimeError as error:
        raise BuildError(f"building failed: {error}") from error
    memory.resize_(size)
    owner.one.weight.data.fill_(1)


def _sparse_and_mapped(owner: Owner) -> None:
    torch.empty(3, 3, layout=torch.sparse_coo)
    torch.func.vmap(lambda row: row.clone())(owner.one.weight)


def _filled_with_nan(owner: Owner) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        owner.register_buffer("late", torch.empty(SIZE, SIZE))
    finally:
        torch.use_deterministic_algorithms(False)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": Owner,
    "stack": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(SIZE, 4, SIZE), 3, enable_nested_tensor=False),
    "small": lambda: nn.Linear(2, 2),
    "odd": lambda: nn.Sequential(nn.Linear(SIZE, SIZE), nn.BatchNorm1d(SIZE + 1), nn.Embedding(SIZE * SIZE, 3)),
    **{
        change.__name__: lambda change=change: Owner(change)  # type: ignore[misc]
        for change in (
            *(_swapped, _swapped_in_the_build, _turned, _cut, _tied, _doubled, _other_shapes_in_the_build),
            *(_more_in_the_build, _less_in_the_build, _asked_otherwise, _written_late, _one_memory_for_two),
            *(_set_to_another, _in_another_layout, _on_another_default_device, _into_one_that_is_there, _resized),
            *(_sparse_and_mapped, _filled_with_nan),
        )
    },
}
PLACED = {"plain": 2, "stack": 12, "small": 0, "odd": 2, "_swapped": 2, "_tied": 1, "_sparse_and_mapped": 2}


def _plan(make: Callable[[], nn.Module]) -> Placement | None:
    with AllocationLog() as made, torch.device("meta"):
        model = make()
    placement = made.placement(model)
    return None if placement is None else Placement.decode(placement.encode())


def _made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    with torch.device("cpu"):
        return make()


@pytest.mark.parametrize("name", MODELS)
def test_the_file_is_as_it_would_be_otherwise(name: str, tmp_path: Path) -> None:
    make = MODELS[name]
    placement = _plan(make)
    if name in PLACED:
        assert len(placement.places if placement else ()) == PLACED[name]
    for path, wanted in ((tmp_path / "plain", None), (tmp_path / "placed", placement)):
        with path.open("w+b") as file:
            weights = WeightsFile(file, wanted)
            model = weights.construct(lambda: _made(make))
            blob = weights.write(named_tensors(model, describe(model)))
        assert Blob.of(path.read_bytes()) == blob
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "placed").read_bytes()


def test_what_is_placed_is_in_the_file_before_it_is_written(tmp_path: Path) -> None:
    placement = _plan(Owner)
    assert placement is not None
    with (tmp_path / "file").open("w+b") as file:
        model = WeightsFile(file, placement).construct(Owner)
        assert isinstance(model, Owner)
        with torch.no_grad():
            model.two.weight.fill_(2)  # as a second initialisation does
        for weight, place in zip((model.one.weight, model.two.weight), placement.places.values(), strict=True):
            assert os.pread(file.fileno(), weight.nbytes, place.offset) == weight.detach().numpy().tobytes()


def test_without_room_or_a_mapping_it_is_written_as_always(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _plan(Owner)
    assert plan is not None
    for placement in (Placement(1 << 62, plan.places), plan):
        with (tmp_path / "file").open("w+b") as file:
            weights = WeightsFile(file, placement)
            model = weights.construct(lambda: nn.Linear(2, 2))
            blob = weights.write(named_tensors(model, describe(model)))
        assert (weights.reserved, Blob.of((tmp_path / "file").read_bytes())) == (0, blob)
        monkeypatch.setattr(mmap, "mmap", _refuse)


def _refuse(*_: object) -> None:
    raise OSError


def test_what_a_forward_writes_to_is_as_elsewhere(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        model = WeightsFile(file, _plan(Owner)).construct(Owner)
    weight = model.one.weight.data
    assert (weight._version, weight._is_view()) == (0, False)
    weight.mul_(model.two.weight.sum())
    weight.detach_()
