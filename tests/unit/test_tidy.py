"""Rules about the code itself that no linter knows."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = [ROOT / "client" / "model_factory", ROOT / "server" / "model_factory_server"]
SOURCES = sorted(path for package in PACKAGES for path in package.rglob("*.py") if "_pb2" not in path.name)


@cache
def calls_and_names(path: Path) -> set[str]:
    """Every dotted name a file mentions, and every module it imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("banned", ["pickle", "torch.load", "torch.save", "eval", "exec", "marshal", "shelve"])
def test_nothing_unpickles_or_evaluates(banned):
    assert [str(path) for path in SOURCES if banned in calls_and_names(path)] == []


def test_the_server_unpickles_nothing_that_a_builder_sends():
    """``Connection.recv`` unpickles; ``run_in_fork`` uses it inside a worker, between it and its own copy."""
    readers = [path for path in SOURCES if any(name.endswith(".recv") for name in calls_and_names(path))]
    assert [path.name for path in readers] == ["run_in_fork.py"]


def test_only_the_loader_of_trusted_source_executes_code():
    """What executes code: a compiled text, and a loader given to Python's import system."""
    means = {"compile", "builtins.compile", "InspectLoader", "SourceLoader", "importlib.abc", "runpy", "imp"}
    found = {str(path.relative_to(ROOT)) for path in SOURCES if calls_and_names(path) & means}
    assert found == {"client/model_factory/source/loader.py"}


def test_only_settings_read_the_environment():
    readers = [path for path in SOURCES if calls_and_names(path) & {"os.environ", "os.getenv", "environ"}]
    assert [path.name for path in readers if path.name != "environment.py"] == []


def test_only_the_command_prints_or_exits():
    assert [
        str(path)
        for path in SOURCES
        if calls_and_names(path) & {"print", "sys.exit"}
        and path.parent.name != "cli"
        and path.name not in {"command.py", "__main__.py"}
    ] == []


def test_the_table_of_attacks_names_tests_that_there_are():
    """Each row a file with tests in it or a folder of such files, and each file of attacks in some row."""
    page = (ROOT / "docs" / "security.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    head = next(index for index, row in enumerate(rows) if row == ["Threat", "Before", "Now", "Test"])
    attacks = rows[head + 2 :]
    assert len(attacks) > 20
    named = set()
    for threat, _before, _now, test in attacks:
        paths = re.findall(r"`([^`]+)`", test)
        assert paths or (test.startswith("same") and named), threat
        named.update(paths)
    for path in named:
        place = ROOT / "tests" / path
        files = list(place.glob("test_*.py")) if path.endswith("/") else [place]
        assert files, path
        assert all(re.search(r"^def test_", file.read_text(), re.MULTILINE) for file in files), path
    assert {f"attacks/{path.name}" for path in (ROOT / "tests" / "attacks").glob("test_*.py")} <= named


def test_modules_stay_small():
    assert [str(path) for path in SOURCES if len(path.read_text().splitlines()) > 450] == []


def test_no_module_is_named_after_nothing():
    vague = {"utils", "common", "helpers", "misc"}
    assert [str(path) for path in SOURCES if path.stem in vague] == []
