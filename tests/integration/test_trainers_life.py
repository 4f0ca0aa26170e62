"""What trainers do with models, done to rebuilt ones, with the original beside them."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from model_factory import GraphModel
from support.cases import CASES, Case
from support.compare import assert_same, assert_same_runs, assert_same_state, loss_of, map_tensors, observe, train
from support.server import ServerProcess

MakePair = Callable[[Case | str], tuple[nn.Module, nn.Module]]

TESTS = Path(__file__).parents[1]
RANKS = 2
PAIR_SEED = 7


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def pair(case: Case, make_pair: MakePair) -> tuple[nn.Module, nn.Module]:
    return make_pair(case)


def reinitialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.constant_(module.bias, 0.125)
    elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
        nn.init.uniform_(module.weight)


def test_apply_reaches_layers_by_their_type(pair: tuple[nn.Module, nn.Module]) -> None:
    remote, local = pair
    before = copy.deepcopy(remote.state_dict())
    for model in pair:
        torch.manual_seed(17)
        model.apply(reinitialise)
    assert_same_state(remote, local)
    changed = [key for key, value in remote.state_dict().items() if not value.equal(before[key])]
    assert len(changed) >= sum(isinstance(module, nn.Linear | nn.Conv2d) for module in local.modules()) > 0


def test_sync_batch_norm_converts_as_many_layers(make_pair: MakePair) -> None:
    remote, local = map(nn.SyncBatchNorm.convert_sync_batchnorm, make_pair("conv_graph"))
    remotely, locally = (
        [name for name, module in model.named_modules() if type(module) is nn.SyncBatchNorm]
        for model in (remote, local)
    )
    assert remotely == locally
    assert len(remotely) == 8
    assert not any(isinstance(module, nn.BatchNorm2d) for module in remote.modules())
    assert_same_state(remote, local)
    inputs = CASES["conv_graph"].inputs(2, 3)
    assert_same_runs(remote.eval(), local.eval(), inputs)


@pytest.mark.parametrize(
    ("name", "way"), [("info_embedder", "each rank builds"), ("conv_graph", "one builds and pickles")]
)
def test_ddp_over_two_processes(
    name: str, way: str, make_pair: MakePair, server: ServerProcess, tmp_path: Path
) -> None:
    remote, local = make_pair(name)
    from_server = way == "each rank builds"
    if not from_server:
        (tmp_path / "model.pickle").write_bytes(pickle.dumps(remote))
    command = [sys.executable, "-m", "support.ddp_worker", "--case", name, "--folder", tmp_path]
    command += ["--ranks", str(RANKS), "--seed", str(PAIR_SEED)] + (["--server", server.address] if from_server else [])
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    ranks = [
        subprocess.Popen([*command, "--rank", str(rank)], env=os.environ | {"PYTHONPATH": path}, cwd=tmp_path)
        for rank in range(RANKS)
    ]
    try:
        assert [rank.wait(120) for rank in ranks] == [0] * RANKS
    finally:
        for rank in ranks:
            rank.kill()
    found = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(RANKS)]

    halves = []
    for rank in range(RANKS):
        model = copy.deepcopy(local)
        torch.manual_seed(rank)
        loss = loss_of(model(**CASES[name].inputs(2, 4, seed=rank)))
        loss.backward()
        assert_same(found[rank]["loss"], loss.detach(), f"loss of rank {rank}")
        halves.append({key: item.grad for key, item in model.named_parameters()})
    for key, gradient in halves[0].items():
        expected = gradient / RANKS + halves[1][key] / RANKS
        for rank in range(RANKS):
            assert_same(found[rank][f"grad/{key}"], expected, f"{key} of rank {rank}")
    for key in dict(local.named_parameters()):
        assert_same(found[0][f"state/{key}"], found[1][f"state/{key}"], key)
        assert not found[0][f"state/{key}"].equal(local.state_dict()[key]), f"{key} was not trained"


def test_deepcopy_is_equal_and_independent(case: Case, pair: tuple[nn.Module, nn.Module]) -> None:
    remote, local = pair
    twin = copy.deepcopy(remote)
    assert isinstance(twin, GraphModel)
    assert_same_state(twin, local)
    inputs = case.inputs(3, 2)
    train(remote, inputs, steps=2)
    assert_same_state(twin, local)
    assert_same_runs(twin, local, inputs)


def test_pickle_round_trip(case: Case, pair: tuple[nn.Module, nn.Module]) -> None:
    remote, local = pair
    twin = pickle.loads(pickle.dumps(remote))  # noqa: S301  our own bytes
    assert_same_state(twin, local)
    assert_same_runs(twin, local, case.inputs(3, 2))


@pytest.mark.parametrize("direction", ["remote to local", "local to remote"])
@pytest.mark.parametrize("format_name", ["torch", "safetensors"])
def test_state_dict_through_a_file(
    case: Case, pair: tuple[nn.Module, nn.Module], direction: str, format_name: str, tmp_path: Path
) -> None:
    source, target = pair if direction == "remote to local" else reversed(pair)
    inputs = case.inputs(3, 2)
    train(source, inputs, steps=2)
    path = tmp_path / "state"
    if format_name == "torch":
        torch.save(source.state_dict(), path)
        state = torch.load(path, weights_only=True)
    else:
        save_file(dict(source.state_dict()), path)
        state = load_file(path)
    result = target.load_state_dict(state, strict=True)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert_same_state(target, source)
    assert_same_runs(target.eval(), source.eval(), inputs)


def test_training_goes_on_from_a_checkpoint_of_the_other(case: Case, pair: tuple[nn.Module, nn.Module]) -> None:
    remote, local = pair
    inputs = case.inputs(3, 2)
    train(local, inputs, steps=3)
    remote.load_state_dict(local.state_dict())
    assert train(remote, inputs, steps=3) == train(local, inputs, steps=3)


def test_freezing_a_part(make_pair: MakePair) -> None:
    remote, local = make_pair("info_embedder")
    frozen = [name for name, _ in remote.graph_modules["embedder"].encoder.named_parameters()]
    for model in (remote, local):
        model.graph_modules["embedder"].encoder.requires_grad_(False)
    before = copy.deepcopy(remote.state_dict())
    inputs = CASES["info_embedder"].inputs(3, 2)
    assert train(remote, inputs, steps=3) == train(local, inputs, steps=3)
    assert_same_state(remote, local)
    changed = {key for key, value in remote.state_dict().items() if not value.equal(before[key])}
    assert changed
    assert frozen
    assert not changed & {f"graph_modules.embedder.encoder.{name}" for name in frozen}


def test_train_and_eval_reach_every_module(pair: tuple[nn.Module, nn.Module]) -> None:
    remote, _ = pair
    assert remote.eval() is remote
    assert not any(module.training for module in remote.modules())
    remote.train()
    assert all(module.training for module in remote.modules())


def test_a_part_may_be_in_another_mode(make_pair: MakePair) -> None:
    remote, local = make_pair("info_embedder")
    for model in (remote, local):
        model.train()
        model.graph_modules["embedder"].encoder.eval()
    assert_same_runs(remote, local, CASES["info_embedder"].inputs(3, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_to_another_dtype(case: Case, pair: tuple[nn.Module, nn.Module], dtype: torch.dtype, training: bool) -> None:
    remote, local = (model.to(dtype).train(training) for model in pair)
    assert {item.dtype for item in remote.parameters()} == {dtype}
    inputs = map_tensors(case.inputs(3, 2), lambda leaf: leaf.to(dtype))
    assert_same_runs(remote, local, inputs)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_bf16_autocast(case: Case, pair: tuple[nn.Module, nn.Module], training: bool) -> None:
    remote, local = (model.train(training) for model in pair)
    inputs = case.inputs(3, 2)
    plain = [observe(model, inputs)["outputs"] for model in (remote, local)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = observe(remote, inputs)
        assert_same(cast, observe(local, inputs))
    with pytest.raises(AssertionError):
        assert_same(cast["outputs"], plain[0])  # or autocast did nothing


@pytest.mark.parametrize("name", ["info_embedder", "conv_graph"])
def test_a_whole_model_is_checkpointed(name: str, make_pair: MakePair) -> None:
    inputs = CASES[name].inputs(3, 2)
    plain, checkpointed = (model.eval() for model in make_pair(name))
    loss_of(plain(**inputs)).backward()
    loss_of(checkpoint(checkpointed, use_reentrant=False, **inputs)).backward()
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    assert_same({name: parameter.grad for name, parameter in checkpointed.named_parameters()}, gradients)
    assert any(gradient is not None for gradient in gradients.values())


def test_graph_modules_by_name_are_callable_alone(make_pair: MakePair) -> None:
    remote, local = (model.eval() for model in make_pair("conv_graph"))
    assert list(remote.graph_modules) == ["stem", "twice", "down", "drop", "tower"]
    images = torch.randn(2, 3, 6, 7)
    assert_same(remote.graph_modules["stem"](images), local.graph_modules["stem"](images))
    assert_same(remote.graph_modules["stem"](x=images), local.graph_modules["stem"](x=images))


def test_a_replaced_child_takes_effect(make_pair: MakePair) -> None:
    class Doubled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.inner(x)

    remote, local = make_pair("info_embedder")
    for model in (remote, local):
        projection = model.graph_modules["embedder"].proprio_projection
        projection[1] = Doubled(projection[1])
    assert_same_runs(remote, local, CASES["info_embedder"].inputs(3, 2))


def test_hooks_fire(make_pair: MakePair) -> None:
    seen: dict[str, list[torch.Tensor]] = {"remote": [], "local": []}
    inputs = CASES["info_embedder"].inputs(2, 2)
    for (who, calls), model in zip(seen.items(), make_pair("info_embedder"), strict=True):
        block = model.eval().graph_modules["embedder"]
        for module in (block, block.proprio_projection, block.proprio_projection[1]):
            module.register_forward_hook(lambda _module, _args, out, calls=calls: calls.extend(map_leaves(out)))
        model(**inputs)
        assert len(calls) == 3, who
    assert_same(seen["remote"], seen["local"])


def map_leaves(value: object) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    map_tensors(value, found.append)
    return found


def test_torch_compile_without_a_code_generator(case: Case, pair: tuple[nn.Module, nn.Module]) -> None:
    remote, local = (model.eval() for model in pair)
    torch.compiler.reset()
    compiled = torch.compile(remote, backend="eager")
    for batch, seq in [(3, 2), (2, 5)]:
        inputs = case.inputs(batch, seq)
        with torch.no_grad():
            assert_same(compiled(**inputs), local(**inputs))


# torch warns about its own imports.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_torch_compile_of_one_component_with_inductor(make_pair: MakePair) -> None:
    remote, local = make_pair("mlp")
    torch.compiler.reset()
    remote.eval().compile(fullgraph=True)
    local.eval()
    inputs = CASES["mlp"].inputs(3, 2)
    outputs, expected = remote(**inputs), local(**inputs)
    torch.testing.assert_close(outputs, expected)
    loss_of(outputs).backward()
    loss_of(expected).backward()
    for ours, theirs in zip(remote.parameters(), local.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
