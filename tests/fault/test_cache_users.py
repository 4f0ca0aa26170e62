"""Caches of other users, caches that cannot be written to, and users without a home folder."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model_factory import ModelFactoryError, RemoteModelFactory, StoreError
from model_factory.cli.main import main
from model_factory.environment import default_cache_dir
from model_factory.store import Store
from model_factory_server import PolicyConstructorModelFactory
from support.compare import assert_same_state
from support.server import ServerProcess

FIRST, SECOND = 23456, 23457
"""Users without privileges, without a name and without a home folder."""

CONFIG = {
    "config": {
        "schema_version": 1,
        "model": {"sequential": {"layers": [{"_type_": "nn.Linear", "in_features": 30, "out_features": 20}]}},
    }
}

AS_USER = """
import contextlib, io, os, sys, tempfile, traceback
from pathlib import Path
from model_factory.cli.main import main
from model_factory.errors import StoreError
from model_factory.store import Blob, Store

with tempfile.TemporaryDirectory() as place:  # import every module before the user loses access to the interpreter
    main(["cache", "--dir", place, "ls"])
    with Store(Path(place)).locked("ab" * 32):
        Store(Path(place)).read(Store(Path(place)).put(b"warm"))
os.umask(int(sys.argv[2], 8))
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))
root = Path(sys.argv[3])
OLD, NEW, KEY = b"first" * 1000, b"second" * 1000, "ab" * 32

def attempt(name, use):
    try:
        result = use()
    except StoreError as error:
        said = str(error)
        result = "error" if "Remedy: set MODEL_FACTORY_CACHE" in said and str(root) in said else traceback.format_exc()
    except BaseException:
        result = traceback.format_exc()
    print(name, result, sep="=")

def lock():
    with store.locked(KEY):
        return "locked"

def look():
    file = store.open(Blob.of(OLD))
    if file is None:
        return "missing"
    with file:
        return "same" if file.read() == OLD else "other"

store = None
def opened():
    global store
    store = Store(root, 1 << 30)
    return "opened"

def command():
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        status = main(["cache", "--dir", str(root), "ls"])
    if status and not error.getvalue().startswith("error: cannot use "):
        raise AssertionError(error.getvalue())
    return status

attempt("open", opened)
attempt("command", command)
if store is not None:
    if sys.argv[4] == "first":
        attempt("put", lambda: store.put(OLD) and "put")
        attempt("record", lambda: store.put_record(KEY, {"a": 1}) or "put")
    attempt("read", look)
    attempt("record", lambda: store.record(KEY))
    attempt("new", lambda: store.put(NEW) and "put")
    attempt("lock", lock)
    attempt("verify", lambda: store.verify(Blob.of(OLD).digest))
    attempt("room", lambda: store.make_room(10))
    attempt("prune", lambda: [entry.size for entry in store.prune(0)] if sys.argv[4] == "second" else None)
"""


def as_user(user: int, umask: str, root: Path, role: str) -> dict[str, str]:
    """Have a user use a cache; return the outcome of each use."""
    command = [sys.executable, "-c", AS_USER, str(user), umask, str(root), role]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout, done.stdout
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can reach."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as two users")
    place = Path(tempfile.mkdtemp(prefix="model-factory-users-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@pytest.mark.parametrize("umask", ["022", "077", "002"])
@pytest.mark.parametrize("mode", [0o755, 0o777, 0o1777], ids=["own", "open", "sticky"])
def test_a_second_user_has_a_cache_or_the_remedy(umask: str, mode: int, folder: Path) -> None:
    cache = folder / "cache"
    cache.mkdir()
    os.chown(cache, FIRST, FIRST)
    cache.chmod(mode)
    first = as_user(FIRST, umask, cache, "first")
    assert (first["open"], first["read"], first["new"], first["lock"]) == ("opened", "same", "put", "locked")
    second = as_user(SECOND, umask, cache, "second")
    if umask == "077":
        assert second == {"open": "error", "command": "1"}
    else:
        assert second == {
            "open": "opened",
            "command": "0",
            "read": "same",
            "record": "None",  # records are private
            "new": "put",  # the first user's blob, found
            "lock": "error",
            "verify": "True",
            "room": "[]",
            "prune": "[]",
        }
    assert as_user(FIRST, umask, cache, "first")["read"] == "same"


@pytest.mark.parametrize("earlier", ["022", "002", "077"])
def test_no_file_of_a_private_user_is_readable_by_others(earlier: str, folder: Path) -> None:
    """Also in a cache created with another umask."""
    cache = folder / "cache"
    cache.mkdir()
    os.chown(cache, FIRST, FIRST)
    as_user(FIRST, earlier, cache, "second")
    before = set(cache.rglob("*"))
    assert as_user(FIRST, "077", cache, "first")["read"] == "same"
    made = [path for path in cache.rglob("*") if path not in before]
    assert len([path for path in made if path.is_file()]) >= 2
    assert [path for path in made if stat.S_IMODE(path.lstat().st_mode) & 0o077] == []


@pytest.mark.parametrize("umask", ["002", "022", "077"])
def test_users_of_a_folder_that_all_may_write_to(umask: str, folder: Path) -> None:
    """An administrator makes the folders; each user adds blobs, and reads the blobs of the others where allowed."""
    cache = folder / "cache"
    Store(cache)
    for path in [cache, *cache.iterdir()]:
        path.chmod(0o1777)
    first = as_user(FIRST, umask, cache, "first")
    assert (first["read"], first["new"], first["lock"]) == ("same", "put", "locked")
    second = as_user(SECOND, umask, cache, "second")
    assert (second["open"], second["lock"]) == ("opened", "locked")
    assert (second["read"], second["prune"]) == (("missing", "[]") if umask == "077" else ("same", "[]"))


READ_ONLY = """
import sys
from pathlib import Path
from model_factory.store import Blob, Store

store = Store(Path(sys.argv[1]), 1 << 30)
with store.open(Blob.of(b"data")) as file:
    assert file.read() == b"data"
assert store.record("ab" * 32) == {"a": 1}
assert [entry.in_use for entry in store.entries()] == [False]
assert store.prune(0) == []
uses = (
    lambda: store.put(b"new"),
    lambda: store.put_record("ab" * 32, 2),
    lambda: store.locked("ab" * 32).__enter__(),
)
for use in uses:
    try:
        use()
    except Exception as error:
        print(type(error).__name__, "Remedy: set MODEL_FACTORY_CACHE" in str(error))
"""


@pytest.mark.parametrize("folders", ["all folders", "blobs and records"])
@pytest.mark.parametrize("how", ["tmpfs", "bind", "overlay"])
def test_a_read_only_mount_is_read(how: str, folders: str, tmp_path: Path) -> None:
    source, place, empty = (tmp_path / name for name in ("source", "place", "empty"))
    store = Store(source)
    store.put(b"data")
    store.put_record("ab" * 32, {"a": 1})
    if folders == "blobs and records":
        for name in ("staging", "locks", "scratch"):
            (source / name).rmdir()
    place.mkdir()
    empty.mkdir()
    mount = {
        "tmpfs": f"mount -t tmpfs none {place} && cp -a {source}/. {place} && mount -o remount,ro {place}",
        "bind": f"mount --bind {source} {place} && mount -o remount,bind,ro {place}",
        "overlay": f"mount -t overlay -o lowerdir={source}:{empty} none {place}",
    }[how]
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*inside, mount], capture_output=True, check=False).returncode:
        pytest.skip("this user may mount nothing")
    command = f'{mount} && exec "{sys.executable}" -c "$0" {place}'
    done = subprocess.run([*inside, command, READ_ONLY], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "StoreError True\n" * 3), done.stderr


DAMAGED = """
import os, sys
from pathlib import Path
from model_factory.store import Blob, Store

store, blob = Store(Path(sys.argv[1])), Blob.of(b"data")
for use in (lambda: store.read(blob), lambda: store.verify(blob.digest), lambda: store.record("ab" * 32)):
    try:
        use()
    except Exception as error:
        said = str(error)
        print(type(error).__name__, "and cannot be removed" in said, "Remedy: set MODEL_FACTORY_CACHE" in said)
"""


def test_what_is_damaged_in_a_read_only_mount_is_an_error(tmp_path: Path) -> None:
    """Without this error, every reader finds the same damaged file again."""
    store = Store(tmp_path / "store")
    path = store.find(store.put(b"data"))
    assert path is not None
    found = path.stat()
    path.write_bytes(b"dato")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    store.put_record("ab" * 32, {"a": 1})
    (record,) = (store.root / "records").glob("*/*")
    record.write_bytes(b"{")
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount --bind {store.root} {store.root} && mount -o remount,bind,ro {store.root}"
    if shutil.which("unshare") is None or subprocess.run([*inside, mount], capture_output=True, check=False).returncode:
        pytest.skip("this user may mount nothing")
    command = f'{mount} && exec "{sys.executable}" -c "$0" {store.root}'
    done = subprocess.run([*inside, command, DAMAGED], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "StoreError True True\n" * 3), done.stderr


BUILD = """
import os, sys
import torch
from model_factory import RemoteModelFactory, StoreError

address, cache, warm, config = sys.argv[1], sys.argv[2], sys.argv[3], eval(sys.argv[4])
RemoteModelFactory(address, seed=7, cache_dir=warm).build(config)  # every module is imported
os.setgroups([])
os.setgid(23457)
os.setuid(23457)
os.environ["MODEL_FACTORY_CACHE"] = cache
model = RemoteModelFactory(address, seed=7).build(config)
print(sum(item.double().abs().sum().item() for item in model.state_dict().values()))
model(torch.randn(3, 30)).sum().backward()
try:
    RemoteModelFactory(address, seed=8).build(config)
except StoreError as error:
    print("Remedy: set MODEL_FACTORY_CACHE" in str(error))
"""


def test_another_user_builds_from_a_cache_that_only_can_be_read(
    server: ServerProcess, folder: Path, tmp_path: Path
) -> None:
    cache = folder / "cache"
    model = RemoteModelFactory(server.address, seed=7, cache_dir=cache).build(CONFIG)
    assert_same_state(model, PolicyConstructorModelFactory(seed=7).build(CONFIG))
    expected = sum(item.double().abs().sum().item() for item in model.state_dict().values())  # type: ignore[union-attr]
    environment = {name: value for name, value in os.environ.items() if name not in {"HOME", "XDG_CACHE_HOME"}}
    command = [sys.executable, "-c", BUILD, server.address, str(cache), str(tmp_path / "warm"), repr(CONFIG)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
    assert done.stdout == f"{expected}\nTrue\n", done.stderr


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without HOME and without an entry in the password file."""
    for name in ("HOME", "XDG_CACHE_HOME", "MODEL_FACTORY_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 23456)


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("cache", [None, "", "~/models", "~nobody-of-that-name/models"])
def test_without_a_home_folder_the_remedy_is_a_variable(
    cache: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if cache is not None:
        monkeypatch.setenv("MODEL_FACTORY_CACHE", cache)
    uses: list[Callable[[], object]] = [default_cache_dir, lambda: RemoteModelFactory("127.0.0.1:1")]
    for use in uses:
        with pytest.raises(StoreError, match=r"no home folder\. Remedy: set MODEL_FACTORY_CACHE to a folder"):
            use()
    assert main(["cache", "ls"]) == 1
    assert "Remedy: set MODEL_FACTORY_CACHE" in capsys.readouterr().err
    assert main(["doctor", "--server", "127.0.0.1:1"]) == 1
    assert "set MODEL_FACTORY_CACHE to a folder that this user may" in capsys.readouterr().out


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("variable", ["MODEL_FACTORY_CACHE", "XDG_CACHE_HOME"])
def test_without_a_home_folder_a_cache_that_is_named_is_used(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(tmp_path))
    RemoteModelFactory("127.0.0.1:1").close()
    assert list(tmp_path.rglob("blobs")) != []


def test_a_cache_that_the_caller_names_is_named_in_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="Remedy: set cache_dir or MODEL_FACTORY_CACHE to a folder"):
        RemoteModelFactory("127.0.0.1:1", cache_dir=tmp_path / "file")


@pytest.mark.parametrize("number", [errno.ENODEV, errno.EIO, errno.ESTALE, errno.EACCES])
def test_weights_that_cannot_be_mapped_are_an_error_of_the_cache(
    number: int, server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is not treated as damaged and fetched again."""

    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(mmap, "mmap", refuse)
    with (
        RemoteModelFactory(server.address, seed=7, cache_dir=tmp_path) as factory,
        pytest.raises(StoreError, match="Remedy: set MODEL_FACTORY_CACHE"),
    ):
        factory.build(CONFIG)


def test_a_working_directory_that_is_gone_is_an_error_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ModelFactoryError, match="Remedy: set MODEL_FACTORY_CACHE"):
        Store(Path("cache"))
