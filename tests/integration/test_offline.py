"""Builds without a server, from what the node cache has of earlier builds."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model_factory import CallSignatureError, LockError, ModelFactoryError, RemoteModelFactory, UnavailableError
from model_factory.client import assembly
from model_factory.client.builds.build_lock import BuildLock
from model_factory.digest import digest_of
from model_factory.errors import StoreError
from model_factory.store import Store
from support.compare import assert_same_state
from support.configs import layers
from support.server import COMMAND, ServerProcess, running_server

MLP = layers({"_type_": "mlp", "dims": [5, 6, 2]})
TINY = layers({"_type_": "nn.Linear", "in_features": 3, "out_features": 2})

Make = Callable[..., RemoteModelFactory]


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forget what this process has in memory of earlier builds."""
    return lambda: monkeypatch.setattr(assembly, "_BLUEPRINTS", assembly._BlueprintCache())


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, dict[str, Any]]:
    """The address of a server that has built two models and is gone, the node cache, and the models."""
    folder = tmp_path_factory.mktemp("warm")
    with (
        pytest.MonkeyPatch.context() as patch,
        running_server(folder / "store") as server,
        RemoteModelFactory(server.address, seed=7, cache_dir=folder / "cache") as factory,
    ):
        patch.setattr(assembly, "_BLUEPRINTS", assembly._BlueprintCache())
        models = factory.build({"policy": MLP, "critic": TINY})
        models["policy"](torch.ones(1, 3, 4, 5))  # a call signature that the build has not recorded
    return server.address, folder / "cache", models


@pytest.fixture
def stopped(
    warm: tuple[str, Path, dict[str, Any]], tmp_path: Path, cold: Callable[[], None]
) -> tuple[str, dict[str, Any]]:
    """The address of a server that is gone, and the models; ``make_remote`` has a copy of the warm cache."""
    address, cache, models = warm
    shutil.copytree(cache, tmp_path / "cache")
    cold()
    return address, models


def test_a_warm_cache_builds_without_a_server(
    stopped: tuple[str, dict[str, Any]], make_remote: Make, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    address, expected = stopped
    explicit = make_remote(address, offline=True).build({"policy": MLP, "critic": TINY})
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    automatic = make_remote(address).build({"policy": MLP})
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.startswith(f"the model-factory server at {address} cannot be reached: ")
    assert "built from the node cache" in warning
    assert warning.endswith("as last built by the server: 'policy'")
    monkeypatch.setenv("MODEL_FACTORY_OFFLINE", "yes")
    by_variable = make_remote(address).build({"policy": MLP})
    for models in (explicit, automatic, by_variable):
        assert list(models) == list(expected)[: len(models)]
        for name, model in models.items():
            assert_same_state(model, expected[name])
            assert model.build_info == expected[name].build_info


def test_models_train_as_models_of_a_server(stopped: tuple[str, dict[str, Any]], make_remote: Make) -> None:
    address, _ = stopped
    model = make_remote(address, offline=True).build({"policy": MLP})["policy"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    model(torch.ones(4, 5)).square().mean().backward()
    optimizer.step()
    assert any(not value.equal(before[name]) for name, value in model.state_dict().items())
    assert model(torch.ones(1, 3, 4, 5)).shape == (1, 3, 4, 2), "recorded at a call of an earlier process"


def test_what_needs_a_server_says_so_at_once(stopped: tuple[str, dict[str, Any]], make_remote: Make) -> None:
    address, _ = stopped
    factory = make_remote(address, offline=True)
    said = f"the server at {address} is not called, since this factory is offline. Remedy: offline=None, or unset"
    with pytest.raises(UnavailableError, match=said):
        factory.blocks()
    with pytest.raises(UnavailableError, match=said):
        factory.describe({"policy": MLP})
    with pytest.raises(UnavailableError, match=said):
        factory.wait(timeout=0.1)
    model = factory.build({"policy": MLP})["policy"]
    with pytest.raises(CallSignatureError, match=said):
        model(torch.ones(1, 1, 1, 1, 1, 5))
    with pytest.raises(UnavailableError, match=said):
        pickle.loads(pickle.dumps(factory._connection)).capabilities()  # noqa: S301  this process has written it


def test_false_never_builds_from_the_cache(
    stopped: tuple[str, dict[str, Any]], make_remote: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _ = stopped
    with pytest.raises(UnavailableError, match="cannot be reached"):
        make_remote(address, offline=False).build({"policy": MLP})
    monkeypatch.setenv("MODEL_FACTORY_OFFLINE", "0")
    with pytest.raises(UnavailableError, match="cannot be reached"):
        make_remote(address).build({"policy": MLP})
    monkeypatch.setenv("MODEL_FACTORY_OFFLINE", "maybe")
    with pytest.raises(ModelFactoryError, match="MODEL_FACTORY_OFFLINE is true/false"):
        make_remote(address)


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ({"seed": 8}, {"policy": MLP}),
        ({"dtype": torch.float64}, {"policy": MLP}),
        ({}, {"actor": MLP}),
        ({}, {"policy": TINY}),
        ({}, {"policy": MLP, "other": TINY}),
        ({"cache_dir": "elsewhere"}, {"policy": MLP}),
        ({"address": "127.0.0.1:1"}, {"policy": MLP}),
    ],
    ids=["seed", "dtype", "name", "config", "one of two", "cache", "address"],
)
def test_another_build_is_unknown(
    arguments: dict[str, Any], asked: dict[str, Any], stopped: tuple[str, dict[str, Any]], make_remote: Make,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    arguments = {"address": stopped[0]} | arguments
    name = list(asked)[-1]
    with pytest.raises(
        UnavailableError, match=f"has no build of '{name}' with this config, seed .* Remedy: build once"
    ):
        make_remote(offline=True, **arguments).build(asked)
    with pytest.raises(UnavailableError, match="cannot be reached"):
        make_remote(**arguments).build(asked)


def test_evicted_weights_are_named(stopped: tuple[str, dict[str, Any]], make_remote: Make, tmp_path: Path) -> None:
    address, models = stopped
    digest = models["policy"].build_info.weights
    (tmp_path / "cache" / "blobs" / digest[:2] / digest).unlink()
    with pytest.raises(UnavailableError, match=r"no longer has weights of 'policy'\. Remedy: build once"):
        make_remote(address, offline=True).build({"policy": MLP})


def test_a_drawn_seed_repeats_after_manual_seed(start_server: Callable[..., ServerProcess], make_remote: Make) -> None:
    server = start_server()
    torch.manual_seed(5)
    expected = make_remote(server.address, seed=None).build({"policy": MLP})["policy"]
    assert server.stop() == 0
    torch.manual_seed(5)
    assert_same_state(make_remote(server.address, seed=None).build({"policy": MLP})["policy"], expected)


def test_documents_in_memory_are_cached_for_later_processes(
    start_server: Callable[..., ServerProcess], make_remote: Make, tmp_path: Path, cold: Callable[[], None]
) -> None:
    """A second cache of one process: descriptor and programs are in memory, and are not read for the build."""
    server = start_server()
    for folder in ("first", "second"):
        expected = make_remote(server.address, cache_dir=tmp_path / folder).build({"policy": MLP})["policy"]
    assert server.stop() == 0
    cold()
    again = make_remote(server.address, cache_dir=tmp_path / "second", offline=True).build({"policy": MLP})["policy"]
    assert_same_state(again, expected)


def test_a_lock_holds_without_a_server(stopped: tuple[str, dict[str, Any]], make_remote: Make, tmp_path: Path) -> None:
    address, models = stopped
    info = models["policy"].build_info
    BuildLock(tmp_path / "models.lock", {"policy": info}).write()
    make_remote(address, seed=None, lock=tmp_path / "models.lock", offline=True).build({"policy": MLP})
    text = (tmp_path / "models.lock").read_text().replace(info.weights, "ab" * 32)
    (tmp_path / "models.lock").write_text(text)
    with pytest.raises(LockError, match="weights abababababab"):
        make_remote(address, lock=tmp_path / "models.lock", offline=True).build({"policy": MLP})


def test_a_cache_that_keeps_no_records_is_no_obstacle(
    make_remote: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_arguments: object) -> None:
        raise StoreError("no space")

    monkeypatch.setattr(Store, "put_record", refuse)
    with caplog.at_level(logging.INFO, "model_factory"):
        make_remote(seed=77).build({"policy": MLP})
    assert "policy cannot be built later without the server: no space" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("keys"),
        lambda record: record["blobs"].update(weights=["ab" * 32]),
        lambda record: record["blobs"].update(weights="../x"),
        lambda record: record["keys"].update(build_key="../x"),
        lambda record: record["identity"].update(format_version="5"),
        lambda record: record.update(server=None),
        lambda record: record.update(identity=[]),
    ],
)
def test_a_malformed_record_is_unknown(
    change: Callable[[dict[str, Any]], object], make_remote: Make, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    factory = make_remote()
    factory.build({"policy": MLP})
    read = Store.record

    def changed(store: Store, key: str) -> Any:
        document = read(store, key)
        if document is not None and "blobs" in document:
            change(document)
        return document

    monkeypatch.setattr(Store, "record", changed)
    with pytest.raises(UnavailableError, match="has no build of 'policy'"):
        make_remote(offline=True).build({"policy": MLP})
    assert "is malformed: " in caplog.text


def test_an_unchanged_record_is_not_written_again(make_remote: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    factory = make_remote()
    factory.build({"policy": MLP})
    monkeypatch.setattr(Store, "put_record", None)
    factory.build({"policy": MLP})


@pytest.mark.parametrize("output", ["models.mf", "models"])
def test_the_command_writes_files_without_a_server(output: str, tmp_path: Path) -> None:
    """The same bytes as with the server; also without a variable, with a warning."""
    for name, config in {"policy": MLP, "critic": TINY}.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps(config))

    def build(address: str, folder: str, **variables: str) -> tuple[dict[str, bytes], str]:
        command = [COMMAND, "build", "policy.yaml", "critic.yaml", "--seed", "7", "--server", address]
        (tmp_path / folder).mkdir()
        environment = os.environ | {"MODEL_FACTORY_CACHE": str(tmp_path / "cache")} | variables
        done = subprocess.run(
            [*command, "-o", f"{folder}/{output}"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        files = [path for path in sorted((tmp_path / folder).rglob("*")) if path.is_file()]
        return {str(path.relative_to(tmp_path / folder)): path.read_bytes() for path in files}, done.stderr

    with running_server(tmp_path / "store") as server:
        expected, _ = build(server.address, "online")
        info = RemoteModelFactory(server.address, seed=7, cache_dir=tmp_path / "cache").build({"policy": MLP})
    if output == "models":
        assert len(expected) == 6
        descriptor = expected["models/policy.descriptor.json"]
        assert digest_of(descriptor) == info["policy"].build_info.descriptor
    assert build(server.address, "offline", MODEL_FACTORY_OFFLINE="1")[0] == expected
    files, said = build(server.address, "unreachable")
    assert files == expected
    assert "built from the node cache" in said
