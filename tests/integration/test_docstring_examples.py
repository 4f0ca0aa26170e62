"""The examples in docstrings run as written, and every public name has an example."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import model_factory
import model_factory_server
from model_factory.store import Blob
from support.server import ServerProcess

ROOT = Path(__file__).parents[2]
FOLDERS = (ROOT / "client", ROOT / "server")
MODEL_CFG = {
    "config": {
        "schema_version": 1,
        "model": {"sequential": {"layers": [{"_type_": "nn.Linear", "in_features": 8, "out_features": 4}]}},
    }
}


def modules_with_examples() -> Iterator[str]:
    for folder in FOLDERS:
        for path in sorted(folder.glob("model_factory*/**/*.py")):
            if re.search(r"^\s*>>> ", path.read_text(encoding="utf-8"), re.MULTILINE):
                yield ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")


@pytest.fixture
def names(server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The names that examples use without an import; ``server`` is the address of a running server."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    public = {name: getattr(model_factory, name) for name in model_factory.__all__}
    with model_factory.RemoteModelFactory(server.address) as factory:
        more = {"server": server.address, "factory": factory, "model_cfg": MODEL_CFG}
        yield public | more | {"Blob": Blob, "torch": torch, "time": time}


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_examples_run(name: str, names: dict[str, Any]) -> None:
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report: list[str] = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name, extraglobs=names):
        runner.run(test, out=report.append)
    assert runner.tries > 0, "the examples are in no docstring"
    assert runner.failures == 0, "".join(report)


@pytest.mark.parametrize("package", [model_factory, model_factory_server], ids=lambda package: package.__name__)
def test_every_public_name_has_an_example(package: ModuleType) -> None:
    without = [name for name in package.__all__ if not has_example(getattr(package, name))]
    assert without == []


def has_example(item: Any) -> bool:
    """Whether the docstring of a class or function itself has an example; an inherited docstring does not count."""
    source = inspect.getsource(item)
    (node,) = ast.parse(inspect.cleandoc(source) if source[0].isspace() else source).body
    return ">>> " in (ast.get_docstring(node) or "")  # type: ignore[arg-type]
