"""Calls of a model from a real server: names of arguments in tools, and kinds of arguments that the original takes."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model_factory import RemoteModelFactory
from model_factory.errors import ConfigError
from model_factory.program.runtime.program_module import ProgramModule
from model_factory_server import PolicyConstructorModelFactory
from support.compare import assert_same
from support.folders import TEST_PLUGINS
from support.plugin_server import running_with_plugin
from support.server import ServerProcess

Pair = tuple[nn.Module, nn.Module]


@dataclasses.dataclass
class TrainersBatch:
    """The trainer's own class, with the fields of the server's class."""

    obs: Tensor
    mask: Tensor | None = None


@pytest.fixture(scope="module")
def calling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running_with_plugin(tmp_path_factory.mktemp("calling") / "store", "calling") as process:
        yield process


@pytest.fixture
def pair(
    calling: ServerProcess, make_remote: Callable[..., RemoteModelFactory], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Pair]:
    monkeypatch.syspath_prepend(str(TEST_PLUGINS))

    def make(block: str, *inputs: str, **keys: Any) -> Pair:
        steps = [{"call": "module:block", "kwargs": {name: f"${name}" for name in inputs}, "out": "y"}]
        graph = {"inputs": list(inputs), "modules": {"block": {"_type_": block, **keys}}, "steps": steps}
        config = {"schema_version": 1, "model": {"graph": graph | {"outputs": ["y"]}}}
        remote = make_remote(calling.address).build({"config": copy.deepcopy(config)})
        local = PolicyConstructorModelFactory(seed=7, plugins=["calling"]).build({"config": config})
        return remote.eval(), local.eval()

    return make


def parameters_of(method: Any) -> list[tuple[str, Any]]:
    return [(item.name, item.kind) for item in inspect.signature(method).parameters.values()]


def test_signatures_are_those_of_the_original(pair: Callable[..., Pair]) -> None:
    remote, local = pair("calling.Goals", "obs", "goal")
    block, original = (model.graph_modules["block"] for model in (remote, local))
    assert isinstance(block, ProgramModule)
    assert type(block).__name__ == "Goals"
    assert parameters_of(remote.forward) == parameters_of(local.forward)
    assert list(inspect.signature(remote.forward).parameters) == ["obs", "goal"]
    for method in ("forward", "encode"):
        assert parameters_of(getattr(block, method)) == parameters_of(getattr(original, method))
    assert inspect.signature(block.forward).parameters["scale"].default == 2.0
    x = torch.randn(4, 3)
    assert torch.equal(block(x, scale=2.0), original(x))
    assert torch.equal(block.encode(x), original.encode(x))


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_dynamic_shapes_by_name(pair: Callable[..., Pair], *, strict: bool) -> None:
    remote, local = pair("calling.Goals", "obs", "goal")
    given = {"obs": torch.randn(4, 3), "goal": torch.randn(4, 3)}
    if strict:  # one graph records nothing
        remote(**given)
    batch = {0: torch.export.Dim("batch")}
    exported = torch.export.export(remote, (), given, dynamic_shapes={"obs": batch, "goal": batch}, strict=strict)
    assert exported.graph_signature.user_inputs == ("obs", "goal")
    other = {name: torch.randn(6, 3) for name in given}
    assert torch.equal(exported.module()(**other), local(**other))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_traced_inputs_have_the_names(pair: Callable[..., Pair]) -> None:
    remote, local = pair("calling.Goals", "obs", "goal")
    given = {"obs": torch.randn(4, 3), "goal": torch.randn(4, 3)}
    traced = torch.jit.trace(remote, example_kwarg_inputs=given)
    assert [value.debugName() for value in traced.graph.inputs()][1:] == ["obs", "goal"]
    other = {name: torch.randn(6, 3) for name in given}
    assert torch.equal(traced(**other), local(**other))


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_onnx_inputs_have_the_names(pair: Callable[..., Pair], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    remote, _ = pair("calling.Goals", "obs", "goal")
    given = {"obs": torch.randn(4, 3), "goal": torch.randn(4, 3)}
    program = torch.onnx.export(remote, kwargs=given, dynamo=True, verbose=False)
    assert [value.name for value in program.model.graph.inputs] == ["obs", "goal"]


def test_record_of_the_trainer(pair: Callable[..., Pair]) -> None:
    remote, local = pair("calling.Batches", "batch")
    calling: Any = __import__("calling")
    for rows in (4, 6):
        obs, mask = torch.randn(rows, 3), torch.randn(rows, 3)
        found = remote(TrainersBatch(obs, mask))
        expected = local(calling.Batch(obs, mask))
        assert torch.equal(found.obs, expected.obs)
        again = remote(found)  # a result is an argument
        assert torch.equal(again.obs, local(expected).obs)


def test_array_of_numpy(pair: Callable[..., Pair]) -> None:
    remote, local = pair("calling.Arrays", "obs")
    for rows in (4, 6):
        obs = np.random.default_rng(rows).random((rows, 3))
        assert_same(remote(obs), local(obs))


def test_a_config_names_methods(pair: Callable[..., Pair]) -> None:
    remote, local = pair("calling.Goals", "obs", "goal", _methods_=["compute_loss"])
    block, original = (model.graph_modules["block"] for model in (remote, local))
    assert parameters_of(block.compute_loss) == parameters_of(original.compute_loss)
    obs, target = torch.randn(4, 3), torch.randn(4, 3)
    for module in (block, original):
        module.compute_loss(obs, target)["loss"].backward()
    assert_same(block.compute_loss(obs, target), original.compute_loss(obs, target))
    assert_same(block.layer.weight.grad, original.layer.weight.grad)
    assert_same(block.encode(obs), original.encode(obs))  # the class still declares its own


@pytest.mark.parametrize(
    ("type_name", "names", "reason"),
    [
        ("calling.Goals", ["compute_los"], "names 'compute_los', which is not a method of the class"),
        ("calling.Goals", ["state_dict"], "names 'state_dict', a name that rebuilt modules have already"),
        ("nn.ReLU", ["extra_repr"], "'_methods_' is for custom blocks"),
    ],
)
def test_a_wrong_method_is_an_error_of_the_config(
    pair: Callable[..., Pair], type_name: str, names: list[str], reason: str
) -> None:
    with pytest.raises(ConfigError, match=rf"block\._methods_: .*{reason}"):
        pair(type_name, "obs", _methods_=names)


def test_a_trainers_generator_is_drawn_from(pair: Callable[..., Pair]) -> None:
    remote, local = pair("calling.Samples", "obs", "generator")
    obs = torch.randn(4, 3)
    for seed in (1, 2):
        sources = [torch.Generator().manual_seed(seed) for _ in range(2)]
        for _ in range(2):
            results = [model(obs, source) for model, source in zip((remote, local), sources, strict=True)]
            assert_same(*results)
        assert torch.equal(sources[0].get_state(), sources[1].get_state())
