"""A server's store that a trainer sees: blobs are opened in place, and hostile files are refused."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from model_factory.store import Blob, Store
from model_factory.store.shared_store import open_shared

DATA = os.urandom(100_000)
BLOB = Blob.of(DATA)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The place of the blob in the store."""
    folder = tmp_path / "store" / "blobs" / BLOB.digest[:2]
    folder.mkdir(parents=True)
    return folder / BLOB.digest


def test_the_blob_is_taken_over_without_a_copy(tmp_path: Path) -> None:
    server, cache = Store(tmp_path / "store"), Store(tmp_path / "cache")
    server.put(DATA)
    file = open_shared(str(server.root), BLOB)
    assert file is not None
    with file:
        assert file.read() == DATA
        assert server.prune(0) == [], "a blob in use was evicted"
        assert cache.adopt(file, BLOB)
    paths = [store.find(BLOB) for store in (server, cache)]
    assert all(path is not None for path in paths)
    assert paths[0].samefile(paths[1])  # type: ignore[union-attr, arg-type]
    assert [entry.links for entry in cache.entries()] == [2]
    server.prune(0)
    assert cache.read(BLOB) == DATA, "what the server evicts stays with who uses it"


def other_bytes(place: Path) -> None:
    place.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))


def other_size(place: Path) -> None:
    place.write_bytes(DATA + b"x")


def link(place: Path) -> None:
    target = place.with_name("elsewhere")
    target.write_bytes(DATA)
    place.symlink_to(target)


def linked_folder(place: Path) -> None:
    real = place.parent.rename(place.parent.with_name("real"))
    (real / place.name).write_bytes(DATA)
    place.parent.symlink_to(real)


def linked_store(place: Path) -> None:
    place.write_bytes(DATA)
    store = place.parents[2]
    store.symlink_to(store.rename(store.with_name("real")))


def others_may_write(place: Path) -> None:
    place.write_bytes(DATA)
    place.chmod(0o666)


def fifo(place: Path) -> None:
    os.mkfifo(place)


def folder(place: Path) -> None:
    place.mkdir()


def endpoint(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as item:
        os.chdir(place.parent)
        item.bind(place.name)


def unreadable(place: Path) -> None:
    place.write_bytes(DATA)
    place.chmod(0)
    if os.access(place, os.R_OK):
        place.unlink()  # root reads everything


def nothing(place: Path) -> None:
    del place


HOSTILE = (
    other_bytes,
    other_size,
    link,
    linked_folder,
    linked_store,
    others_may_write,
    fifo,
    folder,
    endpoint,
    unreadable,
    nothing,
)


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_what_is_not_the_blob_is_not_opened(
    make: Callable[[Path], None], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(place)
    assert open_within(str(tmp_path / "store")) is None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_what_somebody_else_could_change_later_is_opened_only_where_the_node_was_told(place: Path) -> None:
    place.write_bytes(DATA)
    os.chown(place, 12345, -1)
    store = str(place.parents[2])
    assert open_within(store) is None
    with open_shared(store, BLOB, is_trusted=True) as file:  # type: ignore[union-attr]
        assert file.read() == DATA


@pytest.mark.parametrize(
    "hint", ["", ".", "store", "/", "/proc/self", "/dev", "/dev/fd/0", "//", "/\0", "/" + "a/" * 5000, "\udc80/x"]
)
def test_hints_that_lead_nowhere(hint: str) -> None:
    assert open_within(hint) is None


def test_a_hint_does_not_go_up(place: Path, tmp_path: Path) -> None:
    place.write_bytes(DATA)
    with open_shared(str(tmp_path / "store"), BLOB) as file:  # type: ignore[union-attr]
        assert file.read() == DATA
    assert open_shared(f"{tmp_path}/store/../store", BLOB) is None


def open_within(hint: str) -> object:
    """Open in a thread: a FIFO must not block the caller."""
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(open_shared(hint, BLOB)), daemon=True)
    thread.start()
    thread.join(10)
    (result,) = results
    return result
