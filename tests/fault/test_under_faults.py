"""Load and faults together: every answer is right or a clear error, and nothing is lost or left over."""

from __future__ import annotations

import ast
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from support.load.faults import Ordeal
from support.mounts import NAMESPACE, may_mount

SECONDS = float(os.environ.get("FAULT_SECONDS") or 6)
ROOT = Path(__file__).resolve().parents[2]


MAY_MOUNT = may_mount()
"""Whether a disk can be mounted here, by root itself or by another user in a namespace."""


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 300)
@pytest.mark.parametrize(
    "disk",
    [
        pytest.param(
            "mounted", marks=pytest.mark.skipif(not MAY_MOUNT, reason="this user cannot mount a disk to fill")
        ),
        pytest.param("folder", marks=pytest.mark.skipif(MAY_MOUNT, reason="the test with a mounted disk does more")),
    ],
)
def test_answers_are_right_or_clear_errors(disk: str, chance: random.Random, tmp_path: Path) -> None:
    """A folder in place of a mounted disk is never full."""
    if disk == "mounted" and os.geteuid() != 0:
        run_in_namespace()
        return
    ordeal = Ordeal(tmp_path, chance, SECONDS)
    assert ordeal.disk.is_own == (disk == "mounted")
    try:
        ordeal.check_disk()
        ordeal.run()
        print(dict(ordeal.faults), dict(ordeal.longest), dict(ordeal.outcomes), ordeal.said)  # noqa: T201  shown by pytest -s, and when it fails
        ordeal.check_after()
    finally:
        ordeal.close()


def run_in_namespace() -> None:
    """Run the test as root of a user namespace, where root can mount a disk."""
    test = f"{__file__}::{test_answers_are_right_or_clear_errors.__name__}[mounted]"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-s",
        "-m",
        "",
        "-p",
        "no:cacheprovider",
        f"--rootdir={ROOT}",
        test,
    ]
    done = subprocess.run([*NAMESPACE, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_no_deadline_follows_a_clock_that_can_jump() -> None:
    """The wall clock is read where dates are meant, and nowhere else; tokens are tried with a clock that jumps."""
    readers = set()
    for package in ("client/model_factory", "server/model_factory_server"):
        for path in (ROOT / package).rglob("*.py"):
            calls = {
                ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
            }
            if calls & {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow"}:
                readers.add(path.name)
    # Expiry of tokens and certificates, times of last use and of holding a lock (for people), ages of leftovers, times
    # in logs and spans; whether a file changed so recently that its modification time tells nothing.
    dates = {
        "tokens.py",
        "tls.py",
        "store.py",
        "named_locks.py",
        "contents.py",
        "staging.py",
        "cache.py",
        "traces.py",
        "otel.py",
    }
    assert readers <= dates | {"logs.py", "file_guard.py", "read_files.py"}, readers
