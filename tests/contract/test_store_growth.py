"""The bound counts every file, blobs and records: thousands of small files are evicted like large ones."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import pytest

from model_factory.digest import digest_of
from model_factory.store import Store
from model_factory.store.contents import FILE_BYTES, counted_size

BOUND = 40 * FILE_BYTES


def key(number: int) -> str:
    return digest_of(str(number).encode())


def files(store: Store) -> list[Path]:
    return [path for name in ("blobs", "records") for path in (store.root / name).rglob("*") if path.is_file()]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", BOUND)


@pytest.mark.parametrize("blobs", [True, False])
def test_thousands_of_small_files_stay_within_the_bound(store: Store, blobs: bool) -> None:
    for number in range(600):
        if blobs:
            store.put(str(number).encode())
        else:
            store.put_record(key(number), number)
        if number % 50 == 49:
            assert len(files(store)) <= BOUND // FILE_BYTES + 1
    assert len(files(store)) >= BOUND // FILE_BYTES // 2, "an eviction makes room for some files, not for all"
    assert store.taken_bytes() <= BOUND + FILE_BYTES


def test_a_record_in_use_outlives_others(store: Store) -> None:
    store.put_record(key(0), "used")
    for number in range(1, 200):
        store.put_record(key(number), number)
        assert store.record(key(0)) == "used"
        time.sleep(0.0005)  # file times have a coarse resolution
    assert store.record(key(1)) is None


def test_a_record_written_again_and_again_is_one_file(store: Store) -> None:
    kept = store.put(b"kept")
    for number in range(120):
        store.put_record(key(0), number)
    assert store.find(kept) is not None


def test_files_of_other_processes_are_counted_by_growth(store: Store) -> None:
    other = Store(store.root, BOUND)
    other.on_growth = store.grow  # as workers report to their server
    for number in range(200):
        other.put(str(number).encode())
    assert len(files(store)) <= BOUND // FILE_BYTES + 1


def test_an_eviction_for_small_files_spares_a_large_one_within_the_bound(store: Store) -> None:
    large = store.put(b"x" * (BOUND - 4 * FILE_BYTES))
    for number in range(200):
        store.put_record(key(number), number)
        assert store.find(large) is not None


def test_sizes_are_counted_in_blocks() -> None:
    assert [counted_size(size) for size in (0, 1, FILE_BYTES, FILE_BYTES + 1)] == [
        FILE_BYTES,
        FILE_BYTES,
        FILE_BYTES,
        FILE_BYTES + 4096,
    ]


def test_a_store_without_a_bound_counts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any) -> None:
        raise AssertionError("the folder was listed")

    store = Store(tmp_path)
    monkeypatch.setattr("model_factory.store.contents.entries", fail)
    store.put(b"a")
    store.put_record(key(0), 0)


def test_a_store_can_be_pickled(store: Store) -> None:
    again = pickle.loads(pickle.dumps(store))  # noqa: S301  our own bytes
    again.put_record(key(0), 0)
    assert store.record(key(0)) == 0
