"""A node cache with many processes, some of which die."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from model_factory import RemoteModelFactory
from model_factory.client import assembly
from model_factory.digest import digest_of_file
from model_factory.store import Blob, Store
from model_factory_server import PolicyConstructorModelFactory
from support.cases import CASES
from support.compare import assert_same_state, train
from support.load.ranks import Ranks
from support.proxy import Proxy
from support.server import ServerProcess

PROCESSES = 3
WIDTH = 2000
LARGE_BYTES = WIDTH * WIDTH * 4
LARGE = {
    "schema_version": 1,
    "model": {"sequential": {"layers": [{"_type_": "nn.Linear", "in_features": WIDTH, "out_features": WIDTH}]}},
}

WRITER = """
import random, sys
from pathlib import Path
from model_factory.store import Blob, Store

store, seed, publishing = Store(Path(sys.argv[1])), int(sys.argv[2]), sys.argv[3] == "publish"
data = random.Random(seed).randbytes(4 << 20)
with store.stage() as (file, publish):
    for start in range(0, len(data), 4096):
        file.write(data[start:start + 4096])
        file.flush()
        if start == len(data) // 2:
            print("half", flush=True)
            if not publishing:
                sys.stdin.read()
    publish(Blob.of(data))
print("published", flush=True)
sys.stdin.read()
"""


FULL_DISK = """
import os, sys
from pathlib import Path
from model_factory.store import Store

disk = Path(sys.argv[1])
cache = Store(disk / "cache", max_bytes=1 << 30)
old = cache.put(os.urandom(600 << 10))
try:
    with (disk / "of others").open("wb", buffering=0) as rest:
        while rest.write(bytes(4096)) == 4096:
            pass
except OSError:
    pass
with cache.locked("ab" * 32, "fetches"):
    cache.make_room(500 << 10)
    new = cache.put(os.urandom(500 << 10))
assert cache.find(old) is None and cache.find(new) is not None
os.system(f"mount -o remount,ro {disk}")
try:
    with cache.locked("ab" * 32):
        print("locked")
except Exception as error:
    print(type(error).__name__)
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def blob_files(store: Path) -> list[Path]:
    return [path for path in (store / "blobs").rglob("*/*") if path.is_file()]


def test_a_killed_writer_leaves_no_blob(tmp_path: Path, chance: random.Random) -> None:
    writer = start(WRITER, tmp_path, chance.randrange(1 << 30), "wait")
    assert said(writer) == "half"
    (left,) = (tmp_path / "staging").iterdir()
    assert left.stat().st_size > 0
    Store(tmp_path)
    assert left.exists(), "a living writer's file was swept"
    end(writer)
    assert blob_files(tmp_path) == []
    assert left.exists()
    Store(tmp_path)
    assert not left.exists(), "a dead writer's file was not swept"


def test_writers_killed_at_any_moment(tmp_path: Path, chance: random.Random) -> None:
    """Afterwards every file with a blob's name has the whole blob."""
    for _ in range(12):
        seed = chance.randrange(1 << 30)
        writer = start(WRITER, tmp_path, seed, "publish")
        assert said(writer) == "half"
        try:
            writer.wait(chance.uniform(0, 0.02))
        except subprocess.TimeoutExpired:
            writer.send_signal(signal.SIGKILL)
        end(writer)
        data = random.Random(seed).randbytes(4 << 20)
        blob = Blob.of(data)
        assert Store(tmp_path).read(blob) in {data, None}
    for path in blob_files(tmp_path):
        assert digest_of_file(path) == path.name
    assert list((tmp_path / "staging").iterdir()) == []


def test_processes_of_a_node_transfer_a_blob_once(
    server: ServerProcess, ranks: Ranks, make_proxy: Callable[[ServerProcess], Proxy], tmp_path: Path
) -> None:
    RemoteModelFactory(server.address, seed=7, cache_dir=tmp_path / "warm").build({"config": LARGE})
    proxy = make_proxy(server)
    cache = tmp_path / "cache"
    wanted = {"address": proxy.address, "cache": str(cache), "seed": 7, "config": LARGE}
    trainers = [ranks.start("build", **wanted) for _ in range(PROCESSES)]
    model = PolicyConstructorModelFactory(seed=7).build({"config": LARGE})
    expected = sum(item.double().abs().sum().item() for item in model.state_dict().values())
    for trainer in trainers:
        trainer.wait_for(f"built {expected!r}")
    large = [path for path in blob_files(cache) if path.stat().st_size > LARGE_BYTES]
    assert len(large) == 1
    assert LARGE_BYTES < proxy.received < 1.5 * LARGE_BYTES, "the weights were transferred more than once"


@pytest.fixture
def mlp(server: ServerProcess, tmp_path: Path) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        factory = RemoteModelFactory(server.address, seed=7, cache_dir=tmp_path / "cache")
        return factory.build({"mlp": CASES["mlp"].config})["mlp"]

    return build


@pytest.mark.parametrize("damage", ["truncated", "emptied", "longer", "other bytes", "decayed"])
def test_a_damaged_file_in_the_cache_is_fetched_again(
    damage: str,
    mlp: Callable[[], nn.Module],
    tmp_path: Path,
    chance: random.Random,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(assembly, "MAX_BLUEPRINTS", 0)  # so that every file is read at every build
    expected = mlp()
    for path in blob_files(tmp_path / "cache"):
        data, stat = path.read_bytes(), path.stat()
        cut = chance.randrange(1, len(data))
        path.unlink()  # the mapping of a living model keeps the content
        other = bytes([data[0] ^ 1]) + data[1:]
        harmed = {"truncated": data[:cut], "emptied": b"", "longer": data + b"\0"}.get(damage, other)
        path.write_bytes(harmed)
        if damage == "decayed":  # a disk fault leaves no trace in the file's times
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert_same_state(mlp(), expected)
        assert digest_of_file(path) == path.name


def test_training_does_not_change_the_cache(mlp: Callable[[], nn.Module], tmp_path: Path) -> None:
    train(mlp(), CASES["mlp"].inputs(3, 2), steps=2)
    for path in blob_files(tmp_path / "cache"):
        assert digest_of_file(path) == path.name
    assert_same_state(mlp(), PolicyConstructorModelFactory(seed=7).build({"mlp": CASES["mlp"].config})["mlp"])


def test_a_full_disk_has_room_for_what_can_take_the_place_of_the_unused(tmp_path: Path) -> None:
    """A cache that became read-only raises an error of this package."""
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=2m none {tmp_path}"
    if shutil.which("unshare") is None or subprocess.run([*inside, mount], capture_output=True, check=False).returncode:
        pytest.skip("this user may mount no disk of its own to fill")
    command = f'{mount} && exec "{sys.executable}" -c "$0" {tmp_path}'
    done = subprocess.run([*inside, command, FULL_DISK], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "StoreError\n"), done.stderr
