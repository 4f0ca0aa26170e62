"""Files that builds may read without a note, whatever the environment of the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# In a separate process: an audit hook stays until the process ends.
SCRIPT = """
import sys
from pathlib import Path
from model_factory.errors import BuildError
from model_factory_server.worker.files.file_guard import GUARD
from model_factory_server.settings.server_settings import BackendSettings

allowed, store = map(Path, sys.argv[1:3])
GUARD.watch(BackendSettings(allow_files=(allowed,)), store)
for name in sys.argv[3:]:
    try:
        with open(name, "rb") as file:
            file.read(1)
        print("read", name)
    except FileNotFoundError:
        print("absent", name)
    except BuildError:
        print("refused", name)
    except OSError:
        print("unreadable", name)
for file in GUARD.finish() if GUARD.refusal() is None else ():
    print("noted", file.path)
"""


def outcomes(allowed: Path, store: Path, *names: object, variables: dict[str, str] | None = None) -> dict[str, str]:
    """Open files under a guard, and say what came of each."""
    environment = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "PATH": os.environ["PATH"]} | (variables or {})
    command = [sys.executable, "-c", SCRIPT, str(allowed), str(store), *map(str, names)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=120)
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    return {name: what for what, name in lines}


@pytest.mark.parametrize("variables", [{}, {"HOME": "/nonexistent"}, {"TMPDIR": "/nonexistent", "LANG": "C"}])
def test_python_and_the_system_are_read_without_being_noted(tmp_path: Path, variables: dict[str, str]) -> None:
    quiet = [json.__file__, "/proc/self/status", "/etc/hosts", "/dev/null", "/usr/share/zoneinfo/UTC", "/etc/localtime"]
    found = outcomes(tmp_path / "allowed", tmp_path / "store", *quiet, variables=variables)
    assert set(found.values()) <= {"read", "absent"}
    assert found[json.__file__] == found["/proc/self/status"] == "read"


def test_what_is_outside_is_refused_and_what_is_not_there_is_absent(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("x")
    found = outcomes(tmp_path / "allowed", tmp_path / "store", outside, "/etc/passwd", tmp_path / "absent")
    assert found[str(outside)] == found["/etc/passwd"] == "refused"
    assert found[str(tmp_path / "absent")] == "absent"


def test_allowed_files_are_noted(tmp_path: Path) -> None:
    """Also files that are not there: a file that appears later is a change."""
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "here").write_text("x")
    found = outcomes(allowed, tmp_path / "store", allowed / "here", allowed / "absent")
    assert found == {str(allowed / "here"): "noted", str(allowed / "absent"): "noted"}
