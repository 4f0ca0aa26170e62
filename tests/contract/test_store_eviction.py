"""The bound on a store: least recently used blobs are evicted first, blobs in use stay."""

from __future__ import annotations

import mmap
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from model_factory.descriptor.weights import map_weights, write_weights
from model_factory.errors import StoreError
from model_factory.store import Blob, Holder, Store, named_locks
from model_factory.store.named_locks import read_holder

KEY = "ab" * 32
SIZE = 1 << 14

HOLDER = """
import sys
from pathlib import Path
from model_factory.store import Store
with Store(Path(sys.argv[1])).locked(sys.argv[2], "fetches a blob"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", max_bytes=3 * SIZE)


def put(store: Store, letter: str) -> Blob:
    blob = store.put(letter.encode() * SIZE)
    time.sleep(0.002)  # file times have a coarse resolution
    return blob


def kept(store: Store) -> set[str]:
    return {entry.digest for entry in store.entries()}


def test_the_least_recently_used_go_first(store: Store) -> None:
    a, b, c = (put(store, letter) for letter in "abc")
    assert store.find(a) is not None  # used again
    store.make_room(SIZE)
    assert kept(store) == {a.digest, c.digest}
    store.make_room(2 * SIZE)
    assert kept(store) == {a.digest}
    store.make_room(3 * SIZE)
    assert kept(store) == set()
    assert store.find(b) is None


def test_what_would_never_fit_makes_nothing_go(store: Store) -> None:
    a = put(store, "a")
    with pytest.raises(StoreError, match=rf"{3 * SIZE + 1} bytes do not fit .* may hold {3 * SIZE}"):
        store.make_room(3 * SIZE + 1)
    with pytest.raises(StoreError, match="the disk has"):
        Store(store.root, max_bytes=1 << 62).make_room(1 << 60)
    assert kept(store) == {a.digest}


def test_without_a_bound_everything_stays(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    blob = put(store, "a")
    store.make_room(1 << 60)
    assert kept(store) == {blob.digest}


def test_what_is_open_or_mapped_stays(store: Store) -> None:
    opened, mapped, unused = (put(store, letter) for letter in "abc")
    file = store.open(opened)
    assert file is not None
    with store.open(mapped) as other:  # type: ignore[union-attr]
        mapping = mmap.mmap(other.fileno(), 0, access=mmap.ACCESS_COPY)
    assert [entry.digest for entry in store.prune(0)] == [unused.digest]
    assert {entry.digest: entry.in_use for entry in store.entries()} == {opened.digest: True, mapped.digest: True}
    file.close()
    mapping.close()
    assert {entry.digest for entry in store.prune(0)} == {opened.digest, mapped.digest}


def test_a_blob_is_in_use_as_long_as_one_tensor_of_it(store: Store) -> None:
    with store.stage() as (file, publish):
        blob = Blob(*write_weights(file, {"a": torch.arange(100.0), "b": torch.ones(3, 2), "none": torch.empty(0, 4)}))
        publish(blob)
    with store.open(blob) as opened:  # type: ignore[union-attr]
        tensors = map_weights(opened)
    part = tensors["a"][1:3]
    assert tensors["none"].shape == (0, 4)
    del tensors
    assert store.prune(0) == []
    assert part.tolist() == [1.0, 2.0]
    del part
    assert [entry.digest for entry in store.prune(0)] == [blob.digest]


def test_who_opens_a_blob_that_is_being_evicted_has_it_whole_or_not_at_all(store: Store) -> None:
    data = b"x" * SIZE
    done = threading.Event()
    other = Store(store.root)

    def evict() -> None:
        while not done.is_set():
            other.prune(0)

    evictor = threading.Thread(target=evict)
    evictor.start()
    seen = set()
    try:
        for _ in range(200):
            blob = store.put(data)
            file = store.open(blob)
            seen.add(file is not None)
            if file is not None:
                with file:
                    assert file.read() == data
    finally:
        done.set()
        evictor.join()
    assert True in seen


def test_who_waits_is_told_for_whom_and_goes_on_when_that_one_dies(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(named_locks, "REPORT_AFTER_SECONDS", 0.1)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, store.root, KEY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    told: list[Holder | None] = []

    def on_wait(found: Holder | None) -> None:
        told.append(found)
        holder.kill()

    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with store.locked(KEY, "test", on_wait):
            mine = read_holder(store.root / "locks" / KEY)
    assert mine is not None
    assert mine.doing == "test"
    (found,) = told
    assert found is not None
    assert (found.pid, found.doing) == (holder.pid, "fetches a blob")
    assert f"process {holder.pid} on " in str(found)
    assert list((store.root / "locks").iterdir()) == []
