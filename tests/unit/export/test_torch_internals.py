"""Torch's private names are in one module, whose check names a missing name; patches of torch are in one table."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from model_factory_server.export import torch_internals
from model_factory_server.export.conditions.symbols import DecisionShapeEnv, SymbolTable
from model_factory_server.export.torch_patches import patch_table, patch_torch
from model_factory_server.export.trace.tape import Tape

EXPORT = Path(torch_internals.__file__).parent
PRIVATE = re.compile(
    r"^\s*(?:from|import) torch(?:\.\w+)*(?:\._\w+|\.fx\.experimental)|^\s*from torch[\w.]* import _\w+"
)


def test_private_names_of_torch_are_imported_in_one_module() -> None:
    importing = {
        path.relative_to(EXPORT).as_posix()
        for path in EXPORT.rglob("*.py")
        if any(map(PRIVATE.search, path.read_text(encoding="utf-8").splitlines()))
    }
    assert importing == {"torch_internals.py"}


def test_a_missing_module_name_is_named_with_torch_s_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch._dynamo.source", ModuleType("torch._dynamo.source"))
    spec = importlib.util.spec_from_file_location("copy_of_torch_internals", torch_internals.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(
        ImportError, match=rf"^torch {re.escape(torch.__version__)}: .*'ConstantSource'.*Remedy: install 'torch>="
    ):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_a_missing_attribute_is_named_with_torch_s_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch_internals.ShapeEnv, "create_symintnode")
    with pytest.raises(ImportError, match=rf"^torch {re.escape(torch.__version__)}: .*ShapeEnv.*'create_symintnode'"):
        torch_internals._check()


def tape() -> Tape:
    shape_env = DecisionShapeEnv()
    return Tape(shape_env, SymbolTable(shape_env), nn.Module(), ())


def test_every_patch_is_applied_and_undone() -> None:
    table = patch_table(tape())
    assert len({(item.owner, item.name) for item in table}) == len(table)
    before = [inspect.getattr_static(item.owner, item.name) for item in table]
    inside = []

    def fail_inside() -> None:
        with patch_torch(tape()):
            inside.extend(inspect.getattr_static(item.owner, item.name) for item in table)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert all(item.why for item in table)
    assert all(patched is not original for patched, original in zip(inside, before, strict=True))
    assert [inspect.getattr_static(item.owner, item.name) for item in table] == before
