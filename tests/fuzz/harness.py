"""Runs seeded cases in a child process; finds crashes, hangs, damaged memory and unbounded memory.

A case is a function ``case(seed, note)`` at the top of a module below ``tests``. The case draws everything from
``random.Random(seed)``, calls ``note(text)`` before a risky call with what is tried, and returns if all is well. Every
exception that leaves the case is a failure: the case catches the errors that are right answers.

Repeat one case: ``cd tests && python -m fuzz.harness fuzz.ops:case SEED``.
"""

from __future__ import annotations

import ctypes
import faulthandler
import hashlib
import importlib
import mmap
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, NoReturn

from property.amount import CASES, SECONDS, SEED

TESTS = Path(__file__).resolve().parents[1]
MALLOC_DEBUG = "libc_malloc_debug.so.0"
MALLOC_DEBUG_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/lib64")

CASE_SECONDS = 60.0
"""Processor time of one case."""

ROOM_BYTES = 3 << 30
"""Address space that one case may add."""


MESSAGES = 17
"""File descriptor of the child's messages."""

SEED_STEP = 10**9
"""Cases of one value of FUZZ_SEED."""


@dataclass(frozen=True)
class Failure:
    """A case that failed."""

    seed: int
    how: str
    """What happened: a signal, no end, an exception."""
    note: str
    """What the case tried last."""
    output: str
    """End of the child's output."""

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.how}\n  tried: {self.note}\n{self.output}"


def fuzz(
    case: str,
    count: int,
    first: int = 0,
    *,
    seconds: float = float("inf"),
    case_seconds: float = CASE_SECONDS,
    room_bytes: int = ROOM_BYTES,
    most: int = 20,
) -> tuple[int, list[Failure]]:
    """Run cases in child processes; after a crash, continue with the next case in a new child.

    Args:
        case: ``"fuzz.ops:case"``, module and function.
        count: How many cases.
        first: Seed of the first case; the next case has the next seed.
        seconds: No case begins after so many seconds.
        case_seconds: Processor time of one case.
        room_bytes: Address space that one case may add.
        most: Failures before the run ends.

    Returns:
        How many cases were run, and the failures.
    """
    failures: list[Failure] = []
    end, deadline = first + count, time.monotonic() + seconds
    seed = first
    while seed < end and len(failures) < most and time.monotonic() < deadline:
        for done, failure in _run_child(case, seed, end, deadline, (case_seconds, room_bytes)):
            seed = done + 1
            if failure is not None:
                print(failure, flush=True)  # noqa: T201  a run may take an hour
                failures.append(failure)
    return seed - first, failures


def assert_safe(case: str, few: int, *, case_seconds: float = CASE_SECONDS, room_bytes: int = ROOM_BYTES) -> None:
    """Run ``few`` cases, or as many as ``make fuzz`` asks for; assert that none fails."""
    count = sys.maxsize if SECONDS else CASES or few
    limits = {"case_seconds": case_seconds, "room_bytes": room_bytes}
    ran, failures = fuzz(case, count, SEED * SEED_STEP, seconds=SECONDS or float("inf"), **limits)  # type: ignore[arg-type]
    print(f"{case}: {ran} cases from seed {SEED * SEED_STEP}")  # noqa: T201
    assert not failures, "\n\n".join(map(str, failures))


def _run_child(
    case: str, first: int, end: int, deadline: float, limits: tuple[float, int]
) -> Iterator[tuple[int, Failure | None]]:
    """Yield the seed of each finished case, with its failure."""
    command = [sys.executable, "-m", "fuzz.harness", case, str(first), str(end), *map(str, limits)]
    with tempfile.TemporaryFile(buffering=0) as output:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=output, cwd=TESTS, env=child_environment(), start_new_session=True
        )
        assert child.stdout is not None
        seed, note, ended = first, "(the start of the child)", False
        try:
            for kind, text in _messages(child.stdout, limits[0] * 10 + 120):
                if kind == "case":
                    seed, note = int(text), "(nothing yet)"
                elif kind == "note":
                    note = text
                elif kind == "end":
                    ended = True
                    break
                else:
                    how = _how(int(text)) if kind == "died" else text
                    yield seed, None if kind == "passed" else Failure(seed, how, note, _tail(output))
                    if time.monotonic() > deadline:
                        ended = True
                        break
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            code = child.wait()
            child.stdout.close()
        if not ended:
            yield seed, Failure(seed, _how(code), note, _tail(output))


def _tail(output: IO[bytes]) -> str:
    """Return what the child wrote since the last failure."""
    output.seek(0)  # the child's place, too
    text = output.read()[-4000:].decode(errors="replace")
    output.seek(0)
    output.truncate()
    return text


def _messages(stream: IO[bytes], patience: float) -> Iterator[tuple[str, str]]:
    """Yield the child's messages, until the child ends or says nothing for ``patience`` seconds."""
    rest = b""
    while select.select([stream], [], [], patience)[0] and (data := os.read(stream.fileno(), 1 << 16)):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            kind, _, text = line.decode(errors="replace").partition(" ")
            yield kind, text.replace("\\n", "\n")


def _how(code: int) -> str:
    if code == -signal.SIGKILL:
        return "a hang, or killed for memory"
    if code == -signal.SIGXCPU:
        return "a hang: too much processor time"
    return f"the process died of {signal.Signals(-code).name}" if code < 0 else f"the process ended with {code}"


def child_environment() -> dict[str, str]:
    """Return variables for a process in which damage to the heap is fatal, as far as this machine can."""
    debug = next((str(found) for folder in MALLOC_DEBUG_FOLDERS if (found := Path(folder, MALLOC_DEBUG)).exists()), "")
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    return os.environ | {
        "LD_PRELOAD": " ".join(filter(None, [guard_library(), debug])),
        "MALLOC_CHECK_": "3",
        "MALLOC_PERTURB_": "165",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": path.rstrip(os.pathsep),
        "PYTHONWARNINGS": "ignore",
    }


@cache
def guard_library() -> str:
    """Return the path of the compiled ``guard_pages.c``, or "" on a machine without a C compiler."""
    source = Path(__file__).with_name("guard_pages.c")
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux" or os.sysconf("SC_PAGESIZE") != 4096:
        return ""
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir(), f"model-factory-fuzz-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"guard_pages-{digest}.so"
    if not library.exists():
        part = library.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, "-O1", "-fPIC", "-shared", "-o", part, source, "-ldl", "-pthread"], check=True)
        part.rename(library)
    return str(library)


def main(case: str, first: str, end: str = "", seconds: str = str(CASE_SECONDS), room: str = str(ROOM_BYTES)) -> None:
    """Be the child process: import the cases once, and run them in forks, a new fork after a crash."""
    os.dup2(1, MESSAGES)
    os.dup2(2, 1)  # libraries print
    module, _, name = case.partition(":")
    function = getattr(importlib.import_module(module), name)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    last = int(end or int(first) + 1)
    reached = mmap.mmap(-1, 8)  # the seed of the fork's case
    seed = int(first)
    while seed < last:
        child = os.fork()
        if not child:
            _run_cases(function, range(seed, last), reached, (float(seconds), int(room)))
        _, status = os.waitpid(child, 0)
        if not status:
            break
        _say("died", str(os.waitstatus_to_exitcode(status)))
        seed = int.from_bytes(reached[:], "little") + 1
    _say("end", "")


def _run_cases(
    function: Callable[[int, Callable[[str], None]], None], seeds: range, reached: mmap.mmap, limits: tuple[float, int]
) -> NoReturn:
    faulthandler.enable()
    for seed in seeds:
        reached[:] = seed.to_bytes(8, "little")
        _say("case", str(seed))
        _limit(*limits)
        _guard_side(seed)
        try:
            function(seed, lambda text: _say("note", text))
        except BaseException:  # noqa: BLE001  the report of the run has the exception
            _say("failed", traceback.format_exc())
        else:
            _say("passed", str(seed))
    os._exit(0)  # destructors of libraries are of no interest


def _limit(seconds: float, room: int) -> None:
    """Limit the next case."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = int(usage.ru_utime + usage.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, resource.RLIM_INFINITY))
    size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + room, resource.RLIM_INFINITY))


def _guard_side(seed: int) -> None:
    """Have even seeds notice accesses behind tensors, odd seeds accesses before tensors."""
    set_side = getattr(ctypes.CDLL(None), "guard_pages_at_start", None)
    if set_side is not None:
        set_side(seed % 2)


def _say(kind: str, text: str) -> None:
    line = f"{kind} {text}".replace("\n", "\\n") + "\n"
    os.write(MESSAGES, line.encode(errors="backslashreplace"))


if __name__ == "__main__":
    main(*sys.argv[1:])
