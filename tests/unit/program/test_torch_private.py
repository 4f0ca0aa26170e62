"""Private names of torch: taken in one module, and checked at import."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from model_factory.program.torch_private import PRIVATE_NAMES, SUPPORTED, check_torch
from versions.legs import LEGS

ROOT = Path(__file__).resolve().parents[3]
CLIENT = ROOT / "client" / "model_factory"
ROOM = CLIENT / "program" / "torch_private.py"
PRIVATE = re.compile(r"torch(\.\w+)*\._(?!_)\w+")


class Lacking:
    """Torch without one name."""

    def __init__(self, real: Any, path: str, missing: str) -> None:
        self._real = real
        self._path = path
        self._missing = missing

    def __getattr__(self, name: str) -> Any:
        return self._part(getattr(self._real, name), f"{self._path}.{name}")

    def __call__(self) -> Any:
        return self._part(self._real(), f"{self._path}()")

    def _part(self, real: Any, path: str) -> Any:
        if path == self._missing:
            raise AttributeError(path)
        return Lacking(real, path, self._missing) if self._missing.startswith(path) else real


@pytest.mark.parametrize("name", PRIVATE_NAMES)
def test_a_missing_name_is_named_with_torchs_version(name: str) -> None:
    lacking = Lacking(torch, "torch", name)
    message = f"torch {torch.__version__} has no {name}, which model-factory needs. Remedy: install 'torch>="
    with pytest.raises(ImportError, match=re.escape(message)) as caught:
        check_torch(lacking)
    assert caught.value.name == "torch"


def test_this_torch_has_every_name() -> None:
    check_torch()


def test_the_supported_versions_are_those_of_the_metadata() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [entry for entry in project["dependencies"] if entry.startswith("torch")] == [SUPPORTED]


def test_the_tests_run_on_the_lowest_and_on_the_highest_supported_version() -> None:
    lowest, below = re.fullmatch(r"torch>=(\d+\.\d+),<2\.(\d+)", SUPPORTED).groups()  # type: ignore[union-attr]
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert any(item.startswith(f"torch=={lowest}.") for item in LEGS["oldest"].requirements)
    assert any(item.startswith(f"torch==2.{int(below) - 1}.") for item in LEGS["newest"].requirements)
    assert re.search(rf"^torch==2\.{int(below) - 1}\.", constraints, re.MULTILINE)
    server = tomllib.loads((ROOT / "server" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"torch>=2.{int(below) - 1},<2.{below}" in server["dependencies"]


def private_names(path: Path) -> set[str]:
    """Return the private names of torch that a file takes by attribute or by import."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in found if PRIVATE.match(name)}


def test_private_names_are_taken_in_one_module_of_the_client() -> None:
    users = {path for path in CLIENT.rglob("*.py") if private_names(path)}
    assert users == {ROOM}
