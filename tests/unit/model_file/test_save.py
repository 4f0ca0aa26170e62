"""What a trainer does to a model before ``save``: written as the model is now, or refused with the module's name."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations, prune

from matrix.blocks import BLOCKS, WIDTH
from matrix.portability import rebuilt_with_programs
from matrix.same import assert_same_module, assert_same_runs
from model_factory import FormatError, NotPortableError, StoreError, load, save
from model_factory.descriptor import weights
from model_factory.descriptor.weights import ALIGNMENT
from model_factory_server import PolicyConstructorModelFactory
from support.compare import assert_same_state, train
from support.configs import layers


class Adapter(nn.Module):
    """As a library for adapters puts around a layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 1)
        self.up = nn.Linear(1, base.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


@pytest.fixture
def built() -> nn.Module:
    """A rebuilt block with programs, a dropout, tied layers inside torch's containers."""
    torch.manual_seed(0)
    return rebuilt_with_programs(BLOCKS["SequentialOfBlocks"]())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.mf"


def x() -> list[Tensor]:
    return [torch.randn(3, WIDTH, requires_grad=True)]


def linear_of(model: nn.Module) -> tuple[nn.Module, str, nn.Linear]:
    """The first linear layer: its parent, its name, the layer."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                return parent, name, child
    raise AssertionError


def replace_linear(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    parent, name, layer = linear_of(model)
    parent._modules[name] = make(layer)


def _train(model: nn.Module) -> None:
    train(model, {"x": x()[0].detach()}, steps=2)


def _freeze(model: nn.Module) -> None:
    linear_of(model)[2].weight.requires_grad_(False)


def _tie(model: nn.Module) -> None:
    first, second = [item for item in model.modules() if type(item) is nn.Linear][:2]
    second.weight = first.weight


def _note(model: nn.Module) -> None:
    model.step_count = 3  # type: ignore[assignment]


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "trained, with gradients": _train,
    "eval mode": lambda model: model.eval(),
    "one module in eval mode": lambda model: linear_of(model)[2].eval(),
    "frozen weights": _freeze,
    "doubles": lambda model: model.double(),
    "half of the numbers": lambda model: model.bfloat16().float(),
    "tied weights": _tie,
    "another layer of torch": lambda model: replace_linear(model, lambda _: nn.Linear(WIDTH, WIDTH, bias=False)),
    "parametrized afterwards": lambda model: parametrizations.weight_norm(linear_of(model)[2]),
    "a layer more": lambda model: replace_linear(model, lambda layer: nn.Sequential(layer, nn.Dropout(0.1))),
    "an attribute": _note,
    "compiled in place": lambda model: model.compile(backend="eager"),
    "compiled layer": lambda model: linear_of(model)[2].compile(backend="eager"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_model_is_saved_with_the_change(
    change: Callable[[nn.Module], object], built: nn.Module, path: Path
) -> None:
    change(built)
    dtype = linear_of(built)[2].bias.dtype if linear_of(built)[2].bias is not None else torch.float32
    expected = copy.deepcopy(built)
    save(built, path)
    loaded = load(path)
    assert isinstance(loaded, nn.Module)
    for model in (expected, loaded):
        for module in model.modules():
            module.__dict__.pop("_compiled_call_impl", None)
    assert_same_state(loaded, expected)
    assert getattr(loaded, "step_count", None) == getattr(built, "step_count", None)
    assert_same_runs(expected, loaded, lambda: [item.detach().to(dtype).requires_grad_() for item in x()])
    assert train(loaded, {"x": x()[0].detach().to(dtype)}, steps=1)


def test_changed_weights_and_buffers_are_current(path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.LSTM(4, 3))
    first = copy.deepcopy(model)
    model[1](model[0](torch.randn(5, 4)))  # moves the running statistics
    with torch.no_grad():
        model[0].weight.fill_(2.5)
    save(model, path)
    loaded = load(path)
    assert_same_module(model, loaded)
    assert not torch.equal(first[1].running_mean, loaded[1].running_mean)


REFUSED: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "a class of this process": (lambda model: replace_linear(model, Adapter), r"linear \(Adapter\).*merge_and_unload"),
    "a subclass with a forward": (
        lambda model: replace_linear(model, lambda _: _Doubled(WIDTH, WIDTH)),
        r"linear \(_Doubled\)",
    ),
    "a forward hook": (lambda model: linear_of(model)[2].register_forward_hook(print), r"linear \(Linear\) has a hook"),
    "a hook on a block": (lambda model: model.register_forward_pre_hook(print), "the model .* has a hook"),
    "a backward hook": (
        lambda model: linear_of(model)[2].register_full_backward_hook(print),
        "hook in _backward_hooks",
    ),
    "a hook of a tensor": (lambda model: linear_of(model)[2].weight.register_hook(print), "linear.weight' has a hook"),
    "a hook after gradients": (
        lambda model: linear_of(model)[2].weight.register_post_accumulate_grad_hook(print),
        "linear.weight' has a hook",
    ),
    "pruned": (lambda model: prune.l1_unstructured(linear_of(model)[2], "weight", 0.5), r"prune\.remove|autograd"),
    "a replaced forward": (
        lambda model: setattr(model, "forward", functools.partial(type(model).forward, model)),
        r"another forward\(\).*unwrap_model",
    ),
    "a replaced forward of a layer": (
        lambda model: setattr(linear_of(model)[2], "forward", lambda x: x),
        r"linear \(Linear\) has another forward\(\)",
    ),
    "a replaced train": (
        lambda model: setattr(model, "train", MethodType(lambda self, _=True: self, model)),
        r"another train\(\)",
    ),
    "a weight of the meta device": (lambda model: linear_of(model)[2].to("meta"), "is on the meta device"),
    "a computed weight": (
        lambda model: linear_of(model)[0].register_buffer("kept", linear_of(model)[2].weight * 2),
        "autograd history",
    ),
}


class _Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        return 2 * super().forward(input)


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_code_of_this_process_is_refused(
    change: Callable[[nn.Module], object], message: str, built: nn.Module, path: Path
) -> None:
    path.write_bytes(b"an older file")
    change(built)
    with pytest.raises(NotPortableError, match=rf"'model' cannot be saved: (?s:.*){message}") as caught:
        save(built, path)
    assert "Remedy: " in str(caught.value)
    assert path.read_bytes() == b"an older file"
    assert list(path.parent.iterdir()) == [path]


def test_wrappers_around_a_model_are_left_out(built: nn.Module, path: Path, tmp_path: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(built)
        parallel(*x()).sum().backward()
        save(torch.compile(parallel, backend="eager"), path)
    finally:
        distributed.destroy_process_group()
    assert_same_runs(built, load(path), x)


def test_parameters_split_over_processes_are_refused(built: nn.Module, path: Path, tmp_path: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        fully_shard(built, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(NotPortableError, match=r"the model \(\w+\) is split over processes\. Remedy: gather"):
            save(built, path)
        whole = get_model_state_dict(built, options=StateDictOptions(full_state_dict=True))
    finally:
        distributed.destroy_process_group()
    torch.manual_seed(0)
    again = rebuilt_with_programs(BLOCKS["SequentialOfBlocks"]())
    again.load_state_dict(whole)
    save(again, path)
    assert_same_runs(again, load(path), x)


def test_a_wrapper_inside_is_refused(built: nn.Module, path: Path) -> None:
    with pytest.raises(NotPortableError, match="compile the rebuilt module"):
        save(nn.Sequential(torch.compile(built, backend="eager")), path)


def test_a_model_inside_another_model_moves(built: nn.Module, path: Path) -> None:
    """A trainer's own container around a built model: the blocks' programs follow to the new paths."""
    model = nn.Sequential(built, nn.Linear(WIDTH, 1))
    save(model, path)
    assert_same_runs(model, load(path), x)


def test_attributes_of_a_graph(path: Path) -> None:
    factory = PolicyConstructorModelFactory(seed=7)
    model = factory.build({"config": layers({"_type_": "nn.Linear", "in_features": 3, "out_features": 2})})
    model.step_count, model.scale, model.log = 3, torch.ones(2), print
    save(model, path)
    loaded = load(path)
    assert (loaded.step_count, loaded.scale.tolist(), hasattr(loaded, "log")) == (3, [1.0, 1.0], False)
    assert loaded.build_info == model.build_info
    assert_same_runs(model, loaded, lambda: [torch.randn(4, 3)])


def test_a_copy_is_a_model(built: nn.Module, path: Path) -> None:
    averaged = copy.deepcopy(built)
    with torch.no_grad():
        for parameter in averaged.parameters():
            parameter.mul_(0.5)
    save({"policy": built, "average": averaged}, path)
    loaded = load(path)
    assert list(loaded) == ["policy", "average"]
    for name, model in (("policy", built), ("average", averaged)):
        assert_same_runs(model, loaded[name], x)


def test_equal_documents_are_written_once(built: nn.Module, path: Path) -> None:
    save(built, path)
    one = path.stat().st_size
    save({str(number): copy.deepcopy(built) for number in range(5)}, path)
    weights = sum(parameter.nbytes for parameter in built.parameters())
    assert path.stat().st_size - one < 5 * (weights + 5000)


def test_a_folder_is_the_same_file_with_a_description(built: nn.Module, path: Path, tmp_path: Path) -> None:
    save(built, path)
    save(built, tmp_path / "hub")
    assert sorted(item.name for item in (tmp_path / "hub").iterdir()) == ["config.json", "model.safetensors"]
    assert (tmp_path / "hub" / "model.safetensors").read_bytes() == path.read_bytes()
    assert_same_runs(built, load(tmp_path / "hub"), x)
    (tmp_path / "link").symlink_to(tmp_path / "hub" / "model.safetensors")  # as in the cache of the Hub
    assert_same_runs(built, load(tmp_path / "link"), x)


def test_safetensors_alone_reads_the_state_dict(path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Linear(5, 7))
    save(model, path)
    other = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Linear(5, 7))
    other.load_state_dict(load_file(path))
    assert_same_state(other, model)


def test_large_tensors_are_mapped_where_they_lie(path: Path) -> None:
    """A loaded weight is not copied: its pages are the file's, until they are written."""
    save(nn.Linear(1024, 1024, bias=False), path)
    before = path.read_bytes()
    first, second = load(path), load(path)
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    assert len(mapped) == 2
    assert first.weight.data_ptr() % ALIGNMENT == 0
    start, _, end = mapped[0].split()[0].partition("-")
    assert any(int(start, 16) <= model.weight.data_ptr() < int(end, 16) for model in (first, second))
    with torch.no_grad():
        first.weight.fill_(1.0)
    assert path.read_bytes() == before
    assert not torch.equal(first.weight, second.weight)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_a_gpu_is_saved_from_there(built: nn.Module, path: Path) -> None:
    expected = copy.deepcopy(built)
    save(built.cuda(), path)
    assert_same_module(expected, load(path))
    assert next(load(path, device="cuda").parameters()).is_cuda


@pytest.mark.parametrize(
    ("models", "error", "message"),
    [
        ({}, ValueError, "0 models"),
        ({"a": 3}, TypeError, "'a' is a int"),
        ({"": nn.ReLU()}, ValueError, "is not the name of a model"),
        ({"a\x1b[2J": nn.ReLU()}, ValueError, "is not the name of a model"),
        ({"a": nn.ModuleDict({"b": nn.Linear(1, 1)}), "a.b": nn.Linear(1, 1)}, NotPortableError, r"'a\.b\.bias'"),
    ],
)
def test_names_of_models(models: Any, error: type[Exception], message: str, path: Path) -> None:
    with pytest.raises(error, match=message):
        save(models, path)
    assert not path.exists()


def test_a_write_that_fails_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(nn.Linear(2, 2), path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    for place in (path, path.parent / "hub"):
        with pytest.raises(StoreError, match="No space left"):
            save(nn.Linear(3, 3), place)
    assert path.read_bytes() == before
    assert [item for item in path.parent.rglob("*") if item.is_file()] == [path]


def test_documents_beyond_the_header(built: nn.Module, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "MAX_HEADER_BYTES", 1000)
    with pytest.raises(FormatError, match=r"at most 1000\. Remedy: save the models in several files"):
        save(built, path)
    assert not path.exists()


def test_names_of_every_script(path: Path) -> None:
    model = nn.Sequential()
    model.add_module("编码器", nn.Linear(2, 2))
    model.note = "é 👩‍🔬"
    save({"политика": model}, path)
    loaded = load(path)["политика"]
    assert_same_module(model, loaded)
    assert list(load_file(path)) == ["политика.编码器.weight", "политика.编码器.bias"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write"):
        save(nn.ReLU(), tmp_path / "file" / "model.mf")
