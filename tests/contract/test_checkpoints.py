"""Models that start from a file: one suite over both factories, and what the remote one leaves out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from model_factory import (
    Checkpoint,
    ConfigError,
    FormatError,
    ModelFactory,
    RemoteModelFactory,
    StoreError,
    UnavailableError,
    save,
)
from model_factory.client import fetch
from model_factory.factories import PolicyConstructorModelFactory as DropInFactory
from model_factory_server import PolicyConstructorModelFactory
from support.cases import CASES
from support.compare import assert_same_runs, assert_same_state, train
from support.configs import layers
from support.server import ServerProcess

Make = Callable[..., ModelFactory]
MLP = CASES["mlp"].config
TINY = layers({"_type_": "nn.Linear", "in_features": 3, "out_features": 2})
BLOCK = layers({"_type_": "model_factory.SelfCheck", "width": 3}, {"_type_": "nn.BatchNorm1d", "num_features": 3})


@pytest.fixture(params=["remote", "local", "drop-in"])
def make(
    request: pytest.FixtureRequest, make_remote: Make, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> Make:
    if request.param == "remote":
        return make_remote
    if request.param == "local":
        return PolicyConstructorModelFactory
    monkeypatch.setenv("MODEL_FACTORY_SERVER", server.address)
    return DropInFactory


@pytest.fixture
def trained(tmp_path: Path) -> nn.Module:
    """A model whose weights no seed gives."""
    model = PolicyConstructorModelFactory(seed=3).build({"config": MLP_CONFIG})
    train(model, CASES["mlp"].inputs(2, 3), steps=3)
    return model


MLP_CONFIG = {
    "schema_version": 1,
    "model": {
        "sequential": {
            "layers": [
                {"_type_": "mlp", "dims": [12, 16, 16]},
                {"_type_": "nn.Linear", "in_features": 16, "out_features": 4},
            ]
        }
    },
}


def _safetensors(model: nn.Module, path: Path) -> None:
    save_file(model.state_dict(), path)


def _torch(model: nn.Module, path: Path) -> None:
    torch.save(model.state_dict(), path)


def _old_torch(model: nn.Module, path: Path) -> None:
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)


def _model_file(model: nn.Module, path: Path) -> None:
    save(model, path.with_suffix(".mf"))
    path.with_suffix(".mf").rename(path)


def _folder(model: nn.Module, path: Path) -> None:
    path.mkdir()
    save_file(model.state_dict(), path / "model.safetensors")


@pytest.mark.parametrize("write", [_safetensors, _torch, _old_torch, _model_file, _folder])
def test_a_model_starts_from_a_file(
    write: Callable[[nn.Module, Path], None], make: Make, trained: nn.Module, tmp_path: Path
) -> None:
    write(trained, tmp_path / "trained")
    model = make().build({"config": MLP_CONFIG}, weights=tmp_path / "trained")
    assert_same_state(model, trained)
    assert_same_runs(model, trained, CASES["mlp"].inputs(2, 3))
    before = [item.read_bytes() for item in sorted(tmp_path.rglob("*")) if item.is_file() and "trained" in str(item)]
    train(model, CASES["mlp"].inputs(2, 3), steps=1)
    after = [item.read_bytes() for item in sorted(tmp_path.rglob("*")) if item.is_file() and "trained" in str(item)]
    assert after == before


def test_nothing_random_is_drawn(make: Make, trained: nn.Module, tmp_path: Path) -> None:
    """Two builds without a seed are equal, in buffers and all else."""
    _safetensors(trained, tmp_path / "trained")
    models = [make().build({"config": MLP_CONFIG}, weights=str(tmp_path / "trained")) for _ in range(2)]
    assert_same_state(*models)


def test_names_are_mapped_by_their_beginning(make: Make, trained: nn.Module, tmp_path: Path) -> None:
    state = {f"module.policy.{name}": value for name, value in trained.state_dict().items()}
    save_file({**state, "module.critic.weight": torch.ones(2)}, tmp_path / "trained")
    checkpoint = Checkpoint(tmp_path / "trained", prefixes={"module.policy.": ""})
    assert_same_state(make().build({"config": MLP_CONFIG}, weights=checkpoint), trained)
    assert (checkpoint.missing, checkpoint.unexpected) == ((), ())
    both = Checkpoint(tmp_path / "trained", prefixes={"module.policy.": "", "module.": ""}, strict=False)
    assert_same_state(make().build({"config": MLP_CONFIG}, weights=both), trained)
    assert both.unexpected == ("critic.weight",)


def test_missing_and_unexpected_are_named(
    make: Make, trained: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = trained.state_dict()
    first, *others = state
    save_file({**{name: state[name] for name in others}, "more": torch.ones(2)}, tmp_path / "part")
    theirs = trained.load_state_dict({**{name: state[name] for name in others}, "more": torch.ones(2)}, strict=False)
    message = rf"part does not fit the model; missing: '{first}' \(1\); unexpected: 'more' \(1\)\. Remedy: "
    with pytest.raises(FormatError, match=message):
        make().build({"config": MLP_CONFIG}, weights=tmp_path / "part")
    checkpoint = Checkpoint(tmp_path / "part", strict=False)
    with caplog.at_level(logging.WARNING):
        model = make(seed=7).build({"config": MLP_CONFIG}, weights=checkpoint)
    assert (list(checkpoint.missing), list(checkpoint.unexpected)) == (theirs.missing_keys, theirs.unexpected_keys)
    assert f"missing: '{first}' (1)" in caplog.text
    fresh = PolicyConstructorModelFactory(seed=7).build({"config": MLP_CONFIG}).state_dict()
    assert torch.equal(model.state_dict()[first], fresh[first])
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in others)


def test_an_entry_of_a_training_checkpoint(make: Make, trained: nn.Module, tmp_path: Path) -> None:
    torch.save({"step": 3, "model": trained.state_dict()}, tmp_path / "last.pt")
    with pytest.raises(FormatError, match=r"no tensors at its first level; entries: 'step', 'model'\. .*entry="):
        make().build({"config": MLP_CONFIG}, weights=tmp_path / "last.pt")
    with pytest.raises(FormatError, match="no entry 'modle'; entries: 'step', 'model'"):
        make().build({"config": MLP_CONFIG}, weights=Checkpoint(tmp_path / "last.pt", entry="modle"))
    model = make().build({"config": MLP_CONFIG}, weights=Checkpoint(tmp_path / "last.pt", entry="model"))
    assert_same_state(model, trained)


def test_some_of_several_models(make: Make, trained: nn.Module, tmp_path: Path) -> None:
    _safetensors(trained, tmp_path / "actor")
    models = make(seed=7).build({"actor": MLP_CONFIG, "critic": MLP_CONFIG}, weights={"actor": tmp_path / "actor"})
    assert_same_state(models["actor"], trained)
    fresh = PolicyConstructorModelFactory(seed=7).build({"actor": MLP_CONFIG, "critic": MLP_CONFIG})
    assert_same_state(models["critic"], fresh["critic"])


def test_dtypes_follow_the_build(make: Make, trained: nn.Module, tmp_path: Path) -> None:
    _safetensors(trained, tmp_path / "trained")
    model = make(dtype=torch.bfloat16).build({"config": MLP_CONFIG}, weights=tmp_path / "trained")
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name].bfloat16())


class _Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.abort, ())


def test_wrong_files(make: Make, tmp_path: Path) -> None:
    torch.save({"weight": _Harm()}, tmp_path / "harm")
    (tmp_path / "text").write_text("weights")
    save_file({"weight": torch.ones(3, 2), "bias": torch.ones(2)}, tmp_path / "shape")
    torch.save({"weight": torch.eye(2, 3).to_sparse(), "bias": torch.ones(2)}, tmp_path / "sparse")
    os.mkfifo(tmp_path / "fifo")
    for name, error, message in (
        ("harm", FormatError, "harm cannot be read without code"),
        ("text", FormatError, "neither a safetensors file nor a file of torch.save"),
        (
            "shape",
            FormatError,
            r"1 tensors of other shapes: \S*weight: \[3, 2\] in the file, \[2, 3\] in the model",
        ),
        ("sparse", FormatError, "the layout torch.sparse_coo"),
        ("fifo", FormatError, "fifo is not a file"),
        ("missing", StoreError, "missing cannot be read: No such file"),
    ):
        path = tmp_path / name
        prefix = {"": "graph_modules.layer0."}
        with pytest.raises(error, match=message):
            make().build({"config": TINY}, weights=Checkpoint(path, prefixes=prefix))


def test_wrong_names(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="weights for 'actr'; the models are 'actor'; did you mean 'actor'"):
        make().build({"actor": TINY}, weights={"actr": tmp_path})
    with pytest.raises(ConfigError, match="Remedy: pass a mapping"):
        make().build({"actor": TINY}, weights=tmp_path)
    with pytest.raises(ConfigError, match="Remedy: pass a path"):
        make().build({"config": TINY}, weights={"model": tmp_path})


def test_no_weights_are_fetched(
    make_remote: Callable[..., RemoteModelFactory],
    trained: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _model_file(trained, tmp_path / "trained")
    factory = make_remote(cache_dir=tmp_path / "cache")
    fetched: list[int] = []
    original = fetch.fetch_blob

    def counted(connection: Any, cache: Any, blob: Any, *args: Any, **kwargs: Any) -> Any:
        fetched.append(blob.size)
        return original(connection, cache, blob, *args, **kwargs)

    monkeypatch.setattr("model_factory.client.assembly.fetch_blob", counted)
    model = factory.build({"config": MLP_CONFIG}, weights=tmp_path / "trained")
    assert fetched == []
    assert model.build_info.weights is None
    assert_same_state(model, trained)
    factory.build({"config": MLP_CONFIG}, weights=Checkpoint(tmp_path / "trained", prefixes={"none": ""}, strict=False))
    assert len(fetched) == 1


def test_a_node_builds_again_without_a_server(
    make_remote: Callable[..., RemoteModelFactory], trained: nn.Module, tmp_path: Path
) -> None:
    """Architecture and programs are in the cache; the weights are in the file."""
    _safetensors(trained, tmp_path / "trained")
    cache = tmp_path / "cache"
    make_remote(cache_dir=cache).build({"config": MLP_CONFIG}, weights=tmp_path / "trained")
    offline = make_remote(cache_dir=cache, offline=True)
    assert_same_state(offline.build({"config": MLP_CONFIG}, weights=tmp_path / "trained"), trained)
    with pytest.raises(UnavailableError, match="weights"):
        offline.build({"config": MLP_CONFIG})


def test_the_weights_of_a_model_file_are_mapped(make_remote: Callable[..., RemoteModelFactory], tmp_path: Path) -> None:
    config = {"config": layers({"_type_": "nn.Linear", "in_features": 512, "out_features": 512, "bias": False})}
    save(PolicyConstructorModelFactory(seed=3).build(config), tmp_path / "wide.mf")
    model = make_remote(cache_dir=tmp_path / "cache").build(config, weights=tmp_path / "wide.mf")
    places = [
        line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if "wide.mf" in line
    ]
    weight = next(model.parameters())
    assert any(int(start, 16) <= weight.data_ptr() < int(end, 16) for start, end in places)


def test_programs_are_recorded_for_a_model_from_a_file(
    make_remote: Callable[..., RemoteModelFactory], tmp_path: Path
) -> None:
    block = layers({"_type_": "model_factory.SelfCheck", "width": 3})
    local = PolicyConstructorModelFactory(seed=3).build({"config": block})
    _safetensors(local, tmp_path / "block")
    remote = make_remote(cache_dir=tmp_path / "cache").build({"config": block}, weights=tmp_path / "block")
    x = torch.randn(2, 5, 5, 3)  # a rank that the build has not recorded
    assert torch.equal(remote(x), local(x))
