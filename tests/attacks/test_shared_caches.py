"""Two users of one cache folder: one user reads, changes, deletes and delays nothing of the other.

Each use of the cache runs in a process of a real user without privileges.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_factory.cli.main import main as command
from model_factory.digest import digest_of
from model_factory.errors import StoreError
from model_factory.store import Blob, Store, ownership
from model_factory.store.ownership import owners_of
from model_factory.store.shared_store import open_shared
from support.mounts import may_mount
from support.server import ServerProcess
from support.users import OTHER, VICTIM, as_user, busy_user, shared_folder

KEY = digest_of(b"a key")
OLD, NEW = b"old" * 1000, b"new" * 1000
CHECKED_NS = 1_000_000_000  # the mark of blobs with verified content
WAIT_SECONDS = 10.0

MODES = {"all, sticky": 0o1777, "all": 0o777}
FOLDERS = ("blobs", "records", "staging", "locks", "scratch")


def place_of(root: Path, folder: str, name: str) -> Path:
    return root / folder / name[:2] / name


def open_for_all(root: Path, mode: int) -> None:
    """Prepare a cache as an administrator does for a group of users: each folder has the mode of the cache."""
    Store(root)
    for path in [root, *root.iterdir()]:
        path.chmod(mode)


def forge(root: Path, folder: str, name: str, data: bytes, checked: bool = True) -> None:
    """Put a file of any content under any name, with the mark of verified content."""
    place = place_of(root, folder, name)
    os.umask(0)
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    place.write_bytes(data)
    if checked:
        os.utime(place, ns=(time.time_ns(), CHECKED_NS))


def content(store: Store, blob: Blob) -> str:
    """Return the bytes of a blob as a trainer maps them."""
    file = store.open(blob)
    if file is None:
        return "missing"
    with file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapping:
        return mapping[:].decode()


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022])
def test_keys_and_records_are_private(umask: int) -> None:
    """The name of a record is a key, and its content names builds and programs."""
    with shared_folder(0o1777) as root:

        def fill() -> None:
            store = Store(root)
            store.put_record(KEY, {"program": "secret"})
            store.put(b"source", is_private=True)
            with store.locked(digest_of(b"another key")):
                pass

        def look() -> list[str]:
            seen = []
            for folder in (root / "records", root / "records" / KEY[:2], root / "locks"):
                if os.access(folder, os.R_OK):
                    seen += [item.name for item in folder.iterdir()]
            private = place_of(root, "blobs", digest_of(b"source"))
            for place in (place_of(root, "records", KEY), root / "locks" / KEY, private):
                if os.access(place, os.R_OK):
                    seen.append(place.read_text())
            return seen

        as_user(VICTIM, fill, umask)
        assert as_user(OTHER, look) == []
        assert as_user(VICTIM, lambda: Store(root).record(KEY)) == {"program": "secret"}


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o1777])
def test_no_umask_makes_anything_writable_by_others(mode: int) -> None:
    """The umask belongs to the whole process: another thread may have set it to 0 for a moment."""
    with shared_folder(mode, VICTIM) as root:

        def fill() -> None:
            store = Store(root, 1 << 30)
            store.put(OLD)
            store.put_record(KEY, 1)
            with store.locked(KEY), store.scratch(), store.stage() as (file, publish):
                file.write(NEW)
                check(root)
                publish(Blob.of(NEW))
            check(root)

        def check(root: Path) -> None:
            for path in root.rglob("*"):
                found = path.lstat()
                others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
                assert not others or found.st_mode & stat.S_ISVTX, f"{path} {found.st_mode:o}"

        as_user(VICTIM, fill, umask=0)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_record_of_another_user_is_ignored_and_does_not_stand_in_the_way(mode: int) -> None:
    """The key of recorded programs covers public facts only, so every user can compute the key."""
    with shared_folder(mode) as root:
        open_for_all(root, mode)
        as_user(OTHER, lambda: Store(root).put_record(KEY, {"programs": "forged"}), 0)

        def use() -> list[Any]:
            store = Store(root)
            before = store.record(KEY)
            store.put_record(KEY, {"programs": "mine"})
            return [before, store.record(KEY), Store(root).record(KEY)]

        assert as_user(VICTIM, use) == [None, {"programs": "mine"}, {"programs": "mine"}]


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_mark_of_another_user_says_nothing(mode: int) -> None:
    with shared_folder(mode) as root:
        open_for_all(root, mode)
        blob = Blob.of(OLD)
        as_user(OTHER, lambda: forge(root, "blobs", blob.digest, NEW))
        assert as_user(VICTIM, lambda: content(Store(root), blob)) == "missing"


def test_a_blob_under_the_name_of_another_blob_is_not_believed() -> None:
    """Two builds of a model have weights of one size. Renaming needs no permission on the file."""
    with shared_folder(0o777) as root:
        open_for_all(root, 0o777)
        old, new = Blob.of(OLD), Blob.of(NEW)

        def fill() -> None:
            store = Store(root)
            store.put(OLD)
            store.put(NEW)

        def swap() -> None:
            for blob in (old, new):
                folder = place_of(root, "blobs", blob.digest).parent
                if not os.access(folder, os.W_OK):  # bring in a folder of the attacker
                    folder.rename(folder.with_name(f"was-{folder.name}"))
                    folder.mkdir()
            a, b = (place_of(root, "blobs", blob.digest) for blob in (old, new))
            was_a, was_b = (
                path if path.exists() else path.parent.with_name(f"was-{path.parent.name}") / path.name
                for path in (a, b)
            )
            for source, target in ((was_b, a), (was_a, b)):
                try:
                    source.rename(root / f"moved-{target.name}")
                except PermissionError:
                    continue
            for target in (a, b):
                moved = root / f"moved-{target.name}"
                if moved.exists():
                    moved.rename(target)

        as_user(VICTIM, fill, 0)
        for folder in (root / "blobs").iterdir():
            folder.chmod(0o777)  # as an earlier version made folders under umask 0
        as_user(OTHER, swap, 0)
        assert as_user(VICTIM, lambda: content(Store(root), old)) in {"missing", OLD.decode()}


def test_bytes_that_were_hashed_do_not_change_later() -> None:
    """The owner of a file changes the file after the check, while another user has the file mapped."""
    with shared_folder(0o1777) as root:
        open_for_all(root, 0o1777)
        blob = Blob.of(OLD)
        as_user(OTHER, lambda: Store(root).put(OLD) and None)
        place = place_of(root, "blobs", blob.digest)

        def use() -> str:
            file = Store(root).open(blob)
            assert file is not None, "the blob of another user is usable"
            with file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapping:
                (root / "go").touch()
                while not (root / "done").exists():
                    time.sleep(0.01)
                return mapping[:].decode()

        def change() -> None:
            while not (root / "go").exists():
                time.sleep(0.01)
            with place.open("r+b") as file:
                file.write(NEW)
            (root / "done").touch()

        attacker = threading.Thread(target=as_user, args=(OTHER, change))
        attacker.start()
        assert as_user(VICTIM, use) == OLD.decode()
        attacker.join()


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_that_is_a_link_leads_nowhere(folder: str) -> None:
    """Cleaning, writing and eviction through a link would reach the victim's own files."""
    with shared_folder(0o777) as root:
        own = root.parent / "own"
        own.mkdir()
        for name in (KEY, Blob.of(OLD).digest):
            (own / name).write_bytes(b"private")
            (own / name[:2]).mkdir(exist_ok=True)
            (own / name[:2] / name).write_bytes(b"private")
        for path in [own, *own.rglob("*")]:
            os.chown(path, VICTIM, VICTIM)
        before = sorted(str(path) for path in own.rglob("*"))
        open_for_all(root, 0o777)

        def attack() -> None:
            (root / folder).rename(root / "away")
            (root / folder).symlink_to(own)

        def use() -> None:
            try:
                store = Store(root, 1 << 30)
                store.read(Blob.of(OLD))
                store.put(OLD)
                store.record(KEY)
                store.put_record(KEY, 1)
                with store.locked(KEY), store.scratch():
                    pass
                store.prune(0)
            except StoreError:
                pass

        as_user(OTHER, attack)
        as_user(VICTIM, use)
        assert sorted(str(path) for path in own.rglob("*")) == before
        assert {path.read_bytes() for path in own.rglob("*") if path.is_file()} == {b"private"}


@pytest.mark.parametrize("folder", ["blobs", "records"])
def test_a_folder_of_a_prefix_that_is_a_link_leads_nowhere(folder: str) -> None:
    with shared_folder(0o1777) as root:
        own = root.parent / "own"
        own.mkdir()
        digest = Blob.of(OLD).digest
        for name in (KEY, digest):
            (own / name).write_bytes(b"private")
        for path in [own, *own.rglob("*")]:
            os.chown(path, VICTIM, VICTIM)
        open_for_all(root, 0o1777)
        as_user(OTHER, lambda: (root / folder / (digest if folder == "blobs" else KEY)[:2]).symlink_to(own))

        def use() -> Any:
            store = Store(root, 1 << 30)
            results = []
            for step in (
                lambda: store.read(Blob.of(OLD)),
                lambda: store.verify(digest),
                lambda: store.record(KEY),
                lambda: store.prune(0) and None,
                lambda: store.put(OLD) and None,
                lambda: store.put_record(KEY, 1),
            ):
                try:
                    results.append(step())
                except StoreError:
                    results.append("error")
            return results

        as_user(VICTIM, use)
        assert {path.name: path.read_bytes() for path in own.iterdir()} == {KEY: b"private", digest: b"private"}


SQUATS: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.write_bytes(b"in the way"),
    "private file": lambda path: os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0)),
    "link": lambda path: path.symlink_to("/dev/zero"),
    "fifo": os.mkfifo,
    "folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("squat", SQUATS)
@pytest.mark.parametrize("what", ["blob", "prefix", "record", "lock"])
def test_a_name_that_is_taken_stops_nobody(what: str, squat: str) -> None:
    """Names are digests of public data. In a sticky folder no user can remove what another user puts there."""
    blob = Blob.of(OLD)
    with shared_folder(0o1777) as root:
        open_for_all(root, 0o1777)
        taken = {
            "blob": [place_of(root, "blobs", blob.digest)],
            "prefix": [root / "blobs" / blob.digest[:2]],
            "record": [place_of(root, "records", KEY)],
            "lock": [root / "locks" / KEY, root / "locks" / f"{KEY}-{VICTIM}"],
        }[what]

        def attack() -> None:
            os.umask(0)
            for place in taken:
                if place.parent.parent != root and not place.parent.exists():
                    place.parent.mkdir()
                    place.parent.chmod(0o1777)
                SQUATS[squat](place)

        def use() -> list[Any]:
            store = Store(root, 1 << 30)
            if what == "lock":
                with store.locked(KEY):
                    return ["locked"]
            if what == "record":
                store.put_record(KEY, 1)
                return [store.record(KEY)]
            with store.add(blob, lambda file: file.write(OLD)) as file:
                return [file.read().decode()]

        as_user(OTHER, attack)
        assert as_user(VICTIM, use, seconds=WAIT_SECONDS) in (["locked"], [1], [OLD.decode()])


def test_a_lock_that_another_user_holds_is_not_waited_for() -> None:
    blob = Blob.of(OLD)
    with shared_folder(0o1777) as root:
        open_for_all(root, 0o1777)
        as_user(VICTIM, lambda: Store(root).put(OLD) and None)

        def hold() -> list[int]:
            held = []
            for place in (
                place_of(root, "blobs", blob.digest),
                root / "locks" / KEY,
                root / "locks" / f"{KEY}-{VICTIM}",
            ):
                fd = os.open(place, os.O_RDONLY | (0 if place.exists() else os.O_CREAT), 0o666)
                fcntl.flock(fd, fcntl.LOCK_EX)
                held.append(fd)
            return held

        def use() -> str:
            store = Store(root, 1 << 30)
            with store.locked(KEY):
                return content(store, blob)

        with busy_user(OTHER, hold):
            assert as_user(VICTIM, use, seconds=WAIT_SECONDS) == OLD.decode()


def test_files_of_another_user_make_no_own_file_go() -> None:
    """A sparse file has any size, and takes no space."""
    with shared_folder(0o1777) as root:
        open_for_all(root, 0o1777)
        as_user(VICTIM, lambda: Store(root).put(OLD) and None)

        def attack() -> None:
            forge(root, "blobs", KEY, b"x")
            os.truncate(place_of(root, "blobs", KEY), 1 << 40)

        def use() -> str:
            store = Store(root, 1 << 30)
            store.keep_bound()
            store.make_room(1000)
            return content(store, Blob.of(OLD))

        as_user(OTHER, attack)
        assert as_user(VICTIM, use) == OLD.decode()


@pytest.mark.parametrize("by_link", [False, True])
def test_the_owner_of_a_folder_with_a_guessed_name_is_not_trusted(by_link: bool) -> None:
    """Another user makes the folder that ``MODEL_FACTORY_CACHE`` names, in a folder like /tmp."""
    blob = Blob.of(OLD)
    with shared_folder(0o1777) as common:
        root = common / "model-factory"

        def attack() -> None:
            real = common / "elsewhere" if by_link else root
            forged = Store(real)
            forged.put_record(KEY, "forged")
            forge(real, "blobs", blob.digest, NEW)
            for path in [real, *real.rglob("*")]:
                path.chmod(0o777)
            if by_link:
                root.symlink_to(real)

        def use() -> list[Any]:
            store = Store(root, 1 << 30)
            return [store.record(KEY), content(store, blob)]

        as_user(OTHER, attack)
        assert as_user(VICTIM, use) == [None, "missing"]


def test_commands_on_a_folder_full_of_traps_end_and_follow_nothing() -> None:
    """``cache ls``, ``verify`` and ``prune``, also by root, who may do everything."""
    with shared_folder(0o1777) as root:
        own = root.parent / "own"
        own.mkdir()
        (own / KEY).write_bytes(b"private")
        open_for_all(root, 0o1777)

        def attack() -> None:
            os.umask(0)
            for folder in ("blobs", "records"):
                (root / folder / "no prefix").mkdir()
                (root / folder / "ff").symlink_to(own)
                (root / folder / KEY[:2]).mkdir()
                (root / folder / KEY[:2] / "no digest").write_bytes(b"x")
                (root / folder / KEY[:2] / KEY).symlink_to(own / KEY)
                for number, trap in enumerate(SQUATS.values()):
                    digest = f"{KEY[:2]}{number:062d}"
                    trap(root / folder / KEY[:2] / digest)
            for folder in ("staging", "locks", "scratch"):
                for number, trap in enumerate(SQUATS.values()):
                    trap(root / folder / str(number))
                (root / folder / "link").symlink_to(own)

        def use() -> list[int]:
            main = ["cache", "--dir", str(root)]
            return [command([*main, action]) for action in ("ls", "verify", "prune")]

        as_user(OTHER, attack)
        for user in (VICTIM, 0):
            assert as_user(user, use, seconds=WAIT_SECONDS)[0] == 0
        assert (own / KEY).read_bytes() == b"private"


def test_a_hard_link_to_a_file_of_the_victim_changes_nothing_there() -> None:
    """Where the kernel allows hard links to the files of others: another name of a file is no blob and no record."""
    with shared_folder(0o1777) as root:
        open_for_all(root, 0o1777)
        secret = root.parent / "secret"
        secret.write_bytes(b'{"document":"forged","key":"' + KEY.encode() + b'"}')
        os.chown(secret, VICTIM, VICTIM)
        secret.chmod(0o600)
        before = secret.stat()
        for folder in ("blobs", "records"):  # root links, as the kernel may forbid other users to link
            place = place_of(root, folder, KEY)
            place.parent.mkdir()
            os.chown(place.parent, OTHER, OTHER)
            place.parent.chmod(0o1777)
            place.hardlink_to(secret)

        def use() -> list[Any]:
            store = Store(root, 1 << 30)
            results = [store.record(KEY), store.read(Blob(KEY, before.st_size)) is None]
            store.put_record(KEY, 1)
            store.prune(0)
            return results

        assert as_user(VICTIM, use) == [None, True]
        after = secret.stat()
        assert secret.read_bytes().startswith(b'{"document":"forged"')
        assert (after.st_mode, after.st_mtime_ns, after.st_uid) == (before.st_mode, before.st_mtime_ns, before.st_uid)


def test_root_squash_copies_what_it_cannot_attribute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On NFS with ``root_squash``, new files of root belong to nobody: like the files of every other root."""
    monkeypatch.setattr(ownership, "_user_of_new_files", lambda _staging: 65534)
    store = Store(tmp_path)
    blob = store.put(OLD)
    for path in tmp_path.rglob("*"):
        os.chown(path, 65534, 65534)
    with store.locked(KEY):
        pass
    with store.open(blob) as file:  # type: ignore[union-attr]
        assert file.read() == OLD
        assert os.fstat(file.fileno()).st_nlink == 0, "a copy in memory"
    assert [entry.is_own for entry in store.entries()] == [True]


def test_a_store_of_several_users_named_by_the_trainer_is_copied(tmp_path: Path) -> None:
    """``MODEL_FACTORY_SHARED_STORE``: files of the folder's owner are opened in place, other files are copied."""
    with shared_folder(0o1777) as root:
        open_for_all(root, 0o1777)
        blob = Blob.of(OLD)
        as_user(OTHER, lambda: Store(root).put(OLD) and None)
        assert open_shared(str(root), blob) is None
        file = open_shared(str(root), blob, is_trusted=True)
        assert file is not None
        with file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapping:
            as_user(OTHER, lambda: forge(root, "blobs", blob.digest, NEW))
            assert mapping[:] == OLD
            with pytest.raises(OSError, match="not permitted"):
                os.truncate(file.fileno(), 0)
        assert open_shared(str(root), blob, is_trusted=True) is None


@pytest.mark.parametrize("squat", ["file", "link", "fifo", "folder"])
def test_a_trainer_builds_in_a_folder_whose_names_are_all_taken(
    squat: str, server: ServerProcess, tmp_path: Path
) -> None:
    with shared_folder(0o1777) as root:
        open_for_all(root, 0o1777)

        def attack() -> None:
            os.umask(0)
            for folder in ("blobs", "records"):
                for number in range(256):
                    SQUATS[squat](root / folder / f"{number:02x}")

        as_user(OTHER, attack)
        layer = {"_type_": "nn.Linear", "in_features": 30, "out_features": 20}
        config = {"config": {"schema_version": 1, "model": {"sequential": {"layers": [layer]}}}}
        command = [sys.executable, "-c", BUILD, server.address, str(tmp_path / "warm"), str(root), str(VICTIM)]
        done = subprocess.run([*command, repr(config)], capture_output=True, text=True, check=False, timeout=120)
        assert done.stdout == "built torch.Size([20, 30])\n", done.stderr[-3000:]


BUILD = """
import os, sys
import torch
from model_factory import RemoteModelFactory

address, warm, cache, user, config = sys.argv[1:5] + [eval(sys.argv[5])]
RemoteModelFactory(address, seed=1, cache_dir=warm).build(config)  # every module is imported
os.setgroups([])
os.setgid(int(user))
os.setuid(int(user))
model = RemoteModelFactory(address, seed=7, cache_dir=cache).build(config)
model(torch.randn(3, 30)).sum().backward()
print("built", next(iter(model.parameters())).shape)
"""


MOUNTED = """
import os, subprocess, sys
from pathlib import Path
from model_factory.digest import digest_of
from model_factory.store import Blob, Store

root, what = Path(sys.argv[1]), sys.argv[2]
blob, key = Blob.of(b"old"), digest_of(b"a key")
record = b'{"document":1,"key":"%s"}' % key.encode()
for folder, name, data in (("blobs", blob.digest, b"new"), ("records", key, record)):
    prefix = root / folder / name[:2]
    if what == "folder":
        subprocess.run(["mount", "-t", "tmpfs", "none", prefix], check=True)
        target = prefix / name
        target.write_bytes(data)
        os.utime(target, ns=(0, 1_000_000_000))
    else:
        other = root.parent / f"other-{folder}"
        other.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", other], check=True)
        (other / name).write_bytes(data)
        os.utime(other / name, ns=(0, 1_000_000_000))
        (prefix / name).touch()
        subprocess.run(["mount", "--bind", other / name, prefix / name], check=True)
store = Store(root)
file = store.open(blob)
print(file and file.read(), store.record(key))
"""


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_mount_of_another_user_is_not_believed(what: str) -> None:
    """A user can mount a file system in an own folder, with files of any owner (FUSE with ``allow_other``)."""
    with shared_folder(0o1777) as root:
        open_for_all(root, 0o1777)
        for folder, name in (("blobs", Blob.of(b"old").digest), ("records", KEY)):
            place_of(root, folder, name).parent.mkdir()
            os.chown(place_of(root, folder, name).parent, OTHER, OTHER)
        if not may_mount():
            pytest.skip("this user may mount nothing")
        command = ["unshare", "--mount", sys.executable, "-c", MOUNTED, str(root), what]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.stdout == "None None\n", done.stderr[-3000:]


def test_an_access_control_list_makes_no_group_private(tmp_path: Path) -> None:
    """With a list, the group bits of the mode are the bits of every named user."""
    root = tmp_path / "cache"
    root.mkdir(mode=0o700)
    assert owners_of(root, None).keep_name(root.stat(), root.stat())

    def entry(kind: int, bits: int, user: int = 0xFFFFFFFF) -> bytes:
        return struct.pack("<HHI", kind, bits, user)

    entries = (entry(1, 7), entry(2, 7, 1234), entry(4, 0), entry(0x10, 7), entry(0x20, 0))
    try:
        os.setxattr(root, "system.posix_acl_access", struct.pack("<I", 2) + b"".join(entries))
    except OSError as error:
        pytest.skip(f"this file system has no access control lists: {error}")
    assert root.stat().st_mode & 0o777 == 0o770
    assert not owners_of(root, None).keep_name(root.stat(), root.stat())
