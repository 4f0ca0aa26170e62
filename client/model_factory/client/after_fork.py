"""gRPC in forked processes: an RPC that would hang raises an error at once.

gRPC stops its threads before a fork and restarts the threads in both processes afterwards, so a forked process can use
gRPC. In two cases some threads stay missing, and an RPC of the child never ends:

- gRPC's fork support is off (``GRPC_ENABLE_FORK_SUPPORT=0``, or a polling strategy without fork support).
- Another thread was inside gRPC during the fork. gRPC then skips the restart of threads that RPCs need. Seen with 1.71,
  1.75 and 1.78; with 1.85 RPCs end in this case, too.

In both cases the child must not touch gRPC at all, not even for a trial: parent and child share an epoll instance, and
an RPC of the child was seen to cut the parent's connection or to crash the parent. Therefore the check compares names
of threads, listed by Linux. On other systems nothing is checked.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from pathlib import Path
from typing import Protocol

import grpc

from model_factory.environment import grpc_fork_support
from model_factory.errors import ServerError

_TASKS = Path("/proc/self/task")
# Threads that RPCs need; Linux cuts names after 15 characters.
_NEEDED = frozenset({"event_engine", "default-executo", "resolver-execut"})
if tuple(int(part) for part in grpc.__version__.split(".")[:2]) < (1, 85):
    _NEEDED |= {"grpc_global_tim"}
_NAMING_SECONDS = 1.0  # a new thread sets its name after its start

_REMEDY = (
    "Remedy: start the process by another method than fork, with DataLoader(multiprocessing_context='forkserver') or "
    "multiprocessing.get_context('spawn'); or fork before the first RPC; or make every RPC before the fork"
)


class _Holder(Protocol):
    """An object with locks or channels of the process."""

    def forget_parent(self) -> None:
        """Drop the locks and channels of the parent process."""
        ...


class _ForkCheck:
    """The threads of gRPC before and after the last fork of this process."""

    def __init__(self) -> None:
        self._before: frozenset[str] = frozenset()
        self._awaited: frozenset[str] = frozenset()
        self._lost: frozenset[str] = frozenset()
        self._lock = threading.Lock()
        self.holders: weakref.WeakSet[_Holder] = weakref.WeakSet()

    def begin(self) -> None:
        """Record the threads of gRPC; runs in the parent before each fork."""
        self._before = _grpc_threads()[0]

    def enter_child(self) -> None:
        """Record the threads of gRPC that must restart; runs in the child after each fork."""
        self._lock = threading.Lock()
        # With fork support in gRPC's Python part, the child shuts gRPC down and starts gRPC anew.
        self._awaited = frozenset() if grpc_fork_support() else self._before
        for holder in list(self.holders):
            holder.forget_parent()

    def check(self) -> None:
        """Raise ``ServerError`` where an RPC would hang."""
        with self._lock:
            if self._awaited:
                self._lost |= _missing(self._awaited)
                self._awaited = frozenset()
        if self._lost:
            raise ServerError(
                "an RPC in this process would hang: the process was forked from a process that uses gRPC, and threads "
                f"of gRPC ended with the fork ({', '.join(sorted(self._lost))}). {_REMEDY}"
            )


_FORK_CHECK = _ForkCheck()
os.register_at_fork(before=_FORK_CHECK.begin, after_in_child=_FORK_CHECK.enter_child)


def check_fork() -> None:
    """Check that RPCs work in this process.

    Raises:
        ServerError: the process was forked, and gRPC does not work in the process.
    """
    _FORK_CHECK.check()


def forget_in_children(holder: _Holder) -> None:
    """Call ``holder.forget_parent()`` in every forked process while ``holder`` lives."""
    _FORK_CHECK.holders.add(holder)


def _grpc_threads() -> tuple[frozenset[str], int]:
    """Return the names of gRPC threads that RPCs need, and the number of all threads; empty and 0 without a list."""
    names: set[str] = set()
    try:
        tasks = os.listdir(_TASKS)  # noqa: PTH208  runs in every fork of the trainer
    except OSError:
        return frozenset(), 0
    for task in tasks:
        try:
            names.add((_TASKS / task / "comm").read_text().strip())
        except OSError:  # the thread has ended
            continue
    return frozenset(names & _NEEDED), len(tasks)


def _missing(awaited: frozenset[str]) -> frozenset[str]:
    """Wait for threads to restart; return the missing threads."""
    deadline = time.monotonic() + _NAMING_SECONDS
    while True:
        names, count = _grpc_threads()
        if awaited <= names or count == 1 or time.monotonic() > deadline:
            return awaited - names
        time.sleep(0.01)
