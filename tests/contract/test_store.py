"""The contract of a store of blobs and records, for a server and for the trainers of a node."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
from pathlib import Path

import pytest

from model_factory import FormatError, StoreError
from model_factory.digest import digest_of, digest_of_file
from model_factory.store import Blob, Store

KEY = digest_of(b"a key")
CHECKED_NS = 1_000_000_000  # the mark of blobs with verified content


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def staged(store: Store) -> list[Path]:
    return list((store.root / "staging").iterdir())


@pytest.mark.parametrize("data", [b"", b"x", os.urandom(3 * 1024 * 1024)], ids=["empty", "one byte", "3 MiB"])
def test_what_is_put_is_found(store: Store, data: bytes) -> None:
    blob = store.put(data)
    assert blob == Blob(digest_of(data), len(data))
    path = store.find(blob)
    assert path is not None
    assert path.read_bytes() == data
    assert digest_of_file(path) == blob.digest
    assert store.read(blob) == data
    assert staged(store) == []


def test_what_was_not_put_is_not_found(store: Store) -> None:
    blob = Blob(digest_of(b"never"), 5)
    assert store.find(blob) is None
    assert store.read(blob) is None
    assert store.record(KEY) is None


def test_putting_twice_keeps_one(store: Store) -> None:
    first, second = store.find(store.put(b"data")), store.find(store.put(b"data"))
    assert first is not None
    assert first == second
    inode = first.stat().st_ino
    store.put(b"data")
    assert first.stat().st_ino == inode


def test_another_process_sees_it(store: Store) -> None:
    blob = store.put(b"data")
    store.put_record(KEY, {"a": [1, "two"]})
    other = Store(store.root)
    assert other.read(blob) == b"data"
    assert other.record(KEY) == {"a": [1, "two"]}


def test_a_record_is_replaced_as_a_whole(store: Store) -> None:
    for value in (1, {"b": None}, [2]):
        store.put_record(KEY, value)
        assert store.record(KEY) == value
    assert staged(store) == []


def test_what_is_not_published_is_gone(store: Store) -> None:
    with store.stage() as (file, _publish):
        file.write(b"half")
        file.flush()
        assert len(staged(store)) == 1
    assert staged(store) == []
    with pytest.raises(KeyError), store.stage() as (file, _publish):  # noqa: PT012  the block is what fails
        file.write(b"half")
        raise KeyError
    assert staged(store) == []
    assert not list((store.root / "blobs").rglob("*/*"))


def test_a_reader_sees_a_whole_blob_or_none(store: Store) -> None:
    data = os.urandom(8 * 1024 * 1024)
    blob = Blob.of(data)
    seen: list[int | None] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            path = store.find(blob)
            seen.append(None if path is None else path.stat().st_size)

    reader = threading.Thread(target=look)
    reader.start()
    with store.stage() as (file, publish):
        for start in range(0, len(data), 64 * 1024):
            file.write(data[start : start + 64 * 1024])
        publish(blob)
    done.set()
    reader.join()
    assert set(seen) <= {None, len(data)}
    assert store.read(blob) == data


@pytest.mark.parametrize("change", ["truncated", "longer", "empty"])
def test_a_blob_of_another_size_is_set_aside(store: Store, change: str) -> None:
    blob = store.put(b"some data")
    path = store.find(blob)
    assert path is not None
    path.write_bytes({"truncated": b"some", "longer": b"some data and more", "empty": b""}[change])
    assert store.find(blob) is None
    assert not path.exists()
    assert store.put(b"some data") == blob
    assert store.read(blob) == b"some data"


@pytest.mark.parametrize("use", ["find", "open", "read"])
def test_a_blob_that_was_written_to_is_set_aside(store: Store, use: str) -> None:
    blob = store.put(b"some data")
    path = store.find(blob)
    assert path is not None
    path.write_bytes(b"some dota")
    assert getattr(store, use)(blob) is None
    assert not path.exists()


def test_a_blob_that_decayed_is_found_when_it_is_read_or_verified(store: Store) -> None:
    """A disk fault leaves no trace in the file's times."""
    blobs = [store.put(b"some data"), store.put(b"other data"), store.put(b"sound data")]
    for blob, data in zip(blobs, (b"some dota", b"other dota"), strict=False):
        path = store.find(blob)
        assert path is not None
        stat = path.stat()
        path.write_bytes(data)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert store.read(blobs[0]) is None
    assert sorted(store.verify(entry.digest) for entry in store.entries()) == [False, True]
    assert [entry.digest for entry in store.entries()] == [blobs[2].digest]


def test_a_copied_blob_is_checked_once(store: Store) -> None:
    """A copy of a whole store has other times and the same content."""
    blob = store.put(b"some data")
    path = store.find(blob)
    assert path is not None
    os.utime(path)
    assert store.find(blob) == path
    assert path.stat().st_mtime == 1.0


def test_a_record_copied_to_another_key_is_not_believed(store: Store) -> None:
    other = digest_of(b"other key")
    store.put_record(KEY, {"a": 1})
    (path,) = (store.root / "records").rglob(KEY)
    copied = store.root / "records" / other[:2] / other
    copied.parent.mkdir(exist_ok=True)
    shutil.copyfile(path, copied)
    assert store.record(other) is None
    assert not copied.exists()
    assert store.record(KEY) == {"a": 1}


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"a": 1', b"\xff", b'{"a":1,"a":2}', b"[NaN]", b'{"a":1}', b"[]", b'{"key":1,"document":2}']
)
def test_a_record_that_is_not_whole_is_set_aside(store: Store, data: bytes) -> None:
    store.put_record(KEY, {"a": 1})
    (path,) = (store.root / "records").rglob(KEY)
    path.write_bytes(data)
    assert store.record(KEY) is None
    assert not path.exists()


def test_what_cannot_be_read_is_a_store_error(store: Store) -> None:
    """A folder in the place of a file simulates a disk fault."""
    blob = store.put(b"some content")
    store.put_record(KEY, {"a": 1})
    for folder, name in (("records", KEY), ("blobs", blob.digest)):
        (path,) = (store.root / folder).rglob(name)
        path.unlink()
        path.mkdir()
    for use in (lambda: store.record(KEY), lambda: store.verify(blob.digest)):
        with pytest.raises(StoreError, match="cannot read"):
            use()


def test_those_who_cannot_wait_find_only_what_need_not_be_hashed(store: Store) -> None:
    blob = store.put(b"some content")
    path = store.find(blob, may_hash=False)
    assert path is not None
    path.touch()
    assert store.find(blob, may_hash=False) is None
    assert store.find(blob) == path
    path.write_bytes(b"some context")
    assert store.find(blob, may_hash=False) is None
    assert path.exists(), "nobody has looked at it yet"
    assert store.find(blob) is None
    assert not path.exists()


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "a" * 63, "A" * 64, "g" * 64, "a" * 64 + "\n", "/" + "a" * 63])
def test_only_digests_become_paths(store: Store, key: str) -> None:
    for use in (
        lambda: store.find(Blob(key, 0)),
        lambda: store.read(Blob(key, 0)),
        lambda: store.record(key),
        lambda: store.put_record(key, 1),
        lambda: store.locked(key).__enter__(),
    ):
        with pytest.raises(FormatError, match="is not a digest"):
            use()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(StoreError, match="cannot use"):
        Store(file / "store")


def test_a_disk_that_is_full(store: Store) -> None:
    with pytest.raises(StoreError, match="No space left"), store.stage() as (file, _publish):  # noqa: PT012  the block is what fails
        with Path("/dev/full").open("wb", buffering=0) as full:
            os.dup2(full.fileno(), file.fileno())
        file.write(b"data")
        file.flush()


def test_one_holder_of_a_lock_at_a_time(store: Store) -> None:
    inside = 0
    most = 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with Store(store.root).locked(KEY):
                inside += 1
                most = max(most, inside)
                threading.Event().wait(0.001)
                inside -= 1

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert most == 1


def test_leftovers_of_dead_writers_are_swept(store: Store) -> None:
    left = store.root / "staging" / "left"
    left.write_bytes(b"half of a blob")
    with store.stage() as (file, _publish):
        file.write(b"alive")
        file.flush()
        Store(store.root)
        assert not left.exists()
        assert len(staged(store)) == 1, "a living writer's file was swept"


def test_a_mark_on_a_file_that_others_may_write_to_says_nothing(store: Store) -> None:
    blob = store.put(b"right")
    path = store.find(blob)
    assert path is not None
    path.chmod(0o666)
    path.write_bytes(b"wrong")
    os.utime(path, ns=(CHECKED_NS, CHECKED_NS))
    assert store.open(blob) is None
    assert not path.exists()


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_what_is_no_file_is_no_blob(kind: str, store: Store, tmp_path: Path) -> None:
    """A link, FIFO or folder is not opened, and does not stop eviction."""
    data = b"somewhere else"
    blob = Blob.of(data)
    elsewhere, place = tmp_path / "elsewhere", store.root / "blobs" / blob.digest[:2] / blob.digest
    elsewhere.write_bytes(data)
    os.utime(elsewhere, ns=(CHECKED_NS, CHECKED_NS))
    place.parent.mkdir()
    make(kind, place, elsewhere)
    assert store.open(blob) is None
    assert store.entries() == []
    assert store.prune(0) == []
    assert elsewhere.read_bytes() == data


@pytest.mark.parametrize("folder", ["locks", "staging"])
@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_what_is_no_file_is_not_waited_for_at_the_start(kind: str, folder: str, store: Store, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"kept")
    make(kind, store.root / folder / KEY, elsewhere)
    Store(store.root)
    assert elsewhere.read_bytes() == b"kept"


def test_a_lock_that_is_a_link_is_not_written_through(store: Store, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"kept")
    (store.root / "locks" / KEY).symlink_to(elsewhere)
    with pytest.raises(StoreError, match="cannot lock"), store.locked(KEY):
        pass
    assert elsewhere.read_bytes() == b"kept"


def make(kind: str, place: Path, elsewhere: Path) -> None:
    if kind == "link":
        place.symlink_to(elsewhere)
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.mkdir()


def test_a_fork_hashes_what_its_parent_has_hashed_with_threads(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(16 << 20))
    digest_of_file(path)
    child = multiprocessing.get_context("fork").Process(target=digest_of_file, args=(path,))
    child.start()
    child.join(60)
    child.kill()
    child.join()
    assert child.exitcode == 0
