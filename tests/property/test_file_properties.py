"""Digests of files that builds read are those of the content, in whatever order files change and are looked at."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from model_factory_server.worker.files import read_files
from model_factory_server.worker.files.read_files import FileDigests, content_digest
from property.amount import EXAMPLES

_TICK_SECONDS = 0.005  # of the clock of file systems: what changes twice in one is what is too recent to be remembered
NAMES = ("a", "b", "folder/")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "replace", "touch", "remove", "link", "swap", "look", "age"]),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["one", "two", "six"]),  # of one size
    ),
    max_size=12,
)


def change(folder: Path, how: str, name: str, content: str) -> None:
    path, other = folder / name, folder / ("b" if name == "a" else "a")
    if how == "write":
        path.unlink(missing_ok=True) if path.is_symlink() else None
        path.write_text(content, encoding="ascii")
    elif how == "replace":
        (folder / "new").write_text(content, encoding="ascii")
        os.utime(folder / "new", (1, 1))
        (folder / "new").replace(path)
    elif how == "touch" and path.exists():
        os.utime(path, (1, 1))
    elif how == "remove":
        path.unlink(missing_ok=True)
    elif how == "link":
        path.unlink(missing_ok=True)
        path.symlink_to(folder / f"target-{content}")
    elif how == "swap" and path.exists() and other.exists():
        path.rename(folder / "aside")
        other.rename(path)
        (folder / "aside").rename(other)
    elif how == "age":
        (folder / "folder" / content).touch()


@settings(max_examples=EXAMPLES, deadline=None)
@given(steps=STEPS, settled=st.booleans())
def test_what_is_known_of_a_file_is_true(steps: list[tuple[str, str, str]], settled: bool) -> None:
    """``settled``: as if every change were long ago, so that digests are remembered; else none is, being too recent."""
    before, read_files._SETTLED_NS = read_files._SETTLED_NS, -1 if settled else 10**15
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "folder").mkdir()
            for target in ("one", "two", "six"):
                (folder / f"target-{target}").write_text(target, encoding="ascii")
            digests, paths = FileDigests(), [f"{folder}/{item}" for item in NAMES]
            for how, item, content in steps:
                change(folder, how, item, content)
                time.sleep(_TICK_SECONDS if settled else 0)
                if how == "look":
                    actual = {path: content_digest(path) for path in paths}
                    assert {file.path: file.digest for file in digests.current(paths)} == actual
    finally:
        read_files._SETTLED_NS = before
