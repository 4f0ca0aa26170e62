"""Operator plug-ins: built remotely, seen in the listing, kept out of every process but the workers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model_factory import RemoteModelFactory
from model_factory.errors import ServerError
from model_factory_server.backends.code_files import operator_files
from model_factory_server.backends.loading import load_backend
from model_factory_server.settings.server_settings import BackendSettings
from support.compare import assert_same, observe
from support.server import COMMAND, ServerProcess, descendants

MakeRemote = Callable[..., RemoteModelFactory]

LINEAR_BLOCK = """
import os
from pathlib import Path

from torch import nn

with Path(__file__).with_name("importers").open("a") as file:
    file.write(f"{os.getpid()}\\n")


def double(x):
    return x + x


def register(registry):
    registry.register_module("plugged", nn.Linear)
    registry.register_op("double", double)
"""


@pytest.fixture
def plugin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path of the servers that the test starts."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    return folder


def config_of(spec: dict[str, object], call: str = "module:layer") -> dict[str, object]:
    graph = {
        "inputs": ["x"],
        "modules": {"layer": spec},
        "steps": [{"call": call, "args": ["$x"], "out": "y"}],
        "outputs": ["y"],
    }
    return {"config": {"schema_version": 1, "model": {"graph": graph}}}


def test_listing_says_where_each_block_comes_from(plugin_server: ServerProcess, make_remote: MakeRemote) -> None:
    origins = {block.name: block.origin for block in make_remote(plugin_server.address).blocks()}
    assert origins["film_gru_policy"] == "policies"
    assert origins["mlp"] == origins["radiov3"] == "builtin"
    assert origins["nn.Linear"] == "torch"


def test_installed_plugins_are_found_by_their_entry_point(
    plugin_folder: Path, start_server: Callable[..., ServerProcess], make_remote: MakeRemote
) -> None:
    (plugin_folder / "plugged_in.py").write_text(LINEAR_BLOCK)
    metadata = plugin_folder / "plugged_in-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged-in\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[model_factory.plugins]\nany_name = plugged_in\n")
    factory = make_remote(start_server().address)
    origins = {block.name: block.origin for block in factory.blocks()}
    assert origins["plugged"] == origins["op:double"] == "plugged_in"


def test_only_workers_import_plugins(
    plugin_folder: Path, start_server: Callable[..., ServerProcess], make_remote: MakeRemote
) -> None:
    (plugin_folder / "plugged_in.py").write_text(LINEAR_BLOCK)
    server = start_server(None, "--plugin", "plugged_in")
    factory = make_remote(server.address)
    layer = {"_type_": "plugged", "in_features": 3, "out_features": 2}
    assert_same(observe(factory.build(config_of(layer)), {"x": torch.ones(2, 3)})["outputs"].shape, torch.Size([2, 2]))
    doubled = factory.build(config_of({"_type_": "nn.Identity"}, "op:double"))
    assert_same(doubled(torch.ones(2)), torch.full((2,), 2.0))
    importers = [int(line) for line in (plugin_folder / "importers").read_text().split()]
    assert len(importers) == len(set(importers)) >= 3, "each job has a process of its own"
    assert server.alive
    assert not set(importers) & {server.pid, *(pid for pid, _ in descendants(server.pid))}, (
        "the server or the fork server imported the plug-in"
    )


BAD_PLUGINS = {
    "raises": ("raise RuntimeError('no licence')", r"plug-in 'bad' cannot be used: RuntimeError: no licence"),
    "exits": ("raise SystemExit(0)", r"plug-in 'bad' cannot be used: SystemExit: 0"),
    "no register": ("", r"plug-in 'bad' has no function register"),
    "name taken": (
        "from torch import nn\ndef register(registry): registry.register_module('mlp', nn.Linear)",
        r"plug-in 'bad' cannot be used: ValueError: module type 'mlp' is registered already",
    ),
    "not there": (None, r"plug-in 'bad' is not installed: this Python finds no module 'bad'"),
}


@pytest.mark.parametrize("kind", BAD_PLUGINS)
def test_bad_plugin(kind: str, plugin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, message = BAD_PLUGINS[kind]
    if code is not None:
        (plugin_folder / "bad.py").write_text(code)
    monkeypatch.syspath_prepend(plugin_folder)
    monkeypatch.delitem(sys.modules, "bad", raising=False)
    settings = BackendSettings(plugins=("bad",))
    with pytest.raises(ServerError, match=re.escape(message)) as caught:
        operator_files(settings), load_backend(settings)
    assert str(plugin_folder) not in str(caught.value)


def test_bad_plugin_fails_the_start(plugin_folder: Path, tmp_path: Path) -> None:
    code, message = BAD_PLUGINS["raises"]
    (plugin_folder / "bad.py").write_text(code)
    command = [COMMAND, "serve", "--listen", "127.0.0.1:0", "--store", tmp_path / "store", "--plugin", "bad"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert ended.returncode == 1
    assert message in ended.stderr
    assert "listening" not in ended.stdout
    assert str(plugin_folder) not in ended.stderr.rpartition("error: ")[2]


@pytest.mark.slow
def test_changed_plugin_is_noticed(
    plugin_folder: Path, start_server: Callable[..., ServerProcess], make_remote: MakeRemote
) -> None:
    """Otherwise the new code's builds would be kept under the old code's keys."""
    (plugin_folder / "plugged_in.py").write_text(LINEAR_BLOCK)
    server = start_server(None, "--plugin", "plugged_in")
    factory = make_remote(server.address)
    layer = {"_type_": "plugged", "in_features": 3, "out_features": 2}
    factory.build(config_of(layer))
    before = factory._connection.capabilities().backend.code_digest
    (plugin_folder / "plugged_in.py").write_text(LINEAR_BLOCK.replace("nn.Linear", "nn.Bilinear"))
    with pytest.raises(ServerError, match=r"has changed since it started\. Remedy: restart it"):
        factory.build(config_of(layer | {"in_features": 4}))
    assert server.stop() == 0
    restarted = make_remote(start_server(None, "--plugin", "plugged_in").address)
    assert restarted._connection.capabilities().backend.code_digest != before
