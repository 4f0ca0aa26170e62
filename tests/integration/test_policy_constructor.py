"""A checkout that the operator mounts: its models train code-free, and its builds see nothing of each other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from model_factory import RemoteModelFactory
from model_factory.config.request import component_seed
from model_factory.errors import (
    BuildError,
    CallSignatureError,
    ConfigError,
    GraphExecutionError,
    ServerError,
    SourceError,
)
from model_factory.source.bundle import decode_bundle
from model_factory_server import PolicyConstructorModelFactory
from model_factory_server.settings.server_settings import BackendSettings
from support.checkouts import SIGNATURE, imported, policy_config, policy_inputs, write_checkout
from support.compare import assert_same, assert_same_runs, assert_same_state, train
from support.server import COMMAND, ServerProcess, running_server

SEED = 7
MakeRemote = Callable[..., RemoteModelFactory]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkout(tmp_path_factory.mktemp("mounted") / "checkout")


@pytest.fixture(scope="module")
def checkout_server(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    store = tmp_path_factory.mktemp("policy_constructor") / "store"
    with running_server(store, *options(checkout), "--share-source") as process:
        yield process


@pytest.fixture
def remote(checkout_server: ServerProcess, make_remote: MakeRemote) -> RemoteModelFactory:
    return make_remote(checkout_server.address)


def options(checkout: Path) -> tuple[str, ...]:
    return "--backend", "policy_constructor", "--backend-path", str(checkout)


def original(checkout: Path, config: dict[str, Any]) -> nn.Module:
    """The model as the checkout itself builds it, in this process."""
    with imported(checkout) as library, torch.random.fork_rng():
        torch.manual_seed(component_seed(SEED, "model"))
        document = config | {"settings": {"allow_imports": False, "allow_target": False}}
        return library.build_model(document)


def one_module(spec: dict[str, Any], **changes: Any) -> dict[str, Any]:
    graph = {
        "inputs": ["x"],
        "modules": {"only": spec},
        "steps": [{"call": "module:only", "args": ["$x"], "out": "y"}],
        "outputs": ["y"],
    }
    return {"config": {"schema_version": 1, "model": {"graph": graph}} | changes}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("batch", [1, 3])
def test_remote_model_is_the_checkouts_own(
    remote: RemoteModelFactory, checkout: Path, training: bool, batch: int
) -> None:
    built = remote.build({"config": policy_config()}).train(training)
    expected = original(checkout, policy_config()).train(training)
    assert_same(dict(built.state_dict()), dict(expected.state_dict()), "state")
    assert_same_runs(built, expected, policy_inputs(batch, size=6))
    assert train(built, policy_inputs(batch)) == train(expected, policy_inputs(batch))
    assert type(built.graph_modules["vision"].embed) is nn.Linear
    assert not type(built.graph_modules["vision"]).__module__.startswith("model_constructor")


def test_a_block_without_a_program_is_sent_as_source(
    remote: RemoteModelFactory, checkout_server: ServerProcess, checkout: Path, make_remote: MakeRemote
) -> None:
    """Without the checkout on this side, and without more of it than the block needs."""
    asked = one_module({"_type_": "ranked", "width": 16}, signature={"x": {"shape": [3, 16]}})
    with pytest.raises(
        SourceError, match=r"only \(Ranked\): the forward decides by the values of a tensor \(blocks\.py"
    ):
        remote.build(asked)
    described = remote.describe(asked, portability=True)
    files = decode_bundle(remote.read_source(described.descriptor.bundle)).files
    assert sorted(files) == [
        "model_constructor/blocks.py",
        "model_constructor/errors.py",
        "model_constructor/registry/default_registry.py",
    ]
    built = make_remote(checkout_server.address, trust_source=True).build(asked)
    expected = original(checkout, asked["config"])
    assert_same(dict(built.state_dict()), dict(expected.state_dict()), "state")
    for training in (False, True):
        assert_same_runs(built.train(training), expected.train(training), {"x": torch.randn(5, 16)})
    assert train(built, {"x": torch.randn(4, 16, generator=torch.Generator().manual_seed(1))}) == train(
        expected, {"x": torch.randn(4, 16, generator=torch.Generator().manual_seed(1))}
    )
    assert built.graph_modules["only"].calls == expected.graph_modules["only"].calls == 12
    assert not [name for name in sys.modules if name.startswith("model_constructor")]


def test_training_learns(remote: RemoteModelFactory) -> None:
    losses = train(remote.build({"config": policy_config()}), policy_inputs(4), steps=30)
    assert losses[-1] < 0.8 * losses[0]


def test_in_process_factory_builds_the_same(remote: RemoteModelFactory, checkout: Path) -> None:
    with imported(checkout):
        settings = BackendSettings(name="policy_constructor", path=checkout)
        local = PolicyConstructorModelFactory(seed=SEED, backend=settings).build({"config": policy_config()})
        built = remote.build({"config": policy_config()})
        assert_same_state(built, local)
        assert_same_runs(built, local, policy_inputs(2))


def test_a_process_uses_one_checkout(checkout: Path, tmp_path: Path) -> None:
    """Reached by a link it is the same one; a second one would silently be the first."""
    linked, other = tmp_path / "linked", write_checkout(tmp_path / "other")
    linked.mkdir()
    (linked / "model_constructor").symlink_to(checkout / "model_constructor")
    with imported(checkout):
        PolicyConstructorModelFactory(backend=BackendSettings(name="policy_constructor", path=linked))
        with pytest.raises(ServerError, match="another model_constructor is imported already"):
            PolicyConstructorModelFactory(backend=BackendSettings(name="policy_constructor", path=other))


def test_builds_do_not_see_each_other(remote: RemoteModelFactory, make_remote: MakeRemote) -> None:
    """Every build finds the environment and the registry as the server left them, the check of its size included."""
    counter = one_module({"_type_": "counter"})
    first = remote.build(counter).graph_modules["only"].seen
    for seed in (8, 9):
        assert_same(make_remote(remote._connection.address, seed=seed).build(counter).graph_modules["only"].seen, first)
    assert first[0] == 1


def test_plugins_register_with_the_checkouts_registry(
    checkout: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    start_server: Callable[..., ServerProcess],
    make_remote: MakeRemote,
) -> None:
    (tmp_path / "plugs.py").write_text(
        "from torch import nn\n"
        "class Mine(nn.Linear): pass\ndef register(registry): registry.register_module('plugged', Mine)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    factory = make_remote(start_server(None, *options(checkout), "--plugin", "plugs").address)
    built = factory.build(one_module({"_type_": "plugged", "in_features": 3, "out_features": 2}))
    assert built(torch.ones(1, 3)).shape == (1, 2)


def test_config_errors_of_the_checkout_are_config_errors(remote: RemoteModelFactory) -> None:
    with pytest.raises(ConfigError, match=r"Unknown module type 'nn.Liner'"):
        remote.build(one_module({"_type_": "nn.Liner"}))


def test_errors_keep_the_operators_paths(
    remote: RemoteModelFactory, checkout: Path, checkout_server: ServerProcess
) -> None:
    with pytest.raises(BuildError, match=r"OSError: cannot read \.\.\./weights\.pt") as caught:
        remote.build(one_module({"_type_": "broken"}))
    assert str(checkout) not in str(caught.value)
    assert str(checkout / "model_constructor" / "blocks.py") in checkout_server.log, "the operator's log has it all"


def test_nothing_is_resolved_on_the_server(remote: RemoteModelFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkout's own language would read ``${env:HOME}`` from the server's environment."""
    monkeypatch.setenv("TRICK", "${env:HOME}")
    with pytest.raises(ConfigError, match=r"modules\.only\.bias.*'\$\{' is left in a resolved config"):
        remote.build(one_module({"_type_": "nn.Linear", "in_features": 2, "out_features": 2, "bias": "${env:TRICK}"}))


def test_signature_records_everything_at_build_time(
    checkout: Path, start_server: Callable[..., ServerProcess], make_remote: MakeRemote
) -> None:
    server = start_server(None, *options(checkout))
    factory = make_remote(server.address)
    with_signature = factory.build({"config": policy_config(signature=SIGNATURE)})
    without = factory.build({"config": policy_config()})
    expected = original(checkout, policy_config())
    assert server.stop() == 0
    factory.close()
    for training in (False, True):
        assert_same_runs(with_signature.train(training), expected.train(training), policy_inputs(5))
    with pytest.raises((CallSignatureError, GraphExecutionError), match="no program exists for this call signature"):
        without(**policy_inputs(5))


def test_signature_gives_lazy_modules_their_shapes(remote: RemoteModelFactory) -> None:
    spec = {"_type_": "nn.LazyLinear", "out_features": 3}
    lazy = remote.build(one_module(spec)).graph_modules["only"]
    assert type(lazy) is nn.LazyLinear
    shaped = remote.build(one_module(spec, signature={"x": {"shape": [2, 5]}}))
    assert type(shaped.graph_modules["only"]) is nn.Linear
    assert shaped.graph_modules["only"].weight.shape == (3, 5)
    assert remote.describe(one_module(spec, signature={"x": {"shape": [2, 5]}})).parameters == 18


def test_signature_that_the_model_refuses(remote: RemoteModelFactory) -> None:
    spec = {"_type_": "nn.Linear", "in_features": 3, "out_features": 3}
    config = one_module(spec, signature={"x": {"shape": [2, 5]}})
    record_nothing = one_module(spec, signature={"x": {"shape": [2, 3]}})
    remote.build(record_nothing)
    with pytest.raises(ConfigError, match=r"signature.*does not run on these examples"):
        remote.build(config)


def test_identity_follows_the_checkout(
    tmp_path: Path, start_server: Callable[..., ServerProcess], make_remote: MakeRemote
) -> None:
    checkout = write_checkout(tmp_path / "own")
    server = start_server(None, *options(checkout))
    factory = make_remote(server.address)
    before = factory._connection.capabilities().backend
    assert (before.name, before.version) == ("policy_constructor", "1.2.3")
    vision = checkout / "model_constructor" / "blocks.py"
    vision.write_text(vision.read_text().replace("torch.randn(width) / width", "torch.ones(width)"))
    with pytest.raises(ServerError, match=r"has changed since it started\. Remedy: restart it"):
        factory.build({"config": policy_config()})
    assert server.stop() == 0
    again = make_remote(start_server(None, *options(checkout)).address)
    assert again._connection.capabilities().backend.code_digest != before.code_digest
    assert again.build({"config": policy_config()}).graph_modules["vision"].position.eq(1).all()


BAD_CHECKOUTS = {
    "empty": ({}, "holds no package model_constructor"),
    "no registry": ({"__init__.py": "def build_model(config): ...\n"}, "ModuleNotFoundError"),
    "raises": ({"__init__.py": "raise RuntimeError('needs a GPU')\n"}, "RuntimeError: needs a GPU"),
}


@pytest.mark.parametrize("kind", BAD_CHECKOUTS)
def test_bad_checkout_fails_the_start(kind: str, tmp_path: Path) -> None:
    files, message = BAD_CHECKOUTS[kind]
    (tmp_path / "bad" / "model_constructor").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / "bad" / "model_constructor" / name).write_text(text)
    command = [COMMAND, "serve", "--listen", "127.0.0.1:0", "--store", tmp_path / "store", *options(tmp_path / "bad")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert ended.returncode == 1
    assert message in ended.stderr


def test_path_and_backend_go_together(tmp_path: Path) -> None:
    for arguments in (["--backend", "policy_constructor"], ["--backend-path", str(tmp_path)]):
        ended = subprocess.run([COMMAND, "serve", *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 1
        assert "--backend-path DIR needs --backend policy_constructor" in ended.stderr


def test_a_model_of_a_checkout_starts_from_a_checkpoint(
    checkout: Path, start_server: Callable[..., ServerProcess], make_remote: MakeRemote, tmp_path: Path
) -> None:
    """The checkout does not know the key; the worker loads the file."""
    trained = {name: item + 1 for name, item in original(checkout, policy_config()).state_dict().items()}
    save_file(trained, tmp_path / "policy.safetensors")
    server = start_server(
        None, *options(checkout), "--share-source", "--checkpoint", f"p={tmp_path}/policy.safetensors"
    )
    config = policy_config()
    config["model"] = {**config["model"], "weights": "p"}
    model = make_remote(server.address, trust_source=True).build({"config": config})
    assert_same(dict(model.state_dict()), trained)
