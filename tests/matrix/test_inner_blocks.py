"""Blocks inside blocks: what a trainer does with an inner block does the same in a rebuilt model.

Each test runs a tool on the original beside the rebuilt model, and compares bit for bit.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from matrix.portability import rebuilt_elsewhere, rebuilt_with_programs
from matrix.same import assert_same_runs
from model_factory.describe.describe import describe
from model_factory.descriptor.architecture import Architecture, Portability
from model_factory.descriptor.codec import Programs, decode_programs, encode_programs
from model_factory.errors import CallSignatureError
from model_factory.program.ir import ModuleCall, OpCall
from model_factory.program.runtime.program_module import ProgramModule
from model_factory_server.export.exporter import record_model
from model_factory_server.export.kinds import recorded_kinds

# Torch's own hint of a compiled block whose input is no leaf, the same for the original.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

WIDTH, HEADS = 8, 2
Pair = tuple[nn.Module, nn.Module]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class Layer(nn.Module):
    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index  # no forward reads the number
        self.norm, self.attention = nn.LayerNorm(WIDTH), Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Dropout(0.25), nn.Linear(16, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        return x + self.mlp(x)


class Encoder(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(5, WIDTH)
        self.layers = nn.ModuleList([Layer(index) for index in range(depth)])
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.randn(2, 3, 5)}]


@pytest.fixture(scope="module")
def programs() -> Programs:
    return record_model(Encoder())


@pytest.fixture
def pair(programs: Programs) -> Pair:
    torch.manual_seed(0)
    original = Encoder()
    return original, rebuilt_elsewhere(original, programs)


def inputs() -> list[Tensor]:
    return [torch.randn(4, 6, 5, requires_grad=True)]


def layers(model: nn.Module) -> Any:
    return model.get_submodule("layers")


def test_outputs_gradients_and_random_numbers(pair: Pair) -> None:
    assert_same_runs(*pair, inputs)


def test_each_inner_block_has_a_program(programs: Programs) -> None:
    called = dict(programs)
    assert list(called) == ["", *(f"layers.{i}{inner}" for i in range(3) for inner in ("", ".attention"))]
    steps = called[""].program.steps
    assert [item.path for item in steps if isinstance(item, ModuleCall)] == [
        *("embed", "layers.0", "layers.1", "layers.2", "head")
    ]
    assert not any(isinstance(item, OpCall) and "attention" in item.name for item in steps)


def test_hooks_fire_on_inner_blocks(pair: Pair) -> None:
    seen: list[list[Any]] = []
    for model in pair:
        found: list[Any] = []
        for name in ("layers.0", "layers.1.attention"):
            block = model.get_submodule(name)
            block.register_forward_pre_hook(lambda _m, args, to=found: to.append(args[0].detach()))
            block.register_forward_hook(lambda _m, _args, out: out * 2)
            block.register_full_backward_hook(lambda _m, given, got, to=found: to.extend([*given, *got]))
        torch.manual_seed(3)
        found.append(model(torch.ones(2, 3, 5, requires_grad=True)))
        found[-1].sum().backward()
        seen.append(found)
    assert len(seen[0]) == len(seen[1]) == 7
    assert all(map(torch.equal, *seen))


def test_feature_extraction(pair: Pair) -> None:
    features: list[dict[str, Tensor]] = []
    for model in pair:
        found: dict[str, Tensor] = {}
        for name in ("layers.0.attention", "layers.2"):
            block = model.get_submodule(name)
            block.register_forward_hook(lambda _m, _a, out, name=name, to=found: to.update({name: out}))
        model.eval()(torch.ones(2, 3, 5))
        features.append(found)
    assert all(torch.equal(features[0][name], features[1][name]) for name in ("layers.0.attention", "layers.2"))


class Halved(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) / 2


@pytest.mark.parametrize("name", ["1", "2.attention"])
def test_a_replaced_or_wrapped_inner_block_takes_effect(name: str, pair: Pair) -> None:
    before = [model.eval()(torch.ones(2, 3, 5)) for model in pair]
    for model in pair:
        owner, _, child = f"layers.{name}".rpartition(".")
        block = model.get_submodule(f"layers.{name}")
        setattr(model.get_submodule(owner), child, Halved(block))
    assert_same_runs(*pair, inputs)
    for model in pair:
        setattr(layers(model), "0", nn.Identity())
    assert_same_runs(*pair, inputs)
    assert not torch.equal(pair[1].eval()(torch.ones(2, 3, 5)), before[1])


class Lora(nn.Module):
    """An adapter around a block, with a trained copy of the block, as ``modules_to_save`` of LoRA keeps."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.saved = block.requires_grad_(False), copy.deepcopy(block).requires_grad_(True)
        self.down, self.up = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.saved(x) + self.up(self.down(x))


def test_an_adapter_around_an_inner_block(pair: Pair) -> None:
    for model in pair:
        torch.manual_seed(5)
        layers(model)[1].attention = Lora(layers(model)[1].attention)
    assert_same_runs(*pair, inputs)
    for model in pair:
        assert layers(model)[1].attention.block.qkv.weight.grad is None
        assert layers(model)[1].attention.saved.qkv.weight.grad is not None


class Checkpointed(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = checkpoint(self.block, x, use_reentrant=False)
        return found


def saved_bytes(model: nn.Module) -> int:
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(*inputs())
    return sum(sizes)


def test_checkpointing_of_inner_blocks_saves_memory(pair: Pair) -> None:
    saved = []
    for model in pair:
        plain = saved_bytes(model)
        for index in range(3):
            layers(model)[index] = Checkpointed(layers(model)[index])
        saved.append((plain, saved_bytes(model)))
    assert_same_runs(*pair, inputs)
    for plain, checkpointed in saved:
        assert checkpointed < plain / 3
    assert saved[1][1] <= saved[0][1] * 1.1


def test_each_inner_block_can_be_compiled(pair: Pair) -> None:
    for model in pair:
        for layer in layers(model):
            layer.compile(backend="eager", fullgraph=True)
    assert_same_runs(*pair, inputs)


def test_the_whole_model_can_be_compiled_with_nested_programs(pair: Pair) -> None:
    compiled = [torch.compile(model.eval(), backend="eager", fullgraph=True) for model in pair]
    x = torch.randn(4, 6, 5)
    assert torch.equal(*[model(x) for model in compiled])


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_onnx_of_nested_programs(pair: Pair) -> None:
    exported = [
        torch.onnx.export(
            model.eval(), kwargs={"x": torch.randn(4, 6, 5)}, dynamic_shapes={"x": {0: "batch"}}, dynamo=True
        )
        for model in pair
    ]
    x = torch.randn(7, 6, 5)
    assert [[value.name for value in program.model.graph.inputs] for program in exported] == [["x"], ["x"]]
    results = [program(x=x)[0] for program in exported]
    assert torch.equal(*results)
    torch.testing.assert_close(results[1], pair[1](x))


def test_models_of_different_classes_can_be_compiled_one_after_another() -> None:
    """``torch.compile`` gives up on code that it compiled more often than its limit, here once."""
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=1):
        for name in ("First", "Second", "Third"):
            original = type(name, (Layer,), {"example_inputs": lambda _: [{"x": torch.zeros(2, 3, WIDTH)}]})(0).eval()
            rebuilt, x = rebuilt_with_programs(original).eval(), torch.randn(2, 3, WIDTH)
            assert torch.equal(torch.compile(rebuilt, backend="eager", fullgraph=True)(x), original(x))


def test_export_of_nested_programs(pair: Pair) -> None:
    x = torch.randn(4, 6, 5)
    results = [torch.export.export(model.eval(), (x,)).module()(x) for model in pair]
    assert torch.equal(*results)


def test_jit_trace_of_nested_programs(pair: Pair) -> None:
    x = torch.randn(4, 6, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own hints on traced sizes, and on TorchScript
        traced = [torch.jit.trace(model.eval(), (x,), check_trace=False) for model in pair]
        assert torch.equal(*[model(x) for model in traced])
    assert hasattr(traced[1].layers, "1")


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        yield dist.device_mesh.init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def test_fully_shard_per_inner_block(pair: Pair, mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415  not in every build of torch

    losses = []
    for model in pair:
        for layer in layers(model):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.manual_seed(3)
        for _ in range(3):
            loss = model(torch.randn(4, 6, 5)).square().mean()
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        losses.append(loss.detach())
    assert torch.equal(*losses)


def test_moving_averages_copies_and_files(pair: Pair, tmp_path: Path) -> None:
    averages = [torch.optim.swa_utils.AveragedModel(model) for model in pair]
    for model, average in zip(pair, averages, strict=True):
        torch.manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape))
        average.update_parameters(model)
    assert_same_runs(*averages, inputs)
    torch.save(pair[1], tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert_same_runs(pair[0], loaded, inputs)
    assert_same_runs(pair[0], copy.deepcopy(pair[1]), inputs)


def test_equal_layers_are_recorded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[str] = []
    record_modes = recorded_kinds.record_modes

    def counted(block: nn.Module, *args: Any) -> Any:
        recorded.append(type(block).__name__)
        return record_modes(block, *args)

    monkeypatch.setattr(recorded_kinds, "record_modes", counted)
    one, many = (encode_programs(record_model(Encoder(depth))) for depth in (1, 24))
    assert sorted(recorded) == sorted(["Encoder", "Layer", "Attention"] * 2)
    assert len(many) <= 2 * len(one)
    decoded = decode_programs(many)
    assert len({id(item) for path, item in decoded if path.endswith("attention")}) == 1
    assert len(decoded) == 1 + 2 * 24


class Scaled(nn.Module):
    """A block that reads an attribute."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.layer = scale, nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale


class Scales(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Scaled(1.0), Scaled(2.0), Scaled(1.0)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.randn(2, WIDTH)}]


def flat() -> list[Tensor]:
    return [torch.randn(3, WIDTH, requires_grad=True)]


def test_blocks_with_other_attributes_are_another_kind() -> None:
    model = Scales()
    found = dict(record_model(model))
    assert found["layers.0"] is found["layers.2"]
    assert found["layers.0"] != found["layers.1"]
    assert_same_runs(model, rebuilt_with_programs(model), flat)


class Global(Scaled):
    """A block that reads more than its attributes: equal blocks differ by the number of the block."""

    numbers: ClassVar[dict[int, float]] = {}

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.numbers[id(self)]


def test_a_block_that_does_something_else_is_recorded_again() -> None:
    model = Scales()
    model.layers = nn.ModuleList([Global(1.0), Global(1.0), Global(1.0)])
    Global.numbers = {id(layer): 1.0 + index for index, layer in enumerate(model.layers)}
    rebuilt = rebuilt_with_programs(model)
    assert_same_runs(model, rebuilt, flat)


class Sized(nn.Module):
    def forward(self, x: Tensor, count: int) -> Tensor:
        return x.narrow(1, 0, count) * 2


class Named(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"x": x * 2, "name": "double"}


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(1)
        return x * len(self.calls)


class Same(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * 2 if x is y else x * y


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> None:
        x.mul_(2)


class Uses(nn.Module):
    """A block with an inner block, called in one way."""

    def __init__(self, inner: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.call, self.layer = inner, call, nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.inner, self.layer(x))

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.randn(2, WIDTH)}]


def after(inner: nn.Module, x: Tensor) -> Tensor:
    x = x * 1
    inner(x)
    return x


INLINED: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], Tensor], str]] = {
    "a size as argument": (Sized, lambda inner, x: inner(x, x.shape[1]), "a number that depends on sizes"),
    "a text in the result": (Named, lambda inner, x: inner(x)["x"], "its result has a str"),
    "no result": (Nothing, after, "its result has a NoneType"),
    "one tensor twice": (Same, lambda inner, x: inner(x, x), "one tensor is two of its arguments"),
}


@pytest.mark.parametrize("how", INLINED)
def test_a_block_that_cannot_stand_alone_is_part_of_the_caller(how: str) -> None:
    make, call, reason = INLINED[how]
    model = Uses(make(), call)
    programs = record_model(model)
    assert [path for path, _ in programs] == [""]
    ((path, text),) = programs[0][1].inlined
    assert path == "inner"
    assert reason in text
    rows = {row.path: row for row in Architecture(describe(model), Portability(programs=programs, refused={})).modules}
    assert rows["inner"].reason == f"part of the program of the model: {text}"
    assert_same_runs(model, rebuilt_elsewhere(model, programs), flat)


CHANGES: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "a hook": (lambda model: model.inner.register_forward_hook(print), "has a hook"),
    "a backward hook": (lambda model: model.inner.register_full_backward_hook(print), "has a hook"),
    "a wrapper": (lambda model: setattr(model, "inner", Halved(model.inner)), "was replaced by a Halved"),
    "a compiled block": (lambda model: model.inner.compile(backend="eager"), "was compiled"),
    "another forward": (lambda model: setattr(model.inner, "forward", print), "has another forward"),
    "no block": (lambda model: setattr(model, "inner", None), "was removed"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_without_effect_is_an_error(change: str) -> None:
    make, call, _ = INLINED["a size as argument"]
    rebuilt = rebuilt_with_programs(Uses(make(), call))
    apply, text = CHANGES[change]
    rebuilt(torch.ones(2, WIDTH))
    apply(rebuilt)
    with pytest.raises(CallSignatureError, match=f"the block 'inner' {text}.*a number that depends.*Remedy: "):
        rebuilt(torch.ones(2, WIDTH))


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x - 1


def test_decisions_inside_are_programs_of_the_inner_block() -> None:
    model = Uses(Decides(), lambda inner, x: inner(x))
    programs = record_model(model)
    outcomes = {path: [item.program.outcomes() for at, item in programs if at == path] for path, _ in programs}
    assert outcomes[""] == [()]
    assert sorted(outcomes["inner"]) == [(False,), (True,)]
    rebuilt = rebuilt_elsewhere(model, programs)
    for sign in (1, -1):
        x = torch.full((2, WIDTH), 3.0 * sign)
        with torch.no_grad():
            for one in (model, rebuilt):
                one.layer.weight.copy_(torch.eye(WIDTH))
        assert torch.equal(model(x), rebuilt(x))


class Modes(nn.Module):
    """A block whose result has another form in training."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x * 2, x + 1) if self.training else (x * 2,)


class Lists(nn.Module):
    def forward(self, items: list[Tensor]) -> dict[str, Any]:
        return {"a": items[0], "b": (None, items[1].transpose(0, 1).contiguous().transpose(0, 1))}


MODE_CALLS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], Tensor]]] = {
    "a result by mode": (Modes, lambda inner, x: sum(inner(x), x)),
    "no_grad": (lambda: Scaled(2.0), lambda inner, x: x + torch.no_grad()(inner)(x)),
    "no autocast": (lambda: Scaled(2.0), lambda inner, x: torch.autocast("cpu", enabled=False)(inner)(x)),
    "checkpoint": (lambda: Scaled(2.0), lambda inner, x: checkpoint(inner, x, use_reentrant=False)),
    "twice": (lambda: Scaled(2.0), lambda inner, x: inner(inner(x))),
    "in place": (lambda: nn.Sequential(Scaled(2.0)), lambda inner, x: inner(x).mul_(2) + x),
    "a list": (Lists, lambda inner, x: inner([x, x + 1])["b"][1]),
}


class Asks(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (self.scale if torch.is_grad_enabled() else -1)


@pytest.mark.parametrize("without", [False, True])
def test_a_question_about_gradients_is_a_condition_of_the_inner_block(without: bool) -> None:
    model = Uses(Asks(2.0), lambda inner, x: x + (torch.no_grad()(inner)(x) if without else inner(x)))
    programs = record_model(model)
    assert [(path, item.modes) for path, item in programs if not path] == [("", ())]
    assert {item.modes for path, item in programs if path == "inner"} == {(("grad", True),), (("grad", False),)}
    rebuilt = rebuilt_elsewhere(model, programs)
    assert_same_runs(model, rebuilt, flat)
    with torch.no_grad():
        assert torch.equal(model(torch.ones(2, WIDTH)), rebuilt(torch.ones(2, WIDTH)))


def test_an_inlined_block_does_not_break_one_graph() -> None:
    make, call, _ = INLINED["a size as argument"]
    rebuilt = rebuilt_with_programs(Uses(make(), call))
    x = torch.randn(2, WIDTH)
    assert torch.equal(torch.compile(rebuilt, backend="eager", fullgraph=True)(x), rebuilt(x))


class Shares(nn.Module):
    """Two blocks with one inner block."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Uses(Scaled(2.0), lambda inner, x: inner(x))
        self.second = Uses(self.first.inner, lambda inner, x: inner(x) * 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.randn(2, WIDTH)}]


def test_one_block_inside_two_blocks_has_one_program() -> None:
    model = Shares()
    programs = record_model(model)
    assert [path for path, _ in programs] == ["", "first", "first.inner", "second"]
    assert_same_runs(model, rebuilt_elsewhere(model, programs), flat)


@pytest.mark.parametrize("how", MODE_CALLS)
def test_ways_of_a_call(how: str) -> None:
    make, call = MODE_CALLS[how]
    model = Uses(make(), call)
    assert_same_runs(model, rebuilt_with_programs(model), flat)


def test_state_of_the_owner_is_seen() -> None:
    """A list that the inner block and its owner share is no part of a program of the inner block."""

    class Reads(nn.Module):
        def __init__(self, shared: dict[str, float]) -> None:
            super().__init__()
            self.shared = shared

        def forward(self, x: Tensor) -> Tensor:
            return x * self.shared["scale"]

    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = {"scale": 1.0}
            self.inner, self.layer = Reads(self.shared), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor, big: bool = True) -> Tensor:
            self.shared["scale"] = 5.0 if big else 2.0
            return self.inner(self.layer(x))

        def example_inputs(self) -> list[dict[str, Any]]:
            return [{"x": torch.randn(2, WIDTH)}, {"x": torch.randn(2, WIDTH), "big": False}]

    model = Writes()
    rebuilt = rebuilt_with_programs(model)
    x = torch.randn(3, WIDTH)
    for big in (True, False, True):
        assert torch.equal(model(x, big), rebuilt(x, big))


def test_rebuilt_inner_blocks_run_alone(pair: Pair) -> None:
    x = torch.randn(2, 5, WIDTH)
    original, rebuilt = (model.eval().get_submodule("layers.1") for model in pair)
    assert isinstance(rebuilt, ProgramModule)
    assert torch.equal(original(x), rebuilt(x))
