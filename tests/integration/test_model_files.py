"""Models of a server in files: policies and small models, trained, saved, and loaded by a process without a server."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from integration.test_policies import CONFIGS as POLICIES
from integration.test_policies import SEED, inputs
from model_factory import BuildInfo, CallSignatureError, RemoteModelFactory, load, save
from model_factory.cli.main import main
from support.cases import CASES, Case
from support.compare import assert_same, assert_same_runs, assert_same_state, train
from support.server import COMMAND, ServerProcess

MakePair = Callable[[Case | str], tuple[nn.Module, nn.Module]]
MakeRemote = Callable[..., RemoteModelFactory]


@pytest.fixture(scope="module")
def policies(plugin_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, nn.Module]:
    folder = tmp_path_factory.mktemp("policies")
    with RemoteModelFactory(plugin_server.address, seed=SEED, cache_dir=folder) as factory:
        return factory.build(POLICIES)  # type: ignore[return-value]


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_goes_on_training_from_a_file(name: str, policies: dict[str, nn.Module], tmp_path: Path) -> None:
    model = policies[name]
    train(model, inputs(name, 2, 4), steps=3)
    save(model, tmp_path / "policy.mf")
    loaded = load(tmp_path / "policy.mf")
    assert isinstance(loaded, nn.Module)
    assert_same_state(loaded, model)
    for training in (False, True):
        for batch, seq in ((2, 3), (3, 9)):
            assert_same_runs(loaded.train(training), model.train(training), inputs(name, batch, seq))
    assert train(loaded, inputs(name, 2, 4)) == train(model, inputs(name, 2, 4))
    assert BuildInfo.of(loaded) == BuildInfo.of(model)


def test_policies_in_one_file(policies: dict[str, nn.Module], tmp_path: Path) -> None:
    save(policies, tmp_path / "policies.mf")
    loaded = load(tmp_path / "policies.mf")
    assert isinstance(loaded, dict)
    assert list(loaded) == list(policies)
    for name, model in loaded.items():
        assert_same_state(model, policies[name])
    some = load(tmp_path / "policies.mf", components=["lstm", "act"])
    assert list(some) == ["lstm", "act"]


@pytest.mark.parametrize("name", CASES)
def test_both_factories_save_equal_models(name: str, make_pair: MakePair, tmp_path: Path) -> None:
    remote, local = make_pair(name)
    loaded = []
    for model, path in ((remote, tmp_path / "remote.mf"), (local, tmp_path / "local.mf")):
        save(model, path)
        loaded.append(load(path))
        assert_same_state(loaded[-1], local)
    for training in (False, True):
        for model in loaded:
            original = copy.deepcopy(local)
            assert_same_runs(copy.deepcopy(model).train(training), original.train(training), CASES[name].inputs(3, 2))


def test_a_call_recorded_later_is_saved(server: ServerProcess, make_remote: MakeRemote, tmp_path: Path) -> None:
    block = {"_type_": "model_factory.SelfCheck", "width": 3}
    config = {"config": {"schema_version": 1, "model": {"sequential": {"layers": [block]}}}}
    model = make_remote(server.address, cache_dir=tmp_path / "cache").build(config)
    save(model, tmp_path / "before.mf")
    given = torch.randn(2, 5, 5, 3)
    expected = model(given)  # a rank that the build has not recorded
    save(model, tmp_path / "after.mf")
    assert_same(load(tmp_path / "after.mf")(given), expected)
    with pytest.raises(CallSignatureError, match=r"no server to record one\. Remedy: make this call on the built"):
        load(tmp_path / "before.mf")(given)


def test_build_writes_a_file_and_load_shows_it(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_FACTORY_CACHE", str(tmp_path / "cache"))
    config, path = str(CASES["mlp"].config), tmp_path / "mlp.mf"
    assert main(["build", config, "--server", server.address, "--seed", "7", "-o", str(path)]) == 0
    assert f"  {path}\n" in capsys.readouterr().out
    assert main(["load", str(path)]) == 0
    shown = capsys.readouterr().out
    assert f"{path}: written by model-factory " in shown
    assert "graph_modules.layer0.0 " in shown or "nn.Linear" in shown
    assert "built as mlp: seed 7, build " in shown
    assert f"{path}: 1 model and " in shown
    model = load(path)
    assert isinstance(model, nn.Module)
    remote = RemoteModelFactory(server.address, seed=7, cache_dir=tmp_path / "cache").build({"mlp": config})["mlp"]
    assert_same_state(model, remote)
    both = tmp_path / "both.mf"
    other = f"conv={CASES['conv_graph'].config}"
    assert main(["build", config, other, "--server", server.address, "-o", str(both)]) == 0
    assert list(load(both)) == ["mlp", "conv"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert main(["load", str(path)]) == 1
    assert f"error: {path}: the file is damaged" in capsys.readouterr().err


def test_another_process_needs_neither_server_nor_cache(make_pair: MakePair, tmp_path: Path) -> None:
    model, _ = make_pair("mlp")
    save(model.eval(), tmp_path / "mlp.mf")
    given = CASES["mlp"].inputs(2, 3)["x"]
    script = (
        "import sys, torch, model_factory\n"
        "model = model_factory.load('mlp.mf')\n"
        "torch.manual_seed(0)\n"
        f"print(model(torch.tensor({given.tolist()})).double().sum().item())\n"
        "print(any(name.startswith(('grpc', 'model_factory_server')) for name in sys.modules))\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "MODEL_FACTORY_SERVER"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment | {"HOME": "/nowhere"},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    total, imports_grpc = done.stdout.split()
    assert float(total) == model(given).double().sum().item()
    assert imports_grpc == "False"


def test_the_command_runs_without_a_server(make_pair: MakePair, tmp_path: Path) -> None:
    save(make_pair("mlp")[0], tmp_path / "mlp.mf")
    done = subprocess.run(
        [COMMAND, "load", "mlp.mf"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" tensors checked\n")
