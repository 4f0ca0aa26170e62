"""Load and faults together: every answer is right or a clear error, and nothing is lost or left over."""

from __future__ import annotations

import ast
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.faults import Ordeal

SECONDS = float(os.environ.get("FAULT_SECONDS") or 6)
INSIDE = "FAULT_INSIDE"
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(SECONDS + 300)
def test_answers_are_right_or_clear_errors(chance: random.Random, tmp_path: Path) -> None:
    if os.geteuid() != 0 and in_own_namespace():
        return
    ordeal = Ordeal(tmp_path, chance, SECONDS)
    try:
        ordeal.check_disk()
        ordeal.run()
        print(dict(ordeal.faults), dict(ordeal.longest), dict(ordeal.outcomes), ordeal.said)  # noqa: T201  shown by pytest -s, and when it fails
        ordeal.check_after()
    finally:
        ordeal.close()
    if not ordeal.disk.is_own:
        pytest.skip("all was well, but no disk was full: this user may mount none, in a namespace of its own either")


def in_own_namespace() -> bool:
    """Run the test as root of a user namespace, who may mount a disk to fill; False where this user may have none."""
    inside = ["unshare", "--user", "--map-root-user", "--mount"]
    if os.environ.get(INSIDE) or shutil.which("unshare") is None:
        return False
    if subprocess.run([*inside, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False).returncode:
        return False
    test = f"{__file__}::{test_answers_are_right_or_clear_errors.__name__}"
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", f"--rootdir={ROOT}", test]
    done = subprocess.run([*inside, *command], env=os.environ | {INSIDE: "1"}, cwd=ROOT, check=False)
    assert done.returncode == 0
    return True


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
    # Expiry of tokens, times of last use and of holding a lock (as people read them), times in logs and spans; whether
    # a file changed since, or so lately that its time of change tells nothing.
    dates = {"access.py", "store.py", "locks.py", "cache.py", "traces.py", "otel.py", "logs.py"}
    assert readers <= dates | {"file_guard.py", "read_files.py"}, readers
