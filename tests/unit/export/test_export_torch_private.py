"""Torch's private names are in one module, whose check names a missing name; patches of torch are in one table."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from model_factory_server.export import torch_private
from model_factory_server.export.conditions.symbols import DecisionShapeEnv, SymbolTable
from model_factory_server.export.torch_patches import patch_table, patch_torch
from model_factory_server.export.trace.tape import Tape

SERVER = Path(torch_private.__file__).parents[1]
PRIVATE = re.compile(r"torch\.(\w+\.)*_(?!_)|torch\.fx\.experimental\.")


def private_uses(path: Path) -> Iterator[str]:
    """Imports of private names and modules of torch, and private attributes of the module ``torch``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        else:
            continue
        yield from (name for name in names if PRIVATE.match(name))


def test_private_names_of_torch_are_in_one_module() -> None:
    """Exceptions: a preloaded module, and ``torch._C`` in two modules outside the export."""
    uses = {path.relative_to(SERVER).as_posix(): set(private_uses(path)) for path in SERVER.rglob("*.py")}
    assert uses.pop("export/torch_private.py")
    assert {place: names for place, names in uses.items() if names} == {
        "constructor/registry.py": {"torch._C", "torch._C._jit_get_schemas_for_operator"},
        "worker/files/native_readers.py": {"torch._C"},
        "worker/preload.py": {"torch.fx.experimental.validator"},
    }


def test_a_missing_module_name_is_named_with_torch_s_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch._dynamo.source", ModuleType("torch._dynamo.source"))
    spec = importlib.util.spec_from_file_location("copy_of_torch_private", torch_private.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(
        ImportError, match=rf"^torch {re.escape(torch.__version__)}: .*'ConstantSource'.*Remedy: install 'torch>="
    ):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_a_missing_attribute_is_named_with_torch_s_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch_private.ShapeEnv, "create_symintnode")
    with pytest.raises(ImportError, match=rf"^torch {re.escape(torch.__version__)}: .*ShapeEnv.*'create_symintnode'"):
        torch_private._check()


def tape() -> Tape:
    shape_env = DecisionShapeEnv()
    return Tape(shape_env, SymbolTable(shape_env), nn.Module(), (), make_fake=torch.clone)


def test_every_patch_is_applied_and_undone() -> None:
    table = patch_table(tape())
    assert len({(item.owner, item.name) for item in table}) == len(table)
    before = [inspect.getattr_static(item.owner, item.name, None) for item in table]
    inside = []

    def fail_inside() -> None:
        with patch_torch(tape()):
            inside.extend(inspect.getattr_static(item.owner, item.name, None) for item in table)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert all(item.why for item in table)
    assert all(patched is not original for patched, original in zip(inside, before, strict=True))
    assert [inspect.getattr_static(item.owner, item.name, None) for item in table] == before
