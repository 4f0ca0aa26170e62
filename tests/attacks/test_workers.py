"""Workers in wrong hands: what a worker sees of other processes, what outlives a build, and what follows a crash."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from model_factory import BuildError, ConfigError, ModelFactoryError, RemoteModelFactory
from model_factory.v1 import build_pb2, service_pb2_grpc
from support.configs import layers
from support.guarded import CANARY, PLUGINS
from support.server import COMMAND, ServerProcess, descendants, running_server

OPTIONS = ("--plugin", "escaping_blocks", "--metrics-listen", "127.0.0.1:0", "--build-timeout", "60")
OTHER_USER = 65533
AS_OTHER_USER = [
    *("setpriv", "--reuid", str(OTHER_USER), "--regid", str(OTHER_USER), "--clear-groups"),
    *("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"),  # for a Python in root's own folder
]
needs_root = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None, reason="needs root, to start a server as another user"
)


def does(deed: str, **arguments: Any) -> dict[str, Any]:
    return {"config": layers({"_type_": "escape.Does", "deed": deed} | arguments)}


def seen(factory: RemoteModelFactory, deed: str, **arguments: Any) -> str:
    with pytest.raises(ConfigError, match="seen: ") as caught:
        factory.build(does(deed, **arguments))
    return str(caught.value).partition("seen: ")[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(PLUGINS), prepend=os.pathsep)
        patch.setenv("CANARY_SECRET", CANARY)
        with running_server(tmp_path_factory.mktemp("escape") / "store", *OPTIONS) as process:
            yield process


@pytest.fixture
def factory(server: ServerProcess, make_remote: Callable[..., RemoteModelFactory]) -> Iterator[RemoteModelFactory]:
    made = make_remote(server.address)
    yield made
    assert server.alive
    assert server.workers() == set()


def alive(processes: list[int]) -> list[int]:
    found = []
    for process in processes:
        try:
            state = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            found.append(process)
    return found


def check_gone(notes: Path) -> None:
    """Nothing lives when the client has its answer; a comet makes no more files."""
    left = [int(word) for word in notes.read_text(encoding="ascii").split()]
    assert left
    assert alive(left) == []
    beat = notes.with_name(f"{notes.name}.beat")
    beat.unlink(missing_ok=True)
    time.sleep(0.3)
    assert not beat.exists()


@pytest.mark.parametrize(
    ("how", "then"),
    [
        *(("sleep", "return"), ("sleep", "fail"), ("sleep", "kill"), ("sleep", "crash")),
        *(("many", "return"), ("many", "kill"), ("stop", "return")),
        *(("comet", "return"), ("comet", "kill"), ("comet", "crash")),
    ],
)
def test_nothing_outlives_a_build(how: str, then: str, factory: RemoteModelFactory, tmp_path: Path) -> None:
    """Processes of a session of their own, after a build that ends well, fails, is killed or crashes."""
    notes = tmp_path / "left"
    config = does("leave", notes=str(notes), how=how, then=then)
    if then == "return":
        assert factory.build(config) is not None
    else:
        with pytest.raises(ModelFactoryError, match=r"on purpose|SIGKILL|SIGSEGV"):
            factory.build(config)
    check_gone(notes)


def test_nothing_of_a_plan_outlives_a_build(factory: RemoteModelFactory, tmp_path: Path) -> None:
    notes = tmp_path / "left"
    assert factory.build(does("leave", planned=True, notes=str(notes), how="sleep", then="return")) is not None
    check_gone(notes)


def test_nothing_outlives_a_build_that_is_given_up(server: ServerProcess, tmp_path: Path) -> None:
    notes = tmp_path / "left"
    factory = RemoteModelFactory(server.address, cache_dir=tmp_path / "cache", timeout=3.0)
    with pytest.raises(ModelFactoryError):
        factory.build(does("leave", notes=str(notes), how="many", then="wait"))
    deadline = time.monotonic() + 5
    while alive([int(word) for word in notes.read_text(encoding="ascii").split()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    check_gone(notes)


@pytest.mark.usefixtures("less_patience")
@pytest.mark.parametrize("killed", ["fork server", "server"])
def test_nothing_outlives_its_servers(
    killed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_remote: Callable[..., RemoteModelFactory]
) -> None:
    """Killed outright, with no time to end anything."""
    monkeypatch.setenv("PYTHONPATH", str(PLUGINS), prepend=os.pathsep)
    server, notes = ServerProcess(tmp_path / "store", *OPTIONS), tmp_path / "left"
    try:
        (fork_server,) = [child for child, _ in descendants(server.pid)]
        with ThreadPoolExecutor(1) as pool:
            config = does("leave", notes=str(notes), how="many", then="wait")
            build = pool.submit(make_remote(server.address).build, config)
            while not notes.exists():
                assert not build.done(), build.result()
                time.sleep(0.02)
            time.sleep(0.5)
            os.kill(fork_server if killed == "fork server" else server.pid, signal.SIGKILL)
            with pytest.raises(ModelFactoryError):
                build.result(60)
        if killed == "fork server":
            assert seen(make_remote(server.address), "layout")
        time.sleep(1)
        check_gone(notes)
    finally:
        server.kill()


@pytest.mark.parametrize("then", ["", "kill"])
def test_no_memory_and_no_file_outlives_a_build(then: str, factory: RemoteModelFactory, tmp_path: Path) -> None:
    notes = tmp_path / "left"
    if then:
        with pytest.raises(BuildError, match="SIGKILL"):
            factory.build(does("share", notes=str(notes), then=then))
    else:
        factory.build(does("share", notes=str(notes)))
    folder, objects = notes.read_text(encoding="utf-8").rsplit(" ", 1)
    assert int(objects) >= 0
    assert not Path(folder).exists()
    assert not Path(folder).parent.exists() or Path(folder).parent == Path(tempfile.gettempdir())
    assert not Path("/dev/shm/model-factory-left").exists()  # noqa: S108
    for kind in ("shm", "sem", "msg"):
        listed = Path(f"/proc/sysvipc/{kind}").read_text(encoding="ascii")
        assert str(0x5EED) not in listed, kind


@contextmanager
def a_build_in_progress(factory: RemoteModelFactory, folder: Path) -> Iterator[None]:
    """Have a build wait in a worker; afterwards the build goes on, and has to end well."""
    notes, go = folder / "begun", folder / "go"
    with ThreadPoolExecutor(1) as pool:
        config = layers({"_type_": "escape.Waits", "notes": str(notes), "go": str(go)})
        build = pool.submit(factory.build, {"config": config})
        while not notes.exists():
            assert not build.done(), build.result()
            time.sleep(0.02)
        try:
            yield
        finally:
            go.touch()
        assert build.result(60) is not None


def test_other_processes_are_closed(factory: RemoteModelFactory, server: ServerProcess, tmp_path: Path) -> None:
    """The server with its secrets, the fork server, and the worker of another build."""
    with a_build_in_progress(factory, tmp_path):
        said = seen(factory, "inspect")
    assert said.count("environ") == 3
    assert "READ" not in said, said
    assert CANARY not in server.log


def test_no_signal_reaches_another_process(factory: RemoteModelFactory) -> None:
    said = seen(factory, "send_signals")
    if "PermissionError" not in said:
        pytest.skip("this kernel cannot keep signals inside of a sandbox: Linux 6.12 can")
    assert "READ" not in said


@needs_root
def test_a_server_of_an_ordinary_user(tmp_path: Path, make_remote: Callable[..., RemoteModelFactory]) -> None:
    """Without root's rights the files of a closed process belong to root; a worker can still do everything needed."""
    folder = Path(tempfile.mkdtemp(prefix="model-factory-test-"))
    os.chown(folder, OTHER_USER, OTHER_USER)
    variables = os.environ | {"CANARY_SECRET": CANARY, "HOME": str(folder)}
    variables["PYTHONPATH"] = f"{PLUGINS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    command = [*AS_OTHER_USER, str(COMMAND), "serve", "--listen", "127.0.0.1:0", "--store", str(folder / "store")]
    with (tmp_path / "log").open("wb") as log:
        started = subprocess.Popen([*command, *OPTIONS], stdout=subprocess.PIPE, stderr=log, text=True, env=variables)
    try:
        assert started.stdout is not None
        factory = make_remote(started.stdout.readline().split()[-1])
        assert "READ" not in seen(factory, "inspect")
        files = seen(factory, "own_files")
        assert f"{OTHER_USER}" in files
        for expected in ("/dev/null", "oom=500", "own=True", "pos:"):
            assert expected in files
        children = [child for child, _ in descendants(started.pid)]
        assert children
        for process in (started.pid, *children):
            assert outside(process) == ["PermissionError"] * 3
        assert "can reach the network" not in (tmp_path / "log").read_text(encoding="utf-8")
        page = re.findall(r"^(process_\w+) ", metrics_of((tmp_path / "log").read_text(encoding="utf-8")), re.MULTILINE)
        assert {"process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total"} <= set(page)
    finally:
        started.terminate()
        assert started.wait(60) == 0
        started.stdout.close()  # type: ignore[union-attr]
        shutil.rmtree(folder)


def metrics_of(log: str) -> str:
    (url,) = re.findall(r'metrics on (http://[^\s"]+)', log)
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())


def outside(process: int) -> list[str]:
    """What another process of the same user can read, for example a plug-in of another server."""
    code = (
        f"for name in ('environ', 'maps', 'mem'):\n    try:\n        open('/proc/{process}/' + name, 'rb').read(9)\n"
        "    except OSError as error:\n        print(type(error).__name__)\n    else:\n        print('READ')\n"
    )
    said = subprocess.run([*AS_OTHER_USER, sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return said.stdout.split()


@pytest.mark.parametrize(
    ("number", "planned"), [(signal.SIGSEGV, False), (signal.SIGABRT, False), (signal.SIGBUS, True)]
)
def test_a_crash_changes_the_layout(
    planned: bool, number: int, factory: RemoteModelFactory, server: ServerProcess, tmp_path: Path
) -> None:
    """The builds in progress end well; the next build comes from another process, with another layout of memory."""
    before = seen(factory, "layout")
    with a_build_in_progress(factory, tmp_path):
        with pytest.raises(BuildError, match=f"ended by {signal.Signals(number).name}"):
            factory.build(does("crash", number=int(number), planned=planned))
        after = seen(factory, "layout")
    assert set(before.split()).isdisjoint(after.split())
    deadline = time.monotonic() + 10
    while len(descendants(server.pid)) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(descendants(server.pid)) == 1, "the old fork server ends with its last worker"


def test_a_build_that_is_killed_changes_nothing(factory: RemoteModelFactory) -> None:
    before = seen(factory, "layout")
    with pytest.raises(BuildError, match="SIGKILL"):
        factory.build(does("crash", number=int(signal.SIGKILL)))
    assert seen(factory, "layout") == before


FAR = 2**63 - 1
POOL = {"_type_": "nn.MaxPool1d", "kernel_size": 17, "stride": FAR, "padding": 8}
EXAMPLE = {"signature": {"x": {"shape": [1, 4, 32]}}}


def nested(layer: dict[str, Any]) -> dict[str, Any]:
    return {"_type_": "nn.Sequential", "_args_": [layer]}


def op(name: str, *args: Any) -> dict[str, Any]:
    steps = [{"call": f"op:{name}", "args": list(args), "out": "y"}]
    graph = {"inputs": ["x"], "modules": {}, "steps": steps, "outputs": ["$y"]}
    return {"schema_version": 1, "model": {"graph": graph}}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (layers(POOL) | EXAMPLE, f"{FAR} is too large"),
        (layers(nested(nested(POOL))) | EXAMPLE, f"{FAR} is too large"),
        (layers(nested(POOL | {"stride": 0})) | EXAMPLE, "0: stride of a MaxPool1d is 0"),
        (layers(POOL | {"stride": 1, "dilation": -(2**31)}) | EXAMPLE, "dilation of a MaxPool1d is -2147483648"),
        (layers({"_type_": "nn.Identity"}) | {"signature": {"x": {"shape": [2**40]}}}, "more than 67108864 elements"),
        (layers({"_type_": "nn.Identity"}) | {"signature": {"x": FAR}}, "is too large"),
        (op("max_pool1d", "$x", 17, FAR, 8) | EXAMPLE, "is too large"),
    ],
    ids=["direct", "nested", "nested zero", "negative", "example", "constant", "op"],
)  # fmt: skip
def test_no_kernel_sees_hostile_numbers(config: dict[str, Any], words: str, server: ServerProcess) -> None:
    """Sent without the checks of a client; on the old server the first ones overwrote the worker's heap."""
    component = build_pb2.Component(name="m", config_json=json.dumps(config).encode())
    request, before = build_pb2.BuildModelsRequest(components=[component]), descendants(server.pid)
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        list(service_pb2_grpc.ModelFactoryServiceStub(channel).BuildModels(request, timeout=60))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert words in (caught.value.details() or "")
    assert descendants(server.pid) == before
