"""What a backend is: its files are found without importing them, and each counts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from model_factory.digest import Blob
from model_factory.documents import encode_document
from model_factory.errors import ServerError
from model_factory.identity import BuildReference
from model_factory_server.backends.code_files import code_files, digest_of_files, local_hub_repository
from model_factory_server.backends.identity import BackendIdentity, identify
from model_factory_server.backends.redaction import without_paths
from model_factory_server.builds.checked_config import CheckedConfig
from model_factory_server.builds.keys import architecture_key, build_key, call_key
from model_factory_server.settings.server_settings import BackendSettings, HubSettings

RELU = {"schema_version": 1, "model": {"sequential": {"layers": [{"_type_": "nn.ReLU"}]}}}
CONFIG = CheckedConfig.parse(encode_document(RELU))


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return write(
        tmp_path / "checkout",
        {
            "model_constructor/__init__.py": "raise RuntimeError('imported')",
            "model_constructor/blocks/__init__.py": "",
            "model_constructor/blocks/table.json": "{}",
            "sibling.py": "",
            "pyproject.toml": "[project]\nversion = '1.0'",
        },
    )


def digest_of(checkout: Path) -> str:
    return identify(BackendSettings(name="policy_constructor", path=checkout), "cpu").code_digest


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda path: (path / "model_constructor/__init__.py").write_text("x = 1"),
    "data file": lambda path: (path / "model_constructor/blocks/table.json").write_text("{1}"),
    "new file": lambda path: (path / "model_constructor/new.py").write_text(""),
    "removed": lambda path: (path / "sibling.py").unlink(),
    "renamed": lambda path: (path / "sibling.py").rename(path / "brother.py"),
    "version": lambda path: (path / "pyproject.toml").write_text("[project]\nversion = '1.1'"),
}
NO_CHANGES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda _path: None,
    "touched": lambda path: os.utime(path / "sibling.py", (1, 1)),
    "cache": lambda path: write(path, {"model_constructor/__pycache__/a.pyc": ""}),
    "hidden": lambda path: write(path, {".git/HEAD": "ref"}),
    "results": lambda path: write(path, {"runs/1/log.txt": "loss"}),
    "virtual environment": lambda path: write(path, {"env/pyvenv.cfg": "", "env/lib/a.py": ""}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_code_digest_follows_the_checkout(checkout: Path, change: str) -> None:
    before = digest_of(checkout)
    CHANGES[change](checkout)
    assert digest_of(checkout) != before


@pytest.mark.parametrize("change", NO_CHANGES)
def test_code_digest_ignores_what_is_no_code(checkout: Path, change: str) -> None:
    before = digest_of(checkout)
    NO_CHANGES[change](checkout)
    assert digest_of(checkout) == before


def test_code_digest_is_the_same_at_another_place(checkout: Path, tmp_path: Path) -> None:
    before = digest_of(checkout)
    assert digest_of(checkout.rename(tmp_path / "moved")) == before


def test_links_are_followed_and_loops_end(checkout: Path, tmp_path: Path) -> None:
    (checkout / "model_constructor" / "loop").symlink_to(checkout)
    write(tmp_path / "elsewhere", {"code.py": "x = 1"})
    (checkout / "linked").symlink_to(tmp_path / "elsewhere")
    before = digest_of(checkout)
    (tmp_path / "elsewhere" / "code.py").write_text("x = 2")
    assert digest_of(checkout) != before


def test_names_and_content_cannot_be_confused(tmp_path: Path) -> None:
    one = write(tmp_path / "one", {"a.py": "", "b.py": "x"})
    other = write(tmp_path / "other", {"a.py": "x", "b.py": ""})
    assert digest_of_files(code_files(one)) != digest_of_files(code_files(other))


def test_the_code_digest_is_part_of_every_key(checkout: Path) -> None:
    settings = BackendSettings(name="policy_constructor", path=checkout)

    def reference(identity: BackendIdentity) -> BuildReference:
        key, descriptor = architecture_key(identity, CONFIG, ""), Blob("ab" * 32, 1)
        return BuildReference(identity=identity.public, architecture_key=key, descriptor=descriptor, dtype="", seed=0)

    def keys(identity: BackendIdentity) -> list[str]:
        return [
            architecture_key(identity, CONFIG, ""),
            build_key(identity, CONFIG, "", 1),
            call_key(reference(identity), "", "path", b"{}", {}),
        ]

    before = keys(identify(settings, "cpu"))
    (checkout / "sibling.py").write_text("changed = True")
    assert not set(before) & set(keys(identify(settings, "cpu")))


def test_plugin_digest_covers_its_package_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = "raise RuntimeError('imported')"
    write(tmp_path, {"plugged/__init__.py": bomb, "plugged/deep/blocks.py": bomb, "plugged/deep/__init__.py": bomb})
    monkeypatch.syspath_prepend(tmp_path)
    settings = BackendSettings(plugins=("plugged.deep.blocks",))
    plain, before = identify(BackendSettings(), "cpu"), identify(settings, "cpu")
    assert plain.code_digest != before.code_digest
    (tmp_path / "plugged" / "deep" / "weights.bin").write_bytes(b"\1")
    assert identify(settings, "cpu").code_digest != before.code_digest
    assert "plugged" not in sys.modules


@pytest.mark.parametrize("name", ["there_is_none", "sys", "a/b", "../etc", "", "x..y"])
def test_plugins_without_source_are_refused(name: str) -> None:
    with pytest.raises(ServerError, match=r"plug-in .*(is not installed|has no source files)"):
        identify(BackendSettings(plugins=(name,)), "cpu")


def test_versions_of_installed_packages_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For an operator's code, which may import any of them; the built-in blocks import torch alone."""
    write(tmp_path, {"plugged.py": "", "library-1.0.dist-info/METADATA": "Name: library\nVersion: 1.0\n"})
    monkeypatch.syspath_prepend(tmp_path)
    settings = BackendSettings(plugins=("plugged",))
    plain, before = identify(BackendSettings(), "cpu"), identify(settings, "cpu")
    write(tmp_path, {"library-1.0.dist-info/METADATA": "Name: library\nVersion: 1.1\n"})
    assert identify(settings, "cpu").code_digest != before.code_digest
    assert identify(BackendSettings(), "cpu").code_digest == plain.code_digest


def test_allowed_files_count(tmp_path: Path) -> None:
    allowed = [BackendSettings(), BackendSettings(allow_files=(tmp_path,)), BackendSettings(allow_files=(Path("/a"),))]
    assert len({identify(settings, "cpu").code_digest for settings in allowed}) == 3


def test_order_of_plugins_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"first_one.py": "", "second_one.py": ""})
    monkeypatch.syspath_prepend(tmp_path)
    one = identify(BackendSettings(plugins=("first_one", "second_one")), "cpu")
    assert one.code_digest != identify(BackendSettings(plugins=("second_one", "first_one")), "cpu").code_digest


def test_hub_settings_and_files_count(tmp_path: Path) -> None:
    write(tmp_path, {"hubconf.py": "", "checkpoints/weights.bin": "1"})

    def digest(**hub: object) -> str:
        return identify(BackendSettings(hub=HubSettings(**hub)), "cpu").code_digest  # type: ignore[arg-type]

    digests = [digest(), digest(version="v"), digest(repository="o/n"), digest(directory=tmp_path)]
    (tmp_path / "checkpoints" / "weights.bin").write_text("2")
    digests.append(digest(directory=tmp_path))
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize(
    ("folder", "repository", "found"),
    [
        ("", "o/n", ""),
        ("o_n_main", "o/n", "o_n_main"),
        ("o_n_v1", "o/n:v1", "o_n_v1"),
        ("o_n_v1", "o/n:v2", None),
        ("o_other_main", "o/n", None),
    ],
)
def test_local_hub_repository(tmp_path: Path, folder: str, repository: str, found: str | None) -> None:
    write(tmp_path / folder, {"hubconf.py": ""})
    expected = None if found is None else tmp_path / found
    assert local_hub_repository(HubSettings(repository=repository, directory=tmp_path)) == expected


def test_identity_imports_no_torch() -> None:
    code = (
        "import sys; import model_factory_server.app; from model_factory_server.backends.identity import identify; "
        "from model_factory_server.settings.server_settings import BackendSettings; "
        "identify(BackendSettings(), 'cpu'); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read /data/robot/weights.pt", "cannot read .../weights.pt"),
        ("from 'x' (/opt/lib/python3/x.py)", "from 'x' (.../x.py)"),
        ("No such file: '/data/a b'", "No such file: '.../a b'"),
        ("file:///srv/secret/model", ".../model"),
        ("error:/srv/secret/model", "error:.../model"),
        ("/", "/"),
        ("and/or, 3/4 of it, https://host/path/x", "and/or, 3/4 of it, https://host/path/x"),
    ],
)
def test_paths_are_cut(text: str, shown: str) -> None:
    assert without_paths(text) == shown
