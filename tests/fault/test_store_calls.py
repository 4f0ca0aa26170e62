"""Each call to the file system fails with each error: the store works, or the error has a remedy."""

from __future__ import annotations

import errno
import mmap
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_factory import ModelFactoryError
from model_factory.digest import digest_of, digest_of_file
from model_factory.store import Blob, Store
from model_factory.store.file_locks import TRIAL
from support.failing_calls import CALLS, ERRORS, Decide, always, failing, once, open_files

KEY, OTHER_KEY, THIRD_KEY = (digest_of(name) for name in (b"a key", b"another key", b"a third key"))
OLD, SMALL, NEW = b"old" * 5000, b"small", b"new" * 5000
DOCUMENT = {"a": [1, "two"]}


def put(store: Store, _folder: Path) -> None:
    assert store.put(NEW) == Blob.of(NEW)
    assert store.read(Blob.of(NEW)) == NEW


def put_record(store: Store, _folder: Path) -> None:
    store.put_record(OTHER_KEY, DOCUMENT)
    assert store.record(OTHER_KEY) == DOCUMENT


def find(store: Store, _folder: Path) -> None:
    assert store.find(Blob.of(OLD)) is not None


def read(store: Store, _folder: Path) -> None:
    assert store.read(Blob.of(OLD)) == OLD


def map_blob(store: Store, _folder: Path) -> None:
    file = store.open(Blob.of(OLD))
    assert file is not None
    with file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        assert mapping[:] == OLD


def record(store: Store, _folder: Path) -> None:
    assert store.record(KEY) == DOCUMENT


def hold_lock(store: Store, _folder: Path) -> None:
    with store.locked(THIRD_KEY):
        pass


def adopt(store: Store, folder: Path) -> None:
    with (folder / "foreign").open("rb") as file:
        if store.adopt(file, Blob.of(SMALL)):
            assert store.read(Blob.of(SMALL)) == SMALL


def look(store: Store, _folder: Path) -> None:
    digests = {entry.digest for entry in store.entries()}
    assert (
        Blob.of(OLD).digest in digests or digests == set()
    )  # an unreadable folder counts as the folder of another user
    assert all(isinstance(entry.in_use, bool) for entry in store.entries())


def verify(store: Store, _folder: Path) -> None:
    assert store.verify(Blob.of(OLD).digest)


def make_room(store: Store, _folder: Path) -> None:
    assert 0 < store.free_bytes() <= shutil.disk_usage(store.root.parent).total
    store.make_room(10)
    store.keep_bound()


def scratch(store: Store, _folder: Path) -> None:
    with store.scratch() as folder:
        assert folder.is_dir()


def sweep(store: Store, _folder: Path) -> None:
    store.sweep()


def prune(store: Store, _folder: Path) -> None:
    store.prune(0)


USES = (find, read, map_blob, record, verify, look, put, put_record, hold_lock, adopt, make_room, scratch, sweep, prune)
"""All uses of a store; the last use removes blobs and records."""

NEED_OLD = (find, read, map_blob, record, verify, look)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store in ``store`` and a file beside the store."""
    folder = tmp_path_factory.mktemp("filled")
    store = Store(folder / "store")
    store.put(OLD)
    store.put_record(KEY, DOCUMENT)
    (folder / "foreign").write_bytes(SMALL)
    return folder


def copied(filled: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(filled, folder)
    return folder


def works_or_says_why(root: Path, use: Callable[..., None], *arguments: Any) -> None:
    """A use of a store succeeds, or the error names the folder and the remedy."""
    try:
        use(*arguments)
    except ModelFactoryError as error:
        said = str(error)
        assert str(root) in said
        assert "Remedy: " in said
        assert "MODEL_FACTORY_CACHE" in said


def check_after(folder: Path) -> None:
    """Every blob and record is whole, and a store opened without faults sweeps all leftovers."""
    store = Store(folder / "store")
    for path in (store.root / "blobs").glob("*/*"):
        assert digest_of_file(path) == path.name
    for key in (KEY, OTHER_KEY):
        assert store.record(key) in (DOCUMENT, None)
    left = [path for name in ("staging", "locks", "scratch") for path in (store.root / name).iterdir()]
    assert [path for path in left if not path.name.startswith(TRIAL)] == []  # the file of a trial is removed once old
    assert store.put(OLD) == Blob.of(OLD)
    assert store.read(Blob.of(OLD)) == OLD


def attempt(decide: Callable[[], Decide], folder: Path, at_start: bool) -> None:
    """Open and use a store while calls fail."""
    root = folder / "store"
    before = open_files()
    if at_start:
        opened: list[Store] = []
        with failing(root, decide()):
            works_or_says_why(root, lambda: opened.append(Store(root, 1 << 30)))
        stores = opened
    else:
        stores = [Store(root, 1 << 30)]
    for store in stores:
        for use in USES:
            with failing(root, decide()):
                works_or_says_why(root, use, store, folder)
    assert open_files() - before == Counter()
    check_after(folder)


@pytest.mark.parametrize("at_start", [False, True], ids=["later", "from the start"])
@pytest.mark.parametrize("name", CALLS)
def test_every_call_may_fail(name: str, at_start: bool, filled: Path, tmp_path: Path) -> None:
    for number in ERRORS:
        faults = [partial(always, name, number)]
        if number in {errno.EIO, errno.EACCES, errno.ENOSPC}:  # temporary faults: disk, permission, space
            faults += [partial(once, name, number, after) for after in range(3)]
        for fault in faults:
            attempt(fault, copied(filled, tmp_path / "case"), at_start)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(USES), min_size=1, max_size=6, unique=True),
    st.dictionaries(st.integers(0, 60), st.sampled_from(ERRORS), min_size=1, max_size=8),
)
def test_any_calls_may_fail(
    filled: Path, tmp_path_factory: pytest.TempPathFactory, uses: list[Any], faults: dict[int, int]
) -> None:
    folder = copied(filled, tmp_path_factory.mktemp("any") / "case")
    root, count = folder / "store", [0]

    def decide(_name: str, _arguments: tuple[Any, ...]) -> int | None:
        count[0] += 1
        return faults.get(count[0] - 1)

    before = open_files()
    opened: list[Store] = []
    with failing(root, decide):
        works_or_says_why(root, lambda: opened.append(Store(root, 1 << 30)))
        for store in opened:
            for use in uses:
                if not (use in NEED_OLD and prune in uses[: uses.index(use)]):
                    works_or_says_why(root, use, store, folder)
    assert open_files() - before == Counter()
    check_after(folder)
