"""A trainer that has the base install only: no server package, no model code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model_factory_server import PolicyConstructorModelFactory
from support.base_install import make_site, requirements
from support.cases import CASES
from support.compare import LEARNING_RATE, train
from support.server import ServerProcess

SEED = 7
STEPS = 4

TRAINER = """
import importlib.util, json, sys
sys.path.insert(0, sys.argv[1])
for name in ("model_factory_server", "grpc_reflection", "pytest", "hypothesis"):
    assert importlib.util.find_spec(name) is None, name
try:
    import model_factory_server
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the server package can be imported")

import torch
import model_factory
from model_factory import ModelFactory, RemoteModelFactory

address, cache, config, steps, rate = *sys.argv[2:5], int(sys.argv[5]), float(sys.argv[6])
factory = RemoteModelFactory(address, seed=7, cache_dir=cache)
assert isinstance(factory, ModelFactory)
model = factory.build({"mlp": config})["mlp"]
optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
batch = torch.linspace(-1, 1, 3 * 2 * 12).view(3, 2, 12)
torch.manual_seed(5)
losses = []
for _ in range(steps):
    optimizer.zero_grad()
    loss = model(batch).square().mean()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
foreign = [name for name, module in list(sys.modules.items())
           if (getattr(module, "__file__", None) or "").endswith(".py") and "model_factory_server" in name]
print(json.dumps({"losses": losses, "foreign": foreign, "client": model_factory.__file__}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_site(tmp_path_factory.mktemp("base") / "site")


def run_isolated(*arguments: object, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter that sees the standard library and nothing that is installed."""
    command = [sys.executable, "-I", "-S", "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def test_the_base_install_is_what_its_metadata_says(site: Path) -> None:
    needed = requirements("model-factory")
    assert {"torch", "grpcio", "protobuf", "safetensors", "pyyaml", "blake3"} <= needed
    assert not needed & {"model-factory-server", "grpcio-reflection", "pytest", "grpcio-tools"}
    assert (site / "torch").exists()
    assert not (site / "model_factory_server").exists()


def test_a_trainer_without_the_server_package_trains(site: Path, server: ServerProcess, tmp_path: Path) -> None:
    config = CASES["mlp"].config
    done = run_isolated(site, server.address, tmp_path / "cache", config, STEPS, LEARNING_RATE, code=TRAINER)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["foreign"] == []
    assert Path(result["client"]).is_relative_to(site)

    model = PolicyConstructorModelFactory(seed=SEED).build({"mlp": config})["mlp"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    batch = torch.linspace(-1, 1, 3 * 2 * 12).view(3, 2, 12)
    torch.manual_seed(5)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert result["losses"] == losses


def test_the_real_experiment_sizes_need_no_more(site: Path, server: ServerProcess, tmp_path: Path) -> None:
    """The blocks of the policy, called from there: all of them come with their forwards."""
    code = """
import importlib.util, pathlib, sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
assert importlib.util.find_spec("model_factory_server") is None
from support.cases import CASES
from support.compare import train
from model_factory import RemoteModelFactory
models = RemoteModelFactory(sys.argv[3], seed=7, cache_dir=sys.argv[4]).build({n: c.config for n, c in CASES.items()})
for name, model in models.items():
    print(name, *train(model, CASES[name].inputs(2, 3), steps=2))
"""
    done = run_isolated(site, Path(__file__).parents[1], server.address, tmp_path / "cache", code=code)
    assert done.returncode == 0, done.stderr
    local = PolicyConstructorModelFactory(seed=SEED)
    for line in done.stdout.splitlines():
        name, *losses = line.split()
        model = local.build({name: CASES[name].config})[name]
        assert [float(loss) for loss in losses] == train(model, CASES[name].inputs(2, 3), steps=2), name


def test_the_command_says_that_there_is_no_server(site: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv.pop(1))\nfrom model_factory.cli.main import main\nsys.exit(main())"
    done = run_isolated(site, "serve", "--listen", "127.0.0.1:0", code=code)
    assert done.returncode == 1
    assert "no server" in done.stderr
    assert "model-factory[server]" in done.stderr
    done = run_isolated(site, "validate", CASES["mlp"].config, code=code)
    assert done.returncode == 0, done.stderr
    assert "valid" in done.stdout
