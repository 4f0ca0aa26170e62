"""Uses of a rebuilt model beside calls: hooks, copies, conversions, training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from matrix.blocks import BLOCKS, WIDTH, Inner
from matrix.portability import rebuilt_elsewhere
from matrix.same import assert_same_module, assert_same_runs
from model_factory.describe.describe import describe, named_tensors
from model_factory.descriptor.codec import Programs
from model_factory.descriptor.rebuild import rebuild
from model_factory.descriptor.tree import ProgramNode
from model_factory.program.runtime.program_module import ProgramModule
from model_factory_server.export.exporter import record_model

Model = tuple[nn.Module, nn.Module]


class Policy(nn.Module):
    """Blocks in blocks, called by name and by torch's Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Inner()
        self.body = nn.Sequential(Inner(), nn.Dropout(0.5), Inner())
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.body(self.stem(x)))

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.zeros(2, WIDTH)}]


class NeverTrains(Inner):
    def train(self, mode: bool = True) -> NeverTrains:
        return super().train(mode and False)


@pytest.fixture(scope="module")
def programs() -> Programs:
    return record_model(Policy())


@pytest.fixture
def model(programs: Programs) -> Model:
    """Return the original, and the rebuilt module of a trainer."""
    torch.manual_seed(0)
    original = Policy()
    return original, rebuilt_elsewhere(original, programs)


def inputs() -> list[Tensor]:
    return [torch.randn(3, WIDTH, requires_grad=True)]


def test_names_and_lookups(model: Model) -> None:
    original, rebuilt = model
    assert list(dict(original.named_modules())) == list(dict(rebuilt.named_modules()))
    assert isinstance(rebuilt.get_submodule("body.1"), nn.Dropout)
    assert rebuilt.get_submodule("body.2") is rebuilt.body[2]
    assert rebuilt.get_parameter("stem.linear.weight") is rebuilt.stem.linear.weight
    assert rebuilt.get_buffer("norm.running_mean") is rebuilt.norm.running_mean
    assert repr(rebuilt) == repr(original)
    with pytest.raises(AttributeError, match="nothing"):
        _ = rebuilt.nothing


def test_forward_hooks_see_the_calls(model: Model) -> None:
    seen: dict[int, list[str]] = {}
    for index, module in enumerate(model):
        names = seen[index] = []
        for name in ("", "body", "body.0", "body.2", "norm"):
            target = module.get_submodule(name)
            target.register_forward_pre_hook(lambda *_, name=name, names=names: names.append(f"before {name}"))
            target.register_forward_hook(lambda *_, name=name, names=names: names.append(f"after {name}"))
        module(*inputs())
    assert seen[0] == seen[1]


def test_forward_hook_can_change_the_result(model: Model) -> None:
    results = []
    for module in model:
        torch.manual_seed(3)
        module.body[0].register_forward_hook(lambda _module, _args, output: output * 2)
        module.register_forward_hook(lambda _module, _args, output: output + 1)
        results.append(module(torch.ones(3, WIDTH)))
    assert torch.equal(*results)


def test_backward_hooks_see_the_gradients(model: Model) -> None:
    seen: dict[int, list[Tensor]] = {}
    for index, module in enumerate(model):
        gradients = seen[index] = []
        torch.manual_seed(3)
        for name in ("", "body.0"):
            target = module.get_submodule(name)
            target.register_full_backward_hook(lambda _m, given, got, to=gradients: to.extend([*given, *got]))
            target.register_full_backward_pre_hook(lambda _m, got, to=gradients: to.extend(got))
        module(torch.ones(3, WIDTH, requires_grad=True)).sum().backward()
    assert len(seen[0]) == 6
    assert all(map(torch.equal, seen[0], seen[1]))


def test_requires_grad_and_zero_grad(model: Model) -> None:
    for module in model:
        torch.manual_seed(3)
        module.stem.requires_grad_(False)
        module(*inputs()).sum().backward()
        assert module.stem.linear.weight.grad is None
        assert module.body[0].linear.weight.grad is not None
        module.zero_grad()
        assert module.body[0].linear.weight.grad is None
    assert_same_runs(*model, inputs)


def test_deepcopy_is_independent(model: Model) -> None:
    _, rebuilt = model
    twin = copy.deepcopy(rebuilt)
    assert_same_module_of_blocks(rebuilt, twin)
    with torch.no_grad():
        twin.stem.linear.weight.add_(1)
    assert not torch.equal(twin.stem.linear.weight, rebuilt.stem.linear.weight)
    assert twin.body[0].linear.weight.data_ptr() != rebuilt.body[0].linear.weight.data_ptr()


def test_whole_module_can_be_saved_and_loaded(model: Model, tmp_path: Path) -> None:
    original, rebuilt = model
    torch.save(rebuilt, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert_same_module_of_blocks(rebuilt, loaded)
    assert_same_runs(original, loaded, inputs)


def test_state_dict_goes_both_ways(model: Model) -> None:
    original, rebuilt = model
    other = Policy()
    rebuilt.load_state_dict(other.state_dict())
    original.load_state_dict(rebuilt.state_dict())
    assert_same_module(other, rebuilt)
    assert_same_runs(original, rebuilt, inputs)


@pytest.mark.parametrize(
    "convert",
    [
        lambda module: module.half().float(),
        lambda module: module.double().float(),
        lambda module: module.to(torch.bfloat16).float(),
        lambda module: module.share_memory(),
        lambda module: module.to(memory_format=torch.contiguous_format),
        lambda module: module.apply(nn.Module.extra_repr),
    ],
    ids=["half", "double", "bfloat16", "share_memory", "memory_format", "apply"],
)
def test_conversions(model: Model, convert: Callable[[nn.Module], nn.Module]) -> None:
    original, rebuilt = (convert(module) for module in model)
    assert isinstance(rebuilt, ProgramModule)
    assert_same_module(original, rebuilt)
    assert_same_runs(original, rebuilt, inputs)


def test_runs_in_other_dtypes(model: Model) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        original, rebuilt = (module.to(dtype) for module in model)
        x = torch.randn(3, WIDTH).to(dtype)
        results = []
        for module in (original, rebuilt):
            torch.manual_seed(3)
            results.append(module(x))
        assert results[0].dtype == dtype
        assert torch.equal(*results)


def test_on_meta_it_has_sizes_only(model: Model) -> None:
    _, rebuilt = model
    result = rebuilt.to("meta")(torch.randn(5, WIDTH, device="meta"))
    assert result.is_meta
    assert result.shape == (5, WIDTH)
    assert rebuilt.to_empty(device="cpu").stem.linear.weight.device.type == "cpu"


def test_children_can_be_replaced(model: Model) -> None:
    original, rebuilt = model
    for module in model:
        torch.manual_seed(4)
        module.stem.linear = nn.Sequential(nn.Linear(WIDTH, 2), nn.Linear(2, WIDTH))
        module.body[1] = nn.Identity()
    assert_same_runs(original, rebuilt, inputs)


def test_sync_batch_norm_conversion(model: Model) -> None:
    _, rebuilt = model
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(rebuilt).norm) is nn.SyncBatchNorm


def test_functional_call_and_vmap(model: Model) -> None:
    original, rebuilt = (module.eval() for module in model)
    x = torch.randn(2, 3, WIDTH)
    states = [dict(module.state_dict()) for module in (original, rebuilt)]
    doubled = [{name: item * 2 for name, item in state.items()} for state in states]
    results = [
        torch.func.functional_call(module, state, (x[0],))
        for module, state in zip((original, rebuilt), doubled, strict=True)
    ]
    assert torch.equal(*results)
    assert torch.equal(*[torch.func.vmap(module)(x) for module in (original, rebuilt)])


def test_checkpointing(model: Model) -> None:
    gradients = []
    for module in model:
        torch.manual_seed(3)
        x = torch.ones(3, WIDTH, requires_grad=True)
        torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_training_step(model: Model) -> None:
    for module in model:
        torch.manual_seed(3)
        optimiser = torch.optim.AdamW(module.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            module(torch.randn(4, WIDTH)).square().mean().backward()
            optimiser.step()
    assert_same_module(*model)


def test_frozen_parts_stay_in_eval_mode() -> None:
    original = BLOCKS["Frozen"]()
    rebuilt = rebuilt_elsewhere(original)
    for mode in (True, False, True):
        flags = [{path: item.training for path, item in one.train(mode).named_modules()} for one in (original, rebuilt)]
        assert flags[0] == flags[1]
    assert rebuilt.training
    assert not rebuilt.backbone[1].training
    assert not copy.deepcopy(rebuilt).train().backbone[1].training
    for one in (original, rebuilt):
        one.backbone = nn.Sequential(nn.Dropout())  # the replacement is frozen, too
        assert not one.train().backbone[0].training
    rebuilt.backbone = None
    assert rebuilt.train().training


def test_a_block_that_never_trains() -> None:
    rebuilt = rebuilt_elsewhere(NeverTrains())
    assert not any(item.training for item in rebuilt.train().modules())
    root = describe(NeverTrains()).modules[0]
    assert isinstance(root, ProgramNode)
    assert root.frozen == ("",)


def test_a_rebuilt_module_can_be_described_again() -> None:
    """A second description of a stock tree equals the first."""
    original = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
        nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)),
        nn.LSTM(WIDTH, 3),
    )
    assert describe(rebuilt_elsewhere(original)) == describe(original)
    assert_same_module(original, rebuilt_elsewhere(rebuilt_elsewhere(original)))
    lazy = nn.LazyLinear(3)
    assert describe(rebuilt_elsewhere(lazy)) == describe(lazy)


def test_weight_norm_loads_old_state_dicts() -> None:
    original = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, 3))
    rebuilt = rebuilt_elsewhere(original)
    old = {"bias": torch.ones(3), "weight_g": torch.ones(3, 1), "weight_v": torch.ones(3, WIDTH)}
    for module in (original, rebuilt):
        module.load_state_dict(dict(old))
    assert_same_module(original, rebuilt)
    assert torch.equal(rebuilt.parametrizations.weight.original1, old["weight_v"])


def test_containers_of_two_rebuilds_are_their_own() -> None:
    original = nn.Sequential(nn.LSTM(2, 3))
    original[0].note = [[1]]
    descriptor = describe(original)
    tensors = named_tensors(original, descriptor)
    first, second = (rebuild(descriptor, tensors) for _ in range(2))
    first[0].note[0].append(2)
    assert second[0].note == [[1]]
    assert original[0].note == [[1]]


def assert_same_module_of_blocks(one: nn.Module, other: nn.Module) -> None:
    """Compare the tensors and flags of two rebuilt modules' descriptions."""
    assert list(one.state_dict()) == list(other.state_dict())
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert [type(item) for item in one.modules()] == [type(item) for item in other.modules()]
    assert [item.training for item in one.modules()] == [item.training for item in other.modules()]
