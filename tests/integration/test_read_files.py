"""Files that constructors read belong to the build: a changed file is another model, a file not allowed is refused."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from model_factory import BuildError, OutdatedBuildError, RemoteModelFactory, ServerError
from support.plugins.reading import READERS, write
from support.server import ServerProcess, running_server
from support.wire import build_manifest

MakeRemote = Callable[..., RemoteModelFactory]
PLUGINS = Path(__file__).parents[1] / "support" / "plugins"

READS_BY_DEPENDENCE = ["open", "torch.load", "safetensors", "folder"]


def config(block: str, **arguments: Any) -> dict[str, Any]:
    spec = {
        "_type_": block,
        **{name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()},
    }
    return {"config": {"schema_version": 1, "model": {"sequential": {"layers": [spec]}}}}


def weight(factory: RemoteModelFactory, model_cfg: dict[str, Any]) -> float:
    return float(factory.build(model_cfg).graph_modules.layer0.layer.weight.detach())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the operator allows."""
    return tmp_path_factory.mktemp("allowed")


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the builds of the server put temporary files."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def torch_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torch_home")


@pytest.fixture(scope="module")
def reading(
    data: Path, temporary: Path, torch_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(PLUGINS), prepend=os.pathsep)
        patch.setenv("TMPDIR", str(temporary))
        patch.setenv("TORCH_HOME", str(torch_home))
        store = tmp_path_factory.mktemp("reading") / "store"
        with running_server(store, "--plugin", "reading", "--allow-files", str(data)) as process:
            yield process


@pytest.mark.parametrize("reader", READERS)
def test_a_changed_file_is_another_model_and_back(
    reader: str, reading: ServerProcess, data: Path, make_remote: MakeRemote
) -> None:
    """However a constructor reads: by Python, by torch, by safetensors, by NumPy; under another seed as well."""
    path = data / f"{reader.replace(' ', '-')}.file"
    factory = make_remote(reading.address)
    asked = config("filled", path=path, reader=reader)
    for value in (2.0, 3.0, 2.0):
        write(reader, path, value)
        assert weight(factory, asked) == value
        assert weight(factory, asked) == value, "from the answers that the server keeps"
        assert weight(make_remote(reading.address, seed=8), asked) == value


@pytest.mark.parametrize("keep_times", [False, True], ids=["", "same size and time"])
def test_a_file_that_is_replaced(keep_times: bool, reading: ServerProcess, data: Path, make_remote: MakeRemote) -> None:
    """Another file of the same size and time of change, as rsync puts there."""
    path = data / f"replaced-{keep_times}"
    factory = make_remote(reading.address)
    for value in ("4", "5", "4"):
        beside = path.with_suffix(".new")
        beside.write_text(value, encoding="ascii")
        if keep_times:
            os.utime(beside, (1_000_000, 1_000_000))
        beside.replace(path)
        assert weight(factory, config("filled", path=path)) == float(value)


def test_a_link_that_is_switched(reading: ServerProcess, data: Path, make_remote: MakeRemote) -> None:
    for number in (1, 2):
        (data / f"version{number}").write_text(str(number), encoding="ascii")
    link = data / "latest"
    for number in (1, 2, 1):
        link.unlink(missing_ok=True)
        link.symlink_to(data / f"version{number}")
        assert weight(make_remote(reading.address), config("filled", path=link)) == number


def test_keys_differ_where_files_do(reading: ServerProcess, data: Path) -> None:
    path = data / "keyed"
    asked = config("filled", path=path)
    keys = []
    for value in ("1", "2", "1"):
        path.write_text(value, encoding="ascii")
        keys += build_manifest(reading.address, asked).values()
    assert keys[0].build_key == keys[2].build_key != keys[1].build_key
    assert keys[0].architecture_key == keys[2].architecture_key != keys[1].architecture_key
    assert keys[0].weights == keys[2].weights != keys[1].weights


@pytest.mark.parametrize("portability", [False, True])
def test_descriptions_follow_files(
    portability: bool, reading: ServerProcess, data: Path, make_remote: MakeRemote
) -> None:
    """Also those that are made in a process of their own, on the meta device."""
    path = data / f"width-{portability}"
    factory = make_remote(reading.address)
    for width in (3, 5, 3):
        path.write_text(str(width), encoding="ascii")
        described = factory.describe(config("sized", path=path), portability=portability)
        assert described.bytes == 4 * (width + 1)
        assert factory.describe(config("sized", path=path), portability=portability).bytes == 4 * (width + 1)


def test_a_program_of_other_files_is_refused(reading: ServerProcess, data: Path, make_remote: MakeRemote) -> None:
    """The constant of a forward, rolled forward and back under models that are trained meanwhile."""
    path = data / "factor"
    factory = make_remote(reading.address)
    asked = config("scaling", path=path)
    path.write_text("2", encoding="ascii")
    old = factory.build(asked)
    assert old(torch.ones(1, 1)).item() == 2
    path.write_text("3", encoding="ascii")
    with pytest.raises(
        OutdatedBuildError, match=r"other files than this server reads now.*Remedy: build the model again"
    ):
        old(torch.ones(1, 1, 1))
    new = factory.build(asked)
    assert new(torch.ones(1, 1, 1)).item() == 3
    with pytest.raises(OutdatedBuildError):
        old(torch.ones(1, 1, 1))
    path.write_text("2", encoding="ascii")
    assert old(torch.ones(1, 1, 1)).item() == 2
    assert new(torch.ones(1, 1, 1)).item() == 3
    with pytest.raises(OutdatedBuildError):
        new(torch.ones(1, 1, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("reader", READS_BY_DEPENDENCE)
def test_a_file_that_changes_while_no_server_runs(
    reader: str, tmp_path: Path, start_server: Callable[..., ServerProcess], make_remote: MakeRemote,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", str(PLUGINS), prepend=os.pathsep)
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "file"
    for value in (2.0, 3.0, 2.0):
        write(reader, path, value)
        server = start_server(None, "--plugin", "reading", "--allow-files", str(tmp_path / "data"))
        assert weight(make_remote(server.address), config("filled", path=path, reader=reader)) == value
        server.stop()


@pytest.mark.parametrize("forgiving", [False, True], ids=["", "where the block goes on without"])
@pytest.mark.parametrize("reader", [reader for reader in READERS if reader != "folder"])  # which reads no content
def test_a_file_outside_is_refused_by_name(
    reader: str, forgiving: bool, reading: ServerProcess, tmp_path: Path, make_remote: MakeRemote
) -> None:
    path = tmp_path / "private-folder" / "outside.file"
    path.parent.mkdir()
    write(reader, path, 2.0)
    before = len(reading.log)
    asked = config("filled", path=path, reader=reader, forgiving=forgiving)
    for call in (make_remote(reading.address).build, make_remote(reading.address).describe):
        with pytest.raises(BuildError, match=r"reading .*outside\.file is not allowed.*--allow-files") as caught:
            call(asked)
        assert "private-folder" not in str(caught.value)
        if not forgiving:
            assert caught.value.path == ("model", "sequential", "layers", 0)
    assert str(path) in reading.log[before:], "the log tells the operator which file"


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/self/root/etc/passwd", "/usr/../etc/passwd", "linked"])
def test_the_systems_files_are_not_a_models(
    path: str, reading: ServerProcess, data: Path, make_remote: MakeRemote
) -> None:
    if path == "linked":
        link = data / "linked"
        link.symlink_to("/etc/passwd")
        path = str(link)
    with pytest.raises(BuildError, match=r"reading .* is not allowed"):
        make_remote(reading.address).build(config("filled", path=path, forgiving=True))


def test_the_folder_of_torch_hub_is_allowed(reading: ServerProcess, torch_home: Path, make_remote: MakeRemote) -> None:
    path = torch_home / "hub" / "checkpoints" / "weights.pt"
    path.parent.mkdir(parents=True)
    for value in (2.0, 3.0, 2.0):
        write("torch.load", path, value)
        assert weight(make_remote(reading.address), config("filled", path=path, reader="torch.load")) == value


@pytest.mark.parametrize("native", [False, True])
def test_temporary_files_of_a_build_are_its_own(
    native: bool, reading: ServerProcess, temporary: Path, make_remote: MakeRemote
) -> None:
    assert weight(make_remote(reading.address), config("temporary", folder=temporary, native=native)) == 2
    others = temporary / f"others-{native}"
    others.write_text("3", encoding="ascii")
    with pytest.raises(BuildError, match="is not allowed"):
        make_remote(reading.address).build(config("filled", path=others))


def test_code_that_lies_elsewhere_is_imported_and_quoted(
    tmp_path: Path, start_server: Callable[..., ServerProcess], make_remote: MakeRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an editable installation has code found, from a folder that is not on Python's path."""
    folder, elsewhere = tmp_path / "plugin", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    (elsewhere / "blocks.py").write_text((PLUGINS / "reading.py").read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "finding.py").write_text(
        "import importlib.util, inspect, sys\n"
        f"spec = importlib.util.spec_from_file_location('blocks', {str(elsewhere / 'blocks.py')!r})\n"
        "module = sys.modules['blocks'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "assert 'class Filled' in inspect.getsource(module)\n"
        "register = module.register\n",
        encoding="utf-8",
    )
    (folder / "value").write_text("2", encoding="ascii")
    factory = make_remote(start_server(None, "--plugin", "finding").address)
    model = factory.build(config("filled", path=folder / "value"))
    assert model(torch.ones(1, 1)).item() == 2
    (elsewhere / "blocks.txt").write_text("2", encoding="ascii")
    with pytest.raises(BuildError, match=r"blocks\.txt is not allowed"):
        factory.build(config("filled", path=elsewhere / "blocks.txt"))


@pytest.mark.parametrize("replica", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_replicas_with_one_store_follow_files(
    replica: int, tmp_path: Path, start_server: Callable[..., ServerProcess], make_remote: MakeRemote,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Whichever of them meets a change first."""
    monkeypatch.setenv("PYTHONPATH", str(PLUGINS), prepend=os.pathsep)
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "file"
    options = ("--plugin", "reading", "--allow-files", str(tmp_path / "data"))
    path.write_text("2", encoding="ascii")
    replicas = [start_server(None, *options) for _ in range(2)]
    for value in ("2", "3", "2", "4"):
        path.write_text(value, encoding="ascii")
        for server in (replicas[replica], replicas[1 - replica], replicas[replica]):
            assert weight(make_remote(server.address), config("filled", path=path)) == float(value)


def test_what_a_plugin_reads_at_its_import(
    tmp_path: Path, start_server: Callable[..., ServerProcess], make_remote: MakeRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file beside the plug-in, read once for all models."""
    folder = tmp_path / "plugin"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    (folder / "importing.py").write_text(
        "from pathlib import Path\nfrom torch import nn\n"
        "VALUE = float(Path(__file__).with_name('value.txt').read_text())\n"
        "class Constant(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(1, 1, bias=False)\n"
        "        nn.init.constant_(self.layer.weight, VALUE)\n"
        "    def forward(self, x):\n"
        "        return self.layer(x)\n"
        "def register(registry): registry.register_module('constant', Constant)\n",
        encoding="utf-8",
    )
    (folder / "value.txt").write_text("2", encoding="ascii")
    server = start_server(None, "--plugin", "importing")
    for value in ("2", "3", "2"):
        (folder / "value.txt").write_text(value, encoding="ascii")
        assert weight(make_remote(server.address), config("constant")) == float(value)


@pytest.mark.slow
def test_a_file_of_a_plugins_package_needs_a_restart(
    tmp_path: Path, start_server: Callable[..., ServerProcess], make_remote: MakeRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is part of the code digest; without a restart nothing is built with it, and nothing old is found."""
    package = tmp_path / "packages" / "packaged"
    package.mkdir(parents=True)
    monkeypatch.setenv("PYTHONPATH", str(package.parent), prepend=os.pathsep)
    source = (PLUGINS / "reading.py").read_text(encoding="utf-8")
    (package / "__init__.py").write_text(source, encoding="utf-8")
    path = package / "weights.txt"
    path.write_text("2", encoding="ascii")
    server = start_server(None, "--plugin", "packaged")
    asked = config("filled", path=path)
    assert weight(make_remote(server.address), asked) == 2
    for value in ("3", "2"):
        path.write_text(value, encoding="ascii")
        with pytest.raises(ServerError, match=r"has changed since it started\. Remedy: restart it"):
            make_remote(server.address).build(config("filled", path=path, forgiving=True))
        if value == "3":
            with pytest.raises(ServerError, match=r"has changed since it started\. Remedy: restart it"):
                make_remote(server.address).build(asked)
        server.stop()
        server = start_server(None, "--plugin", "packaged")
        assert weight(make_remote(server.address), asked) == float(value)


@pytest.mark.parametrize("asks", ["once", "again, after the change"])
def test_a_file_that_changes_while_it_is_read(
    asks: str, reading: ServerProcess, data: Path, tmp_path: Path, make_remote: MakeRemote
) -> None:
    """The build is made again: whoever asks after the change gets the new content, and nothing is kept of a mixture."""
    path = data / f"changing-{asks == 'once'}"
    path.write_text("2", encoding="ascii")
    asked = config("slow", path=path, folder=tmp_path)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(weight, make_remote(reading.address), asked)
        while not (tmp_path / "read").exists():
            assert not first.done(), first.result()
            time.sleep(0.02)
        path.write_text("3", encoding="ascii")
        second = pool.submit(weight, make_remote(reading.address), asked) if asks != "once" else first
        time.sleep(0.3)
        (tmp_path / "go").touch()
        assert second.result() == 3
        assert first.result() == 3
    path.write_text("2", encoding="ascii")
    assert weight(make_remote(reading.address), asked) == 2


def test_the_default_temporary_folder_is_no_way_around(reading: ServerProcess, make_remote: MakeRemote) -> None:
    with tempfile.NamedTemporaryFile("w", dir="/var/tmp") as file:
        file.write("2")
        file.flush()
        with pytest.raises(BuildError, match="is not allowed"):
            make_remote(reading.address).build(config("filled", path=file.name))
