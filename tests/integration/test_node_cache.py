"""The node's cache end to end: shared files, the bound, and the command that looks after it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from model_factory import ModelFactoryError, RemoteModelFactory
from model_factory.cli.main import main
from model_factory.client import connection as remote_connection
from model_factory.store import Store
from model_factory_server import PolicyConstructorModelFactory
from support.compare import assert_same_state
from support.server import ServerProcess

MakeRemote = Callable[..., RemoteModelFactory]

WIDTH = 600
BYTES = WIDTH * WIDTH * 4


def config(width: int = WIDTH) -> dict[str, object]:
    layer = {"_type_": "nn.Linear", "in_features": width, "out_features": width, "bias": False}
    return {"config": {"schema_version": 1, "model": {"sequential": {"layers": [layer]}}}}


@pytest.fixture
def no_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise AssertionError("a blob crossed the wire")

    monkeypatch.setattr(remote_connection.Connection, "read_blob", refuse)


@pytest.mark.usefixtures("no_transfer")
def test_a_store_that_this_node_sees_is_not_transferred(
    server: ServerProcess, make_remote: MakeRemote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a volume that both mount: this node is told where, since the server does not say."""
    monkeypatch.setenv("MODEL_FACTORY_SHARED_STORE", str(server.store.resolve()))
    model = make_remote().build(config())
    assert_same_state(model, PolicyConstructorModelFactory(seed=7).build(config()))
    cache = Store(tmp_path / "cache")
    (weights,) = (entry for entry in cache.entries() if entry.size > BYTES)
    assert weights.links == 2
    assert weights.in_use
    assert (server.store / "blobs" / weights.digest[:2] / weights.digest).samefile(weights.path)


@pytest.mark.usefixtures("no_transfer")
def test_the_bound_holds_for_what_is_not_transferred_too(
    server: ServerProcess, make_remote: MakeRemote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_FACTORY_SHARED_STORE", str(server.store.resolve()))
    for seed in range(4):
        make_remote(seed=seed, cache_bytes=2 * BYTES).build(config())
    assert sum(entry.size for entry in Store(tmp_path / "cache").entries()) <= 2 * BYTES


def test_a_cache_that_is_removed_is_made_again(make_remote: MakeRemote, tmp_path: Path) -> None:
    remote = make_remote()
    remote.build(config())
    shutil.rmtree(tmp_path / "cache")
    local = PolicyConstructorModelFactory(seed=7)
    assert_same_state(remote.build(config(WIDTH + 1)), local.build(config(WIDTH + 1)))


def test_a_forward_does_not_need_records_that_cannot_be_read(
    make_remote: MakeRemote, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    block = {"_type_": "mlp", "dims": [4, 2]}
    spec = {"config": {"schema_version": 1, "model": {"sequential": {"layers": [block]}}}}
    model = make_remote().build(spec)
    records = tmp_path / "cache" / "records"
    records.rename(tmp_path / "records")
    records.write_text("no folder", encoding="utf-8")
    assert model(torch.randn(2, 3, 5, 7, 4)).shape == (2, 3, 5, 7, 2)  # of a rank that was not recorded
    assert "programs of" in caplog.text


def test_what_a_device_says_is_not_taken_for_a_damaged_file(make_remote: MakeRemote) -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match=r"MPS|mps devices"):
        make_remote(device="mps").build(config())


def test_relative_paths_are_relative_to_where_the_factory_was_made(
    make_remote: MakeRemote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        (tmp_path / f"run{number}" / "configs").mkdir(parents=True)
        text = json.dumps(config(number)["config"])
        (tmp_path / f"run{number}" / "configs" / "layer.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path / "run1")
    factories = [make_remote(base_dir="configs"), PolicyConstructorModelFactory(seed=7, base_dir="configs")]
    monkeypatch.chdir(tmp_path / "run2")
    for factory in factories:
        (weight,) = factory.build({"config_path": "layer.yaml"}).parameters()
        assert weight.shape == (1, 1)


def test_a_store_that_lies_is_transferred(
    server: ServerProcess, make_remote: MakeRemote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make_remote(cache_dir=tmp_path / "first").build(config())
    liar = tmp_path / "liar"
    for entry in Store(tmp_path / "first").entries():
        place = liar / "blobs" / entry.digest[:2] / entry.digest
        place.parent.mkdir(parents=True)
        place.write_bytes(os.urandom(entry.size))
    monkeypatch.setenv("MODEL_FACTORY_SHARED_STORE", str(liar))
    assert_same_state(make_remote().build(config()), expected)


def test_the_cache_stays_within_its_bound_and_keeps_what_lives(make_remote: MakeRemote, tmp_path: Path) -> None:
    factory = make_remote(cache_bytes=2 * BYTES + BYTES // 2)
    kept = factory.build(config())
    for seed in range(3):
        other = make_remote(seed=seed, cache_bytes=2 * BYTES + BYTES // 2).build(config())
        del other
    store = Store(tmp_path / "cache")
    weights = [entry for entry in store.entries() if entry.size > BYTES]
    assert len(weights) == 2
    assert [entry.in_use for entry in weights].count(True) == 1
    assert_same_state(kept, PolicyConstructorModelFactory(seed=7).build(config()))
    del kept
    store.prune(0)
    assert store.entries() == []


def test_the_command(make_remote: MakeRemote, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_remote().build(config())
    cache = tmp_path / "cache"
    command = ["cache", "--dir", str(cache)]
    assert main([*command, "ls"]) == 0
    shown = capsys.readouterr().out
    assert "1.37 MiB" in shown
    assert shown.count("in use") == 1
    assert main([*command, "verify"]) == 0
    assert "0 damaged" in capsys.readouterr().out
    victim = Store(cache).put(b"small")
    (cache / "blobs" / victim.digest[:2] / victim.digest).write_bytes(b"smell")
    assert main([*command, "verify"]) == 1
    assert f"{victim.digest} was damaged" in capsys.readouterr().out
    assert main([*command, "prune", "--max-gib", "0"]) == 0
    said = capsys.readouterr()
    assert "1.37 MiB left" in said.out
    assert "in use" in said.err
    assert isinstance(model, nn.Module)
    del model
    assert main([*command, "prune", "--max-gib", "0"]) == 0
    assert "0.00 MiB left" in capsys.readouterr().out
    assert main(["cache", "--dir", str(tmp_path / "none"), "ls"]) == 1
    assert "is not a cache" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_a_bound_that_is_none(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_FACTORY_CACHE_GIB", text)
    with pytest.raises(ModelFactoryError, match="MODEL_FACTORY_CACHE_GIB is a size in GiB"):
        RemoteModelFactory("127.0.0.1:1", cache_dir=tmp_path)


def test_the_cache_may_be_in_the_users_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MODEL_FACTORY_CACHE", "~/models")
    RemoteModelFactory("127.0.0.1:1").close()
    assert (tmp_path / "models" / "blobs").is_dir()
