"""Code that runs as another user: in a forked process that gives up the rights of root."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

VICTIM, OTHER = 23461, 23462
"""Users without privileges, without a name and without a home folder."""

_SECONDS = 15.0


@contextmanager
def shared_folder(mode: int, owner: int = 0) -> Iterator[Path]:
    """Make a folder that several users can reach, for example with mode ``0o1777``."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as two users")
    place = Path(tempfile.mkdtemp(prefix="model-factory-shared-"))
    place.chmod(0o755)
    folder = place / "cache"
    folder.mkdir()
    os.chown(folder, owner, owner)
    folder.chmod(mode)
    try:
        yield folder
    finally:
        shutil.rmtree(place)


def as_user(user: int, use: Callable[[], Any], umask: int = 0o022, seconds: float = _SECONDS) -> Any:
    """Run ``use`` as a user, and return its result; the result must be plain data.

    A use that takes longer than ``seconds`` fails.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _give_up_rights(user, umask)
        _run(use, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = _wait(child, seconds) and pipe.read()
    assert said is not False, f"the user was still busy after {seconds:g} s"
    result = json.loads(said or '{"error": "the process of the user died"}')
    assert "error" not in result, result["error"]
    return result["result"]


@contextmanager
def busy_user(user: int, use: Callable[[], Any]) -> Iterator[None]:
    """Run ``use`` as a user, and keep the process with its open files and locks alive during the block."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _give_up_rights(user, 0o022)
        try:
            kept = use()
            os.write(writer, b"ready")
            while kept is not os:
                time.sleep(60)
        finally:
            os._exit(1)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as pipe:
            assert pipe.read(5) == b"ready", "the other user failed"
        yield
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def _give_up_rights(user: int, umask: int) -> None:
    os.umask(umask)
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


def _run(use: Callable[[], Any], writer: int) -> None:
    try:
        said = json.dumps({"result": use()})
    except BaseException:  # noqa: BLE001  the parent process reports the error
        said = json.dumps({"error": traceback.format_exc()})
    os.write(writer, said.encode())
    os._exit(0)


def _wait(child: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            return True
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False
