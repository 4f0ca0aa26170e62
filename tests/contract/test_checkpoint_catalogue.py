"""Configs that name a checkpoint of the operator: one suite over both factories, and the server's part."""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from model_factory import (
    BuildError,
    ConfigError,
    LockError,
    ModelFactory,
    ModelFactoryError,
    RemoteModelFactory,
    ServerError,
)
from model_factory.client.builds.build_lock import BuildLock
from model_factory.digest import digest_of_file
from model_factory_server import PolicyConstructorModelFactory
from model_factory_server.settings.server_settings import BackendSettings
from support.compare import assert_same_runs, assert_same_state, train
from support.configs import layers
from support.server import COMMAND, ServerProcess

Make = Callable[..., ModelFactory]

SPECS = [
    {"_type_": "nn.Linear", "in_features": 12, "out_features": 16},
    {"_type_": "nn.BatchNorm1d", "num_features": 16},
    {"_type_": "mlp", "dims": [16, 8, 4]},
]
MODEL = layers(*SPECS)
TIED = {
    "schema_version": 1,
    "model": {
        "graph": {
            "inputs": ["x"],
            "modules": {"tied": {"_type_": "tied_pair", "width": 3}},
            "steps": [{"call": "module:tied", "args": ["$x"], "out": "y"}],
            "outputs": ["y"],
        }
    },
}
PLUGIN = """
from torch import nn

class TiedPair(nn.Module):
    \"\"\"Two layers with one weight.\"\"\"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width, bias=False)
        self.second = nn.Linear(width, width, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))

def register(registry):
    registry.register_module("tied_pair", TiedPair)
"""


def named(weights: Any, config: Mapping[str, Any] = MODEL) -> dict[str, Any]:
    """A request for a model that starts from a checkpoint of the catalogue."""
    return {"config": {**config, "model": {**config["model"], "weights": weights}}}


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A model whose weights no seed gives."""
    model = PolicyConstructorModelFactory(seed=3).build({"config": MODEL})
    train(model, {"x": torch.randn(5, 12)}, steps=3)
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, trained: nn.Module) -> dict[str, Path]:
    """The operator's files by name."""
    folder = tmp_path_factory.mktemp("models")
    state = trained.state_dict()
    save_file(state, folder / "policy.safetensors")
    torch.save({"step": 3, "model": {f"module.{name}": item for name, item in state.items()}}, folder / "last.pt")
    save_file({name: item.to(torch.float64) for name, item in state.items()}, folder / "wide.safetensors")
    first, *others = state
    save_file({**{name: state[name] for name in others}, "more": torch.ones(2)}, folder / "part.safetensors")
    save_file({name: item for name, item in state.items() if "tracked" not in name}, folder / "old.safetensors")
    save_file({"graph_modules.tied.first.weight": torch.eye(3)}, folder / "tied.safetensors")
    save_file({**state, first: torch.ones(2, 2)}, folder / "shape.safetensors")
    (folder / "text.safetensors").write_text("weights")
    _hub_folder(folder / "hub", state)
    return {path.stem: path for path in folder.iterdir() if path.name != "hub"} | {"hub": folder / "hub/snapshots/main"}


def _hub_folder(folder: Path, state: Mapping[str, torch.Tensor]) -> None:
    """The cache of the Hugging Face Hub: links to blobs, and weights in two parts with an index."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "main"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    parts = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(state)}
    for part in set(parts.values()):
        save_file({name: state[name] for name in parts if parts[name] == part}, blobs / part)
    (blobs / "index").write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    for part in set(parts.values()):
        (snapshot / part).symlink_to(f"../../blobs/{part}")
    (snapshot / "model.safetensors.index.json").symlink_to("../../blobs/index")


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "blocks_with_ties.py").write_text(PLUGIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        yield "blocks_with_ties"


@pytest.fixture(scope="module")
def catalogue_server(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, Path], plugin: str
) -> Iterator[ServerProcess]:
    options = [word for name, path in files.items() for word in ("--checkpoint", f"{name}={path}")]
    process = ServerProcess(tmp_path_factory.mktemp("server") / "store", *options, "--plugin", plugin)
    yield process
    assert process.alive
    process.kill()


@pytest.fixture(params=["remote", "local"])
def make(
    request: pytest.FixtureRequest,
    make_remote: Make,
    catalogue_server: ServerProcess,
    files: dict[str, Path],
    plugin: str,
) -> Make:
    if request.param == "remote":
        return lambda **arguments: make_remote(catalogue_server.address, **arguments)
    settings = BackendSettings(checkpoints=tuple(f"{name}={path}" for name, path in files.items()), plugins=(plugin,))
    return lambda **arguments: PolicyConstructorModelFactory(**({"seed": 7, "backend": settings} | arguments))


@pytest.mark.parametrize(
    "weights",
    ["policy", "hub", "old", "wide", {"checkpoint": "last", "entry": "model", "prefixes": {"module.": ""}}],
    ids=str,
)
def test_a_model_starts_from_the_checkpoint(make: Make, trained: nn.Module, weights: Any) -> None:
    """As torch's ``load_state_dict``, which gives a state without ``num_batches_tracked`` the initial number."""
    expected = PolicyConstructorModelFactory(seed=7).build({"config": MODEL})
    expected.load_state_dict(trained.state_dict())
    if weights == "old":
        expected.graph_modules["layer1"].num_batches_tracked.zero_()
    model = make().build(named(weights))
    assert_same_state(model, expected)
    assert_same_runs(model, expected, {"x": torch.randn(3, 12)})


def test_one_name_of_a_tied_tensor_is_enough(make: Make) -> None:
    model = make().build(named("tied", TIED))
    assert torch.equal(model(torch.ones(2, 3)), torch.ones(2, 3))
    assert len(list(model.parameters())) == 1


def test_dtypes_follow_the_build(make: Make, trained: nn.Module) -> None:
    model = make(dtype=torch.bfloat16).build(named("policy"))
    assert model.graph_modules["layer0"].weight.dtype is torch.bfloat16
    for name, item in model.state_dict().items():
        assert torch.equal(item, trained.state_dict()[name].to(item.dtype)), name


def test_missing_and_unexpected_are_reported_as_torch_does(
    make: Make, trained: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    state = trained.state_dict()
    first, *others = state
    theirs = trained.load_state_dict({**{name: state[name] for name in others}, "more": torch.ones(2)}, strict=False)
    with pytest.raises(
        ConfigError, match=rf"model\.weights: checkpoint 'part' does not fit the model; missing: '{first}' \(1\); unex"
    ):
        make().build(named("part"))
    fresh = PolicyConstructorModelFactory(seed=7).build({"config": MODEL}).state_dict()
    for _ in range(2):  # the second build is in the store
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            model = make().build(named({"checkpoint": "part", "strict": False}))
        missing, unexpected = theirs.missing_keys[0], theirs.unexpected_keys[0]
        assert f"model: checkpoint 'part': missing: '{missing}' (1); unexpected: '{unexpected}' (1)" in caplog.text
        assert torch.equal(model.state_dict()[first], fresh[first])
        assert all(torch.equal(model.state_dict()[name], state[name]) for name in others)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("polcy", r"Unknown checkpoint 'polcy'; known: 'hub', 'last', .*'wide'; did you mean 'policy'\?"),
        ("../policy", "'../policy' is not the name of a checkpoint; .*Remedy: a name of `model-factory checkpoints`"),
        ("/etc/passwd", "'/etc/passwd' is not the name of a checkpoint"),
        ("policy\0", "is not the name of a checkpoint"),
        ("p" * 200, "is not the name of a checkpoint"),
        (["policy"], "must be a mapping, found a list of 1"),
        ({"checkpoint": "policy", "path": "x"}, "Unknown key 'path'"),
        ({"strict": False}, "'checkpoint' is required"),
        ({"checkpoint": "policy", "prefixes": {"": 3}}, "must be a string, the beginning of names"),
        ({"checkpoint": "last"}, "checkpoint 'last' has no tensors at its first level; entries: 'step', 'model'"),
        ({"checkpoint": "last", "entry": "modle"}, "checkpoint 'last' has no entry 'modle'"),
        ("shape", "checkpoint 'shape': .*size mismatch for graph_modules.layer0.weight"),
        ("text", "checkpoint 'text' is neither a safetensors file nor a file of torch.save"),
    ],
)
def test_wrong_names_and_files(make: Make, files: dict[str, Path], weights: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)model\.weights.*{message}") as caught:
        make().build(named(weights))
    assert str(files["policy"].parent) not in str(caught.value)


def test_an_unknown_name_is_no_description(make: Make) -> None:
    with pytest.raises(ConfigError, match="Unknown checkpoint 'other'"):
        make().describe(named("other"))
    assert make().describe(named("policy")).parameters == make().describe({"config": MODEL}).parameters


def test_the_checkpoint_is_in_the_build_info(
    make_remote: Make, catalogue_server: ServerProcess, files: dict[str, Path], tmp_path: Path
) -> None:
    factory = make_remote(catalogue_server.address, seed=None)
    info = factory.build(named("policy")).build_info
    assert (info.checkpoint, info.checkpoint_digest) == ("policy", digest_of_file(files["policy"]))
    assert info.as_dict()["checkpoint_digest"] in json.dumps(info.as_dict())
    assert f"checkpoint {info.checkpoint_digest[:12]}" in str(info)
    assert info.seed == 0  # no random weight is in the result
    plain = factory.build({"config": MODEL}).build_info
    assert (plain.checkpoint, plain.checkpoint_digest) == (None, None)
    settings = BackendSettings(checkpoints=(f"policy={files['policy']}",))
    local = PolicyConstructorModelFactory(seed=0, backend=settings).build(named("policy")).build_info
    for field in ("checkpoint", "checkpoint_digest", "config_digest", "descriptor", "weights"):
        assert getattr(local, field) == getattr(info, field)
    offline = make_remote(catalogue_server.address, seed=None, offline=True).build(named("policy"))
    assert offline.build_info == info


def test_programs_are_recorded_for_a_model_from_the_catalogue(
    make_remote: Make, catalogue_server: ServerProcess, files: dict[str, Path], plugin: str
) -> None:
    settings = BackendSettings(checkpoints=(f"tied={files['tied']}",), plugins=(plugin,))
    local = PolicyConstructorModelFactory(seed=7, backend=settings).build(named("tied", TIED))
    remote = make_remote(catalogue_server.address).build(named("tied", TIED))
    x = torch.randn(2, 5, 4, 3)  # the block has no examples: recorded at this call
    assert torch.equal(remote(x), local(x))


def test_a_changed_file_is_another_build(start_server: Any, make_remote: Make, tmp_path: Path) -> None:
    path, config = tmp_path / "linear.safetensors", layers({"_type_": "nn.Linear", "in_features": 3, "out_features": 2})
    state = PolicyConstructorModelFactory(seed=3).build({"config": config}).state_dict()
    save_file(state, path)
    server = start_server(None, "--checkpoint", f"linear={path}")
    factory = make_remote(server.address)
    first = factory.build(named("linear", config))
    lock = BuildLock(tmp_path / "models.lock", {"model": first.build_info})
    lock.write()
    assert factory.build(named("linear", config)).build_info == first.build_info
    save_file({name: item + 1 for name, item in state.items()}, path)
    second = factory.build(named("linear", config))
    assert second.build_info.build_key != first.build_info.build_key
    for name, item in second.state_dict().items():
        assert torch.equal(item, state[name] + 1)
    with pytest.raises(LockError, match=r"content of the checkpoint [0-9a-f]{12}\.\.\. is [0-9a-f]{12}\.\.\."):
        make_remote(server.address, lock=lock.path).build(named("linear", config))
    path.unlink()
    with pytest.raises(BuildError, match=r"model\.weights: checkpoint 'linear' cannot be read: No such file"):
        factory.build(named("linear", config))
    save_file(state, path)
    assert factory.build(named("linear", config)).build_info == first.build_info


def test_replicas_with_one_store_may_have_other_files_under_a_name(
    start_server: Any, make_remote: Make, tmp_path: Path
) -> None:
    config = layers({"_type_": "nn.Linear", "in_features": 3, "out_features": 2})
    state = PolicyConstructorModelFactory(seed=3).build({"config": config}).state_dict()
    for number in (1, 2):
        save_file({name: item * number for name, item in state.items()}, tmp_path / f"{number}.safetensors")
        server = start_server(tmp_path / "store", "--checkpoint", f"linear={tmp_path / f'{number}.safetensors'}")
        model = make_remote(server.address).build(named("linear", config))
        for name, item in model.state_dict().items():
            assert torch.equal(item, state[name] * number)


def test_a_file_larger_than_the_memory_of_builds(start_server: Any, make_remote: Make, tmp_path: Path) -> None:
    """The file is mapped: a tensor that the model lacks costs no memory."""
    path, config = tmp_path / "large.safetensors", layers({"_type_": "nn.Linear", "in_features": 3, "out_features": 2})
    state = PolicyConstructorModelFactory(seed=3).build({"config": config}).state_dict()
    save_file({**state, "huge": torch.zeros(150_000_000)}, path)  # 600 MB
    server = start_server(None, "--checkpoint", f"large={path}", "--max-memory-bytes", "256MiB")
    model = make_remote(server.address).build(named({"checkpoint": "large", "strict": False}, config))
    for name, item in model.state_dict().items():
        assert torch.equal(item, state[name])


def test_a_read_only_folder(start_server: Any, make_remote: Make, trained: nn.Module, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    save_file(trained.state_dict(), folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o444)
    folder.chmod(0o555)
    server = start_server(None, "--checkpoint", f"policy={folder}")
    assert_same_state(make_remote(server.address).build(named("policy")), trained)
    assert [item.name for item in folder.iterdir()] == ["model.safetensors"]
    folder.chmod(0o755)


def test_the_command_lists_the_names(catalogue_server: ServerProcess, server: ServerProcess) -> None:
    listed = [
        subprocess.run([COMMAND, "checkpoints", "--server", item.address], capture_output=True, text=True, check=True)
        for item in (catalogue_server, server)
    ]
    assert listed[0].stdout.split() == ["hub", "last", "old", "part", "policy", "shape", "text", "tied", "wide"]
    assert (listed[1].stdout, listed[1].stderr) == (
        "",
        "the server has no checkpoints; its operator adds one with --checkpoint NAME=PATH\n",
    )
    assert RemoteModelFactory(catalogue_server.address).checkpoints() == listed[0].stdout.split()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("policy=/nonexistent/policy.safetensors", "no such file or folder"),
        ("policy", "--checkpoint must be NAME=PATH"),
        ("../policy=/tmp", "with a name that matches"),
        ("policy=", "--checkpoint must be NAME=PATH"),
    ],
)
def test_a_wrong_catalogue_is_refused_at_the_start(tmp_path: Path, value: str, message: str) -> None:
    run = subprocess.run(
        [COMMAND, "serve", "--listen", "127.0.0.1:0", "--store", tmp_path / "store", "--checkpoint", value],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 1
    assert message in run.stderr
    assert "Traceback" not in run.stderr


def test_a_name_has_one_path() -> None:
    with pytest.raises(ServerError, match="--checkpoint gives two paths for 'a'"):
        BackendSettings(checkpoints=("a=/1", "a=/2"))


def test_a_hostile_index_names_no_path(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "hub"
    folder.mkdir()
    for text in ('{"weight_map": {"w": "../secret.safetensors"}}', '{"weight_map": {"w": ".."}}', "[]", '{"w": 1}'):
        (folder / "model.safetensors.index.json").write_text(text)
        settings = BackendSettings(checkpoints=(f"hub={folder}",))
        with pytest.raises(ModelFactoryError, match=r"checkpoint 'hub'/model\.safetensors\.index\.json is not"):
            PolicyConstructorModelFactory(backend=settings).build(named("hub"))
