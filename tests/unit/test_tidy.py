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


def test_torch_reads_pickles_without_code_in_one_place():
    """``weights_only`` makes tensors and plain containers of a file, and nothing else."""
    users = [path for path in SOURCES if "torch.load" in calls_and_names(path)]
    assert [str(path.relative_to(ROOT)) for path in users] == ["client/model_factory/checkpoint/state_file.py"]
    calls = [
        node
        for node in ast.walk(ast.parse(users[0].read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert ["weights_only=True" in ast.unparse(call) for call in calls] == [True]


@pytest.mark.parametrize("banned", ["pickle", "torch.save", "eval", "exec", "marshal", "shelve"])
def test_nothing_unpickles_or_evaluates(banned):
    assert [str(path) for path in SOURCES if banned in calls_and_names(path)] == []


def test_the_server_unpickles_nothing_that_a_builder_sends():
    """``Connection.recv`` unpickles: a new worker reads its job from the server, and its plan from its own copy."""
    readers = [path for path in SOURCES if any(name.endswith(".recv") for name in calls_and_names(path))]
    assert [path.name for path in readers] == ["preload.py", "run_in_fork.py"]
    assert not any("builds" in path.parts for path in readers)


def test_only_the_loader_of_trusted_source_executes_code():
    """What executes code: a compiled text, and a loader given to Python's import system."""
    means = {"compile", "builtins.compile", "InspectLoader", "SourceLoader", "importlib.abc", "runpy", "imp"}
    found = {str(path.relative_to(ROOT)) for path in SOURCES if calls_and_names(path) & means}
    assert found == {"client/model_factory/source/loader.py"}


def test_only_settings_read_the_environment():
    readers = [path for path in SOURCES if calls_and_names(path) & {"os.environ", "os.getenv", "environ"}]
    assert [path.name for path in readers if path.name != "environment.py"] == []


def test_one_module_prints_and_one_escapes():
    """Foreign text has no way around ``wording.printable`` to a terminal or a log, nor past the errors here."""

    def users(*names):
        return {str(path.relative_to(ROOT)) for path in SOURCES if calls_and_names(path) & set(names)}

    def methods(*names):
        ends = tuple(f".{name}" for name in names)
        return {
            str(path.relative_to(ROOT))
            for path in SOURCES
            if any(name.endswith(ends) for name in calls_and_names(path))
        }

    client, server = "client/model_factory", "server/model_factory_server"
    assert users("print") == {f"{client}/cli/output.py"}
    assert users("sys.stdout", "sys.__stdout__") == {
        f"{client}/cli/output.py",  # escapes
        f"{client}/cli/commands.py",  # closes it after its reader
        f"{server}/worker/main.py",  # replaces it by a stream that escapes
        f"{server}/worker/fork_server_main.py",  # flushes
    }
    assert users("sys.exit") == {f"{client}/__main__.py"}
    assert users("sys.stderr", "sys.__stderr__") == {
        f"{client}/cli/output.py",  # escapes
        f"{server}/worker/main.py",  # as above
        f"{server}/worker/fork_server_main.py",  # as above
        f"{client}/client/progress.py",  # asks whether it is a terminal
        f"{server}/observe/logs.py",  # hands it to a handler whose formatter escapes
    }
    assert users("tqdm") == {f"{client}/client/progress.py"}
    assert methods("isprintable") == {f"{client}/wording.py", f"{client}/client/credentials.py"}  # a token's syntax
    assert methods("__str__", "write_through", "logging.Formatter") <= {
        f"{client}/errors.py",
        f"{server}/observe/logs.py",
    }
    for name in ("logging.Formatter", "logging.StreamHandler", "logging.basicConfig"):
        assert users(name) == {f"{server}/observe/logs.py"}, name


def test_no_error_is_outside_of_the_base_class_that_escapes():
    """The errors of another base never reach a user as they are."""
    bases = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    ours = {"ModelFactoryError"}
    while more := {name for name, parents in bases.items() if parents & ours} - ours:
        ours |= more
    others = {name for name, parents in bases.items() if any(item.endswith(("Error", "Exception")) for item in parents)}
    caught = {
        "_ReachedError",
        "BranchMissError",
        "DecidesByValuesError",
        "DtypeDecidesError",
        "UnknownInnerCallError",
        "_NoFormError",
    }  # inside the function that makes them fail
    assert others - ours == caught | {"CheckError"}  # the doctor escapes its text


def test_the_table_of_attacks_names_tests_that_there_are():
    """Each row a file with tests in it or a folder of such files, and each file of attacks in some row."""
    page = (ROOT / "docs" / "attacks.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    attacks = [row for row in rows if row not in (["Threat", "Before", "Now", "Test"], ["---"] * 4)]
    assert len(attacks) > 100
    named = set()
    for threat, _before, _now, test in attacks:
        paths = re.findall(r"`([^`]+)`", test)
        assert paths, threat
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
