"""From a server to a robot: build, export, and run in a process that has nothing of model-factory."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from integration.test_policies import CONFIGS, inputs
from model_factory import load, save
from model_factory.cli.main import main
from model_factory_server import PolicyConstructorModelFactory
from support.base_install import make_site
from support.cases import CASES
from support.server import ServerProcess

EXAMPLES = Path(__file__).parents[2] / "examples" / "robot"
RUN = """
import importlib.util, runpy, sys
sys.path.insert(0, sys.argv.pop(1))
for name in ("model_factory", "model_factory_server", "safetensors", "grpc"):
    assert importlib.util.find_spec(name) is None, name
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's exporter to ONNX, about its own deprecated functions


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What a robot has installed, for each format."""
    folder = tmp_path_factory.mktemp("robot")
    return {
        "pt2": make_site(folder / "pt2", "torch", "numpy"),
        "onnx": make_site(folder / "onnx", "onnxruntime", "numpy"),
    }


@pytest.mark.parametrize("file_format", ["pt2", "onnx"])
def test_an_exported_policy_runs_without_model_factory(
    file_format: str,
    sites: dict[str, Path],
    server: ServerProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The commands of docs/to-the-robot.md."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_FACTORY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "policy.yaml").write_bytes(CASES["mlp"].config.read_bytes())
    assert main(["build", "policy.yaml", "--server", server.address, "-o", "policy.mf"]) == 0
    arguments = ["--format", file_format, "--input", "x=batch,2,12"]
    assert main(["export", "policy.mf", *arguments]) == 0
    out = capsys.readouterr().out
    assert f"policy.{file_format}: " in out
    assert "compared with the model at batch 3; batch 4; batch 1: largest difference " in out
    command = [sys.executable, "-I", "-S", "-c", RUN, sites[file_format], EXAMPLES / f"run_{file_format}.py"]
    done = subprocess.run([*command, f"policy.{file_format}"], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    (actions,) = re.findall(r"^actions \[(.*)\]$", done.stdout, re.MULTILINE)
    expected = load("policy.mf").eval()(torch.zeros(1, 2, 12)).flatten()
    torch.testing.assert_close(torch.tensor([float(item) for item in actions.split(",")]), expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_policies_export_for_any_batch(
    name: str, local_with_plugins: PolicyConstructorModelFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the values of real inputs: positions, flags of padding."""
    save(local_with_plugins.build({name: CONFIGS[name]})[name], tmp_path / "policy.mf")
    given = inputs(name, 2, 4)
    values = {key: value for key, value in given.items() if value is not None}
    save_file(values, tmp_path / "inputs.safetensors")
    axes = {key: ",".join(["batch", *map(str, value.shape[1:])]) for key, value in values.items()}
    texts = [f"--input={key}={axes.get(key, 'none')}" for key in given]
    arguments = ["export", str(tmp_path / "policy.mf"), "--inputs", str(tmp_path / "inputs.safetensors"), *texts]
    assert main(arguments) == 0, capsys.readouterr().err
    assert "at batch 2; batch 3; batch 1: largest difference " in capsys.readouterr().out
    assert (tmp_path / "policy.pt2").is_file()


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no inputs": ([], "the forward of 'model' takes 'x'. Remedy: --input"),
    "another size": (["--input", "x=batch,2,13"], "does not run on the example inputs"),
    "a malformed input": (["--input", "x:3"], "is not an input. Remedy: write NAME="),
    "no such model": (["--model", "modle", "--input", "x=batch,2,12"], "no model 'modle'"),
    "no such values": (["--inputs", "nothing"], "nothing cannot be read"),
    "values that are no values": (["--inputs", "policy.yaml"], "policy.yaml: this is not a whole weights file"),
    "no such lock": (["--trust-source", "nothing", "--input", "x=batch,2,12"], "the lock file nothing cannot be read"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_writes_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.yaml").write_bytes(CASES["mlp"].config.read_bytes())
    save(PolicyConstructorModelFactory(seed=7).build({"config_path": "policy.yaml"}), "policy.mf")
    assert main(["export", "policy.mf", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "policy.pt2").exists()


def test_one_model_of_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build: Callable[..., dict[str, torch.nn.Module]] = PolicyConstructorModelFactory(seed=7).build
    models = build(dict.fromkeys(("actor", "critic"), CASES["mlp"].config))
    save(models, tmp_path / "agent.mf")
    path = str(tmp_path / "agent.mf")
    assert main(["export", path, "--input", "x=batch,2,12"]) == 1
    assert "the file has the models 'actor', 'critic'. Remedy: choose with --model NAME" in capsys.readouterr().err
    out = tmp_path / "critic.pt2"
    assert main(["export", path, "--model", "critic", "--input", "x=batch,2,12", "-o", str(out)]) == 0
    program = torch.export.load(out).module()
    x = torch.randn(5, 2, 12)
    assert torch.equal(program(x=x), models["critic"].eval()(x))
