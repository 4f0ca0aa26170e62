"""Stores on file systems with other locks: no ``flock``, the ``flock`` of NFS, locks of one machine, no locks."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_factory.digest import digest_of
from model_factory.errors import StoreError
from model_factory.store import Blob, Store, file_locks, named_locks
from model_factory.store.file_locks import Mount, lock_reaches_all, mount_of, read_mount
from model_factory.store.shared_store import open_shared
from model_factory.store.staging import whole_file

KEY = digest_of(b"a key")
SIZE = 1 << 14
ABSENT = [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF, errno.EINVAL, errno.EACCES, errno.EIO]

REAL_FLOCK, REAL_FCNTL = fcntl.flock, fcntl.fcntl
MakePatch = Callable[[pytest.MonkeyPatch], None]


def raises(number: int) -> Callable[..., Any]:
    def call(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


def no_flock(number: int) -> MakePatch:
    return lambda patch: patch.setattr(fcntl, "flock", raises(number))


def flock_of_nfs(patch: pytest.MonkeyPatch) -> None:
    """An exclusive lock needs a descriptor open for writing, a shared lock a descriptor open for reading."""

    def flock(number: int, operation: int) -> None:
        mode = REAL_FCNTL(number, fcntl.F_GETFL) & os.O_ACCMODE
        if (operation & fcntl.LOCK_EX and mode == os.O_RDONLY) or (operation & fcntl.LOCK_SH and mode == os.O_WRONLY):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        REAL_FLOCK(number, operation)

    patch.setattr(fcntl, "flock", flock)


def flock_for_everybody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fcntl, "flock", lambda _number, _operation: None)


def flock_for_nobody(patch: pytest.MonkeyPatch) -> None:
    """Exclusive locks are refused forever, as after the loss of a network file system's server."""

    def flock(number: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        REAL_FLOCK(number, operation)

    patch.setattr(fcntl, "flock", flock)


def mounted(kind: str, *options: str) -> MakePatch:
    return lambda patch: patch.setattr(file_locks, "mount_of", lambda _number: Mount(kind, frozenset(options)))


def no_locks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fcntl, "flock", raises(errno.ENOSYS))
    patch.setattr(fcntl, "fcntl", raises(errno.EINVAL))


EVICTING: dict[str, tuple[MakePatch, str, bool]] = {
    "local": (lambda _patch: None, "flock", False),
    "nfs": (flock_of_nfs, "flock", True),
    "nfs, flock of one machine": (mounted("nfs4", "local_lock=flock"), "ofd", True),
    "flock for everybody": (flock_for_everybody, "ofd", True),
    "flock for nobody": (flock_for_nobody, "ofd", True),
    **{f"no flock: {errno.errorcode[number]}": (no_flock(number), "ofd", True) for number in ABSENT},
}
"""By name: the patch, the kind of lock that works, whether an exclusive lock needs a writable descriptor."""

KEEPING: dict[str, MakePatch] = {
    "no locks": no_locks,
    "fuse": mounted("fuse.sshfs"),
    "nfs, locks of one machine": mounted("nfs", "local_lock=all"),
    "9p": mounted("9p"),
}
"""No lock shows whether another machine uses a blob."""


@pytest.fixture(params=[*EVICTING, *KEEPING])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    make_patch = KEEPING[request.param] if request.param in KEEPING else EVICTING[request.param][0]
    make_patch(monkeypatch)
    return Store(tmp_path / "store", 3 * SIZE)


def put(store: Store, letter: str) -> Blob:
    return store.put(letter.encode() * SIZE)


def test_a_store_keeps_and_finds(store: Store) -> None:
    blob = put(store, "a")
    store.put_record(KEY, {"a": 1})
    assert store.read(blob) == b"a" * SIZE
    assert store.record(KEY) == {"a": 1}
    with store.locked(KEY), store.scratch() as folder:
        assert folder.is_dir()
    assert store.verify(blob.digest)
    for name in ("staging", "locks", "scratch"):
        assert list((store.root / name).iterdir()) == []


@pytest.mark.parametrize("name", EVICTING)
def test_the_kind_of_lock_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_patch, kind, writes = EVICTING[name]
    make_patch(monkeypatch)
    found = Store(tmp_path)._locks
    assert (found.kind, found.needs_writable, found.allows_eviction) == (kind, writes, True)
    assert caplog.text == ""


@pytest.mark.parametrize("name", EVICTING)
def test_a_mapped_blob_stays_and_an_unused_one_goes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    EVICTING[name][0](monkeypatch)
    store = Store(tmp_path, 3 * SIZE)
    mapped, unused = put(store, "a"), put(store, "b")
    with store.open(mapped) as file:  # type: ignore[union-attr]
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    other = Store(store.root)
    assert {entry.digest: entry.in_use for entry in other.entries()} == {mapped.digest: True, unused.digest: False}
    assert [entry.digest for entry in other.prune(0)] == [unused.digest]
    mapping.close()
    assert [entry.digest for entry in other.prune(0)] == [mapped.digest]


@pytest.mark.parametrize("name", EVICTING)
def test_one_holder_and_the_living_are_not_swept(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    EVICTING[name][0](monkeypatch)
    monkeypatch.setattr(named_locks, "REPORT_AFTER_SECONDS", 0.0)
    store, waits = Store(tmp_path), threading.Event()
    dead = tmp_path / "staging" / "dead"
    dead.write_bytes(b"half")
    (tmp_path / "scratch" / "dead").mkdir()

    def take() -> None:
        with Store(tmp_path).locked(KEY, "test", lambda _holder: waits.set()):
            pass

    with store.stage() as (file, publish), store.scratch() as folder:
        with store.locked(KEY):
            other = threading.Thread(target=take)
            other.start()
            assert waits.wait(30), "two processes hold one lock"
        other.join()
        file.write(b"alive")
        Store(tmp_path).sweep()
        assert folder.is_dir()
        publish(Blob.of(b"alive"))
    assert not dead.exists()
    assert list((tmp_path / "scratch").iterdir()) == []
    assert store.read(Blob.of(b"alive")) == b"alive"


@pytest.mark.parametrize("name", KEEPING)
def test_without_a_lock_that_reaches_every_machine_nothing_is_evicted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    KEEPING[name](monkeypatch)
    store = Store(tmp_path, 3 * SIZE, setting="--store")
    assert Store(tmp_path)._locks.allows_eviction is False
    (warned,) = caplog.messages
    assert "set --store to a folder on a local disk" in warned
    blobs = [put(store, letter) for letter in "abc"]
    store.keep_bound()
    for use in (lambda: store.make_room(1), lambda: store.prune(0)):
        with pytest.raises(StoreError, match=r"no blob is evicted.* Remedy: stop every process.*--store") as caught:
            use()
        assert str(tmp_path) in str(caught.value)
    assert [store.read(blob) for blob in blobs] == [letter * SIZE for letter in (b"a", b"b", b"c")]


@pytest.mark.parametrize("name", KEEPING)
def test_without_a_lock_that_reaches_every_machine_only_the_old_is_swept(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    KEEPING[name](monkeypatch)
    store = Store(tmp_path)
    old, new = (tmp_path / "staging" / age for age in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    with store.scratch() as folder:
        Store(tmp_path)
        assert folder.is_dir()
    assert not old.exists()
    assert new.exists(), "perhaps a living writer's on another machine"


@pytest.mark.parametrize("name", KEEPING)
def test_a_file_of_a_command_needs_no_lock(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    KEEPING[name](monkeypatch)
    with whole_file(tmp_path / "out" / "model.safetensors") as file:
        file.write(b"weights")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "out").iterdir()] == [
        ("model.safetensors", b"weights")
    ]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_where_no_file_can_be_created_the_blobs_show_which_locks_work(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache on a full disk still makes room."""
    blob = put(Store(tmp_path), "a")
    real = os.open

    def open_existing(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(number, os.strerror(number))
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", open_existing)
    store = Store(tmp_path, SIZE)
    assert store._locks.allows_eviction
    assert [entry.digest for entry in store.make_room(SIZE)] == [blob.digest]


def test_a_mount_of_nfs_that_is_read_only_grants_shared_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = put(Store(tmp_path), "a")
    flock_of_nfs(monkeypatch)
    real = os.open

    def open_to_read(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & (os.O_CREAT | os.O_ACCMODE):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", open_to_read)
        store = Store(tmp_path)
    assert (store._locks.kind, store._locks.allows_eviction) == ("flock", False)
    file = store.open(blob)
    assert file is not None
    with file:
        assert Store(tmp_path).prune(0) == [], "a blob in use was evicted"


@pytest.mark.parametrize("reaches", [True, False])
def test_a_servers_file_is_opened_only_where_the_server_sees_the_lock(
    reaches: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = put(Store(tmp_path), "a")
    found = Mount("ext4" if reaches else "fuse.sshfs", frozenset())
    monkeypatch.setattr("model_factory.store.shared_store.mount_of", lambda _number: found)
    file = open_shared(str(tmp_path), blob)
    assert (file is not None) == reaches
    if file is not None:
        file.close()


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:50 / /home rw,nosuid shared:2 master:1 - nfs4 server:/home rw,vers=4.2,local_lock=none,addr=10.0.0.1
41 22 0:51 / /mnt/a\\040b rw - fuse.sshfs host: rw,user_id=0
broken line
"""


def test_a_mount_is_read() -> None:
    assert read_mount("40", MOUNTS) == Mount(
        "nfs4", frozenset({"rw", "nosuid", "vers=4.2", "local_lock=none", "addr=10.0.0.1"})
    )
    assert read_mount("41", MOUNTS).kind == "fuse.sshfs"
    assert read_mount("broken", MOUNTS) == read_mount("7", MOUNTS) == read_mount("", "") == Mount("", frozenset())


def test_the_mount_of_an_open_folder_is_found() -> None:
    with file_locks.opened(Path("/proc")) as number:
        assert mount_of(number).kind == "proc"


@pytest.mark.parametrize(
    ("kind", "options", "flock", "ofd"),
    [
        ("", "", True, True),
        ("ext4", "rw", True, True),
        ("overlay", "rw", True, True),
        ("nfs4", "local_lock=none", True, True),
        ("nfs", "local_lock=flock", False, True),
        ("nfs", "local_lock=posix", True, False),
        ("nfs", "local_lock=all", False, False),
        ("nfs", "nolock", False, False),
        ("lustre", "flock", True, True),
        ("lustre", "localflock", False, False),
        ("cifs", "rw", True, True),
        ("cifs", "nobrl", False, False),
        ("ceph", "rw", True, True),
        ("fuse", "rw", False, False),
        ("fuse.gcsfuse", "rw", False, False),
        ("fuse.fuse-overlayfs", "rw", True, True),
        ("fuseblk", "rw", True, True),
        ("virtiofs", "rw", False, False),
        ("9p", "rw", False, False),
    ],
)
def test_how_far_locks_reach(kind: str, options: str, flock: bool, ofd: bool) -> None:
    mount = Mount(kind, frozenset(options.split(",")))
    assert lock_reaches_all("flock", mount) == flock
    assert lock_reaches_all("ofd", mount) == ofd
