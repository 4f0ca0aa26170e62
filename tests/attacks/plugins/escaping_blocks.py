"""Blocks of a worker in wrong hands: a worker that looks at other processes, and leaves processes and memory behind."""

from __future__ import annotations

import ctypes
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn


def layout() -> str:
    """Where the process lies in memory, and the fork server."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return f"{os.getppid()} {next(line.partition('-')[0] for line in maps if 'libtorch_cpu' in line)}"


def above(levels: int) -> int:
    """The fork server, the server."""
    found = os.getpid()
    for _ in range(levels):
        found = int(Path(f"/proc/{found}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[1])
    return found


def inspect() -> str:
    """What can be read of the processes above, and of the worker's own siblings."""
    servers = [above(1), above(2)]
    siblings = Path(f"/proc/{servers[0]}/task/{servers[0]}/children").read_text(encoding="ascii").split()
    said = []
    for process in [*servers, *(int(item) for item in siblings if int(item) != os.getpid())]:
        names = ("environ", "mem", "maps", "auxv", "syscall")
        said += [f"{name} {outcome(lambda p=process, n=name: read_part(p, n))}" for name in names]
        said.append(f"ptrace {outcome(lambda p=process: attach(p))}")
        said.append(f"memory {outcome(lambda p=process: read_memory(p))}")
        said.append(f"descriptor {outcome(lambda p=process: take_descriptor(p))}")
    return ", ".join(said)


def outcome(attempt: Callable[[], object]) -> str:
    try:
        return f"READ {attempt()!r}"
    except OSError as error:
        return type(error).__name__


def read_part(process: int, name: str) -> bytes:
    with Path(f"/proc/{process}/{name}").open("rb") as file:
        return file.read(64) if name != "mem" else b"opened"


def attach(process: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(0x4206, process, None, None) != 0:  # PTRACE_SEIZE
        raise OSError(ctypes.get_errno(), "ptrace")
    return process


def read_memory(process: int) -> bytes:
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(8)
    local = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
    if libc.process_vm_readv(process, local, 1, (ctypes.c_size_t * 2)(id(nn.Module), 8), 1, 0) < 0:
        raise OSError(ctypes.get_errno(), "process_vm_readv")
    return buffer.raw


def take_descriptor(process: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.pidfd_open(process)
    taken = libc.syscall(438, handle, 2, 0)  # pidfd_getfd
    if taken < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return int(taken)


def own_files() -> str:
    """What a worker can read of itself."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = [line for line in status.splitlines() if line.startswith(("Uid", "CapEff", "NoNewPrivs"))]
    links = [Path(f"/proc/self/fd/{name}").readlink() for name in ("0", "1", "2")]
    adjusted = Path("/proc/self/oom_score_adj").read_text(encoding="ascii").strip()
    owner = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
    own = Path(tempfile.mkdtemp()).stat().st_uid == os.getuid()
    return f"{found} {links[0]} oom={adjusted} map={owner} own={own} {Path('/proc/self/fdinfo/2').read_text()[:4]}"


def send_signals() -> str:
    """Signals without effect to the server, to the fork server, and to init."""
    return ", ".join(f"{outcome(lambda p=process: os.kill(p, 0))}" for process in (above(1), above(2), 1))


def leave(notes: str, how: str, then: str) -> None:
    """Leave a process behind that is no child of the worker, and in no session and group of the worker."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            daemon(notes, how)
        os._exit(0)
    os.wait()
    while not Path(notes).exists():
        time.sleep(0.01)
    if then == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif then == "crash":
        ctypes.string_at(0)
    elif then == "fail":
        raise ValueError("fails on purpose")
    elif then == "wait":
        time.sleep(60)


def daemon(notes: str, how: str) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    end = time.monotonic() + 120
    if how == "many":  # generations of sessions, each with children of its own
        for _ in range(5):
            os.fork()
            os.setpgid(0, 0)
    with Path(notes).open("a", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")
    if how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    while time.monotonic() < end:
        if how != "comet":
            time.sleep(1)
        elif os.fork():  # each generation lives for a moment
            os._exit(0)
        else:
            Path(f"{notes}.beat").touch()
    os._exit(0)


def share(notes: str, then: str = "") -> None:
    """Leave shared memory and temporary files behind."""
    libc = ctypes.CDLL(None)
    objects = [libc.shmget(0x5EED, 1 << 20, 0o1600), libc.semget(0x5EED, 1, 0o1600), libc.msgget(0x5EED, 0o1600)]
    Path("/dev/shm/model-factory-left").write_bytes(bytes(1000))  # noqa: S108
    folder = tempfile.mkdtemp()
    Path(folder, "file").write_bytes(bytes(1000))
    Path(notes).write_text(f"{folder} {min(objects)}", encoding="utf-8")
    if then == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


def crash(number: int) -> None:
    if number == signal.SIGABRT:
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        block = libc.malloc(2000)
        ctypes.memset(block, 255, 2100)  # over the end, as a kernel with wrong sizes would
        libc.free(ctypes.c_void_p(block))
        for size in range(1000, 4000, 8):
            libc.malloc(size)
    os.kill(os.getpid(), number)


DEEDS = {deed.__name__: deed for deed in (layout, inspect, own_files, send_signals, leave, share, crash)}


class Does(nn.Module):
    """Does a deed on real tensors, or in the plan with ``planned``; what the deed returns is put into an error."""

    def __init__(self, deed: str, planned: bool = False, **arguments: object) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        if self.layer.weight.is_meta != planned:
            return
        said = DEEDS[deed](**arguments)  # type: ignore[operator]
        if said is not None:
            raise ValueError(f"seen: {said}")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Waits(nn.Module):
    """Waits for a file."""

    def __init__(self, notes: str, go: str) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        if self.layer.weight.is_meta:
            return
        Path(notes).write_text(str(os.getpid()), encoding="ascii")
        while not Path(go).exists():
            time.sleep(0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def register(registry: object) -> None:
    for block in (Does, Waits):
        registry.register_module(f"escape.{block.__name__}", block, signature_policy="runtime_only")  # type: ignore[attr-defined]
