"""A store on a real FUSE file system, whose ``flock`` is one of this machine, or not there."""

from __future__ import annotations

import fcntl
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model_factory import RemoteModelFactory, StoreError
from model_factory.digest import digest_of
from model_factory.store import Store
from model_factory_server import PolicyConstructorModelFactory
from support.compare import assert_same_state
from support.fuse import LOCKS, Fuse
from support.server import ServerProcess

KEY = digest_of(b"a key")
CONFIG = {
    "config": {
        "schema_version": 1,
        "model": {"sequential": {"layers": [{"_type_": "nn.Linear", "in_features": 30, "out_features": 20}]}},
    }
}
FOUND = {"of this machine": ("flock", True), "no flock": ("ofd", True), "none": ("none", False)}
"""The kind of lock that a store finds, and whether an exclusive lock can be had."""


@pytest.fixture(params=LOCKS)
def locks(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def disk(locks: str, tmp_path: Path) -> Iterator[Fuse]:
    """The file system, on the folder ``place``."""
    place, backing = tmp_path / "place", tmp_path / "backing"
    place.mkdir()
    backing.mkdir()
    try:
        made = Fuse(place, backing, locks)
    except OSError as error:
        pytest.skip(str(error))
    yield made
    made.close()


@pytest.mark.usefixtures("disk")
def test_a_store_keeps_finds_and_evicts_nothing(locks: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "place" / "store"
    store = Store(root, 30_000)
    assert (store._locks.kind, store._locks.exclusive, store._locks.allows_eviction) == (*FOUND[locks], False)
    assert "Remedy: set MODEL_FACTORY_CACHE to a folder on a local disk" in caplog.text
    blobs = [store.put(letter * 10_000) for letter in (b"a", b"b", b"c")]
    store.put_record(KEY, {"a": 1})
    with store.locked(KEY), store.scratch() as folder:
        assert folder.is_dir()
    with store.open(blobs[0]) as file:  # type: ignore[union-attr]
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with pytest.raises(StoreError, match="Remedy: stop every process"):
        store.make_room(1)
    assert mapping[:] == b"a" * 10_000
    mapping.close()
    other = Store(root)
    assert [other.read(blob) for blob in blobs] == [letter * 10_000 for letter in (b"a", b"b", b"c")]
    assert other.record(KEY) == {"a": 1}
    for name in ("staging", "locks", "scratch"):
        assert list((root / name).iterdir()) == []


@pytest.mark.usefixtures("disk")
@pytest.mark.parametrize("locks", ["no flock", "none"], indirect=True)
def test_flock_is_really_not_there(tmp_path: Path) -> None:
    with (tmp_path / "place" / "file").open("wb") as file, pytest.raises(OSError, match="not implemented"):
        fcntl.flock(file, fcntl.LOCK_SH)


@pytest.mark.usefixtures("disk")
def test_a_model_is_built_with_a_cache_there(server: ServerProcess, tmp_path: Path) -> None:
    for _ in range(2):
        with RemoteModelFactory(server.address, seed=7, cache_dir=tmp_path / "place" / "cache") as factory:
            assert_same_state(factory.build(CONFIG), PolicyConstructorModelFactory(seed=7).build(CONFIG))


@pytest.mark.slow
@pytest.mark.usefixtures("disk")
def test_a_server_has_its_store_there(start_server: Callable[..., ServerProcess], tmp_path: Path, locks: str) -> None:
    server = start_server(tmp_path / "place" / "store")
    with RemoteModelFactory(server.address, seed=7, cache_dir=tmp_path / "cache") as factory:
        assert_same_state(factory.build(CONFIG), PolicyConstructorModelFactory(seed=7).build(CONFIG))
    assert "Remedy: set --store to a folder on a local disk" in server.log
    assert server.stop() == 0


@pytest.mark.parametrize("locks", ["of this machine"], indirect=True)
def test_a_file_system_that_goes_away_is_an_error_with_the_remedy(disk: Fuse, tmp_path: Path) -> None:
    root = tmp_path / "place" / "store"
    store = Store(root, 30_000)
    blob = store.put(b"data")
    disk.end()
    for use in (
        lambda: store.read(blob),
        lambda: store.put(b"other"),
        lambda: store.record(KEY),
        lambda: store.make_room(1),
        lambda: store.locked(KEY).__enter__(),
        lambda: Store(root),
    ):
        with pytest.raises(StoreError, match="Remedy: set MODEL_FACTORY_CACHE") as caught:
            use()
        assert str(root) in str(caught.value)
