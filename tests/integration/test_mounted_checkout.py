"""What a mounted checkout meets on a server: the hub folder, places of errors, warnings of constructors."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model_factory import RemoteModelFactory
from model_factory.errors import BuildError, ConfigError, ServerError
from model_factory_server import PolicyConstructorModelFactory
from model_factory_server.settings.server_settings import BackendSettings, HubSettings
from support.checkouts import imported, write_checkout
from support.compare import assert_same_runs, assert_same_state, train
from support.hub import write_hub
from support.server import ServerProcess, running_server

SEED = 7
MakeRemote = Callable[..., RemoteModelFactory]
StartServer = Callable[..., ServerProcess]

POLICY = """\
schema_version: 1
params:
  width: 3
model:
  graph:
    inputs: [x]
    modules:
      first: {{_type_: nn.Identity}}
      only:
        _type_: {type}
        {arguments}
    steps:
      - {{call: "module:first", args: [$x], out: h}}
      - {{call: "module:only", args: [$h], out: y}}
    outputs: [y]
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkout(tmp_path_factory.mktemp("mounted") / "checkout")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_hub(tmp_path_factory.mktemp("hub") / "hub")
    (folder / "checkpoints").mkdir()
    write_layer(folder, 0.5)
    return folder


@pytest.fixture(scope="module")
def hub_server(checkout: Path, hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running_server(tmp_path_factory.mktemp("server") / "store", *options(checkout, hub)) as process:
        yield process


@pytest.fixture
def remote(hub_server: ServerProcess, make_remote: MakeRemote) -> RemoteModelFactory:
    return make_remote(hub_server.address)


def options(checkout: Path, hub: Path) -> tuple[str, ...]:
    return "--backend", "policy_constructor", "--backend-path", str(checkout), "--hub-dir", str(hub)


def write_layer(hub: Path, value: float) -> None:
    file = hub / "checkpoints" / "layer.pth"
    torch.save({"weight": torch.full((4, 4), value), "bias": torch.zeros(4)}, file.with_suffix(".new"))
    file.with_suffix(".new").rename(file)


def policy(folder: Path, kind: str, arguments: str) -> dict[str, Any]:
    path = folder / "policy.yaml"
    path.write_text(POLICY.format(type=kind, arguments=arguments))
    return {"config_path": str(path)}


def in_process(checkout: Path, hub: Path, config: dict[str, Any]) -> Any:
    settings = BackendSettings(name="policy_constructor", path=checkout, hub=HubSettings(directory=hub))
    with imported(checkout):
        return PolicyConstructorModelFactory(seed=SEED, backend=settings).build(config)


# The hub folder


def test_weights_of_a_checkout_come_from_the_hub_folder(
    remote: RemoteModelFactory, checkout: Path, hub: Path, tmp_path: Path
) -> None:
    config = policy(tmp_path, "pretrained", "file: layer.pth")
    before = torch.hub.get_dir()
    built = remote.build(config)
    assert built.graph_modules["only"].layer.weight.eq(0.5).all()
    local = in_process(checkout, hub, config)
    assert torch.hub.get_dir() == before
    assert_same_state(built, local)
    assert train(built, {"x": torch.ones(2, 4)}) == train(local, {"x": torch.ones(2, 4)})


def test_other_weights_are_another_build(remote: RemoteModelFactory, hub: Path, tmp_path: Path) -> None:
    config = policy(tmp_path, "pretrained", "file: layer.pth")
    first = remote.build(config)
    write_layer(hub, 0.25)
    try:
        other = remote.build(config)
    finally:
        write_layer(hub, 0.5)
    assert other.graph_modules["only"].layer.weight.eq(0.25).all()
    assert other.build_info.build_key != first.build_info.build_key


def test_a_repository_of_a_checkout_is_the_local_copy(
    remote: RemoteModelFactory, checkout: Path, hub: Path, tmp_path: Path
) -> None:
    """Recorded at the first call, in both modes."""
    config = policy(tmp_path, "backbone", "repository: NVlabs/RADIO")
    built, local = remote.build(config), in_process(checkout, hub, config)
    assert_same_state(built, local)
    assert_same_runs(built, local, {"x": torch.rand(2, 3, 8, 12)})


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("pretrained", "file: lost.pth", r"put the file into --hub-dir as checkpoints/lost\.pth, or start the server"),
        (
            "backbone",
            "repository: someone/else",
            r"someone/else, --hub-dir has no copy.*--hub-dir as someone_else_main",
        ),
    ],
)
def test_a_missing_file_names_the_place_and_the_flag(
    remote: RemoteModelFactory, hub: Path, tmp_path: Path, kind: str, arguments: str, message: str
) -> None:
    with pytest.raises(BuildError, match=message) as caught:
        remote.build(policy(tmp_path, kind, arguments))
    assert str(hub) not in str(caught.value)


def test_code_of_the_hub_folder_belongs_to_the_server_of_a_checkout(
    checkout: Path, tmp_path: Path, start_server: StartServer, make_remote: MakeRemote
) -> None:
    hub = write_hub(tmp_path / "hub")
    factory = make_remote(start_server(None, *options(checkout, hub)).address)
    config = policy(tmp_path, "nn.Linear", "{in_features: 3, out_features: 3}".strip("{}").replace(", ", "\n        "))
    factory.build(config)
    (hub / "hubconf.py").write_text((hub / "hubconf.py").read_text() + "\n")
    with pytest.raises(ServerError, match=r"has changed since it started\. Remedy: restart it"):
        make_remote(factory._connection.address, seed=8).build(config)


# Places of errors


@pytest.mark.parametrize("kind", ["config", "value"])
@pytest.mark.parametrize(
    ("says", "place"),
    [
        ("model.graph.modules.only.says must be odd", "11:15: model.graph.modules.only.says"),
        ("graph.modules.only.depth is missing", "10:9: model.graph.modules.only"),
        ("in modules['only']['says'] is a fault", "11:15: model.graph.modules.only.says"),
        ("see model.graph.steps[1].args", "15:37: model.graph.steps[1].args"),
    ],
)
def test_an_error_has_the_place_that_its_path_names(
    remote: RemoteModelFactory, tmp_path: Path, kind: str, says: str, place: str
) -> None:
    config = policy(tmp_path, "picky", f'says: "{says}"\n        kind: {kind}')
    with pytest.raises(ConfigError if kind == "config" else BuildError) as caught:
        remote.build(config)
    assert f"policy.yaml:{place}: " in str(caught.value)
    assert says.partition(" ")[2] in str(caught.value)


def test_a_path_may_be_an_attribute(remote: RemoteModelFactory, checkout: Path, hub: Path, tmp_path: Path) -> None:
    config = policy(tmp_path, "picky", "says: wrong\n        path: [model, graph, modules, only, says]")
    for build in (remote.build, lambda given: in_process(checkout, hub, given)):
        with pytest.raises(
            ConfigError, match=r"policy\.yaml:11:15: model\.graph\.modules\.only\.says: wrong$"
        ) as caught:
            build(config)
        assert caught.value.path == ("model", "graph", "modules", "only", "says")


def test_other_names_are_no_places(remote: RemoteModelFactory, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        remote.build(policy(tmp_path, "picky", "says: torch.nn.Linear and self.only.says"))
    assert caught.value.path == ()


# Warnings of constructors


def test_warnings_are_log_lines_of_server_and_trainer(
    checkout: Path, hub: Path, tmp_path: Path, start_server: StartServer, make_remote: MakeRemote, caplog: Any
) -> None:
    server = start_server(None, *options(checkout, hub))
    expected = [
        "blocks.py:NN: UserWarning: a width of 3 is slow",
        "model_constructor.blocks: no table at .../table.json: uses defaults",
    ]
    config = policy(tmp_path, "warns", "width: ${params.width}")
    for _ in range(2):  # built, and found in the store by a factory without a cache
        caplog.clear()
        with caplog.at_level(logging.WARNING, "model_factory"), warnings.catch_warnings(record=True) as raised:
            built = make_remote(server.address, seed=SEED).build({"policy": config["config_path"]})["policy"]
            built(torch.ones(2, 3))  # recorded: the server constructs the model again
        said = [record.getMessage() for record in caplog.records if "warns" in record.getMessage()]
        assert sorted(map(without_line, said)) == sorted(f"policy: a constructor warns: {text}" for text in expected)
        assert not raised
    log = server.log
    lines = [line for line in log.splitlines() if "is slow" in line or "no table" in line]
    assert len(lines) == 2, "once for the build, not for its plan and not for the recording"
    for line in lines:
        assert " WARNING model_factory_server." in line
        assert "request_id=" in line
    assert str(checkout) not in "".join(lines)


def test_warnings_of_a_failed_build_are_in_the_log_of_the_server(
    checkout: Path, hub: Path, tmp_path: Path, start_server: StartServer, make_remote: MakeRemote
) -> None:
    server = start_server(None, *options(checkout, hub))
    config = policy(tmp_path, "broken", "")
    path = Path(config["config_path"])
    path.write_text(path.read_text().replace("{_type_: nn.Identity}", "{_type_: warns, width: 4}"))
    with pytest.raises(BuildError, match="OSError"):
        make_remote(server.address).build(config)
    (line,) = (line for line in server.log.splitlines() if "a width of 4 is slow" in line)
    assert " WARNING model_factory_server." in line


def without_line(text: str) -> str:
    head, colon, tail = text.partition("blocks.py:")
    return head + colon + ("NN" + tail[tail.index(":") :] if colon else "")
