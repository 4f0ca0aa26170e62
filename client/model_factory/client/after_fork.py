"""gRPC in forked processes: where an RPC would hang, the RPC raises at once.

gRPC stops its threads before a fork and starts them again in both processes afterwards, so that a forked process can
use gRPC. Two cases are left in which threads stay away, and an RPC of the child never ends:

- gRPC's fork support is off (``GRPC_ENABLE_FORK_SUPPORT=0``, or a polling strategy without fork support).
- Another thread was inside gRPC during the fork. gRPC then leaves out a part of the work, with which threads are that
  RPCs need. 1.71, 1.75 and 1.78 were tried; with 1.85 RPCs end all the same.

In both cases nothing of gRPC may be touched in the child, not even to try: parent and child share an epoll instance,
and an RPC of the child was seen to cut the parent's connection or to crash the parent. So the names of threads decide,
which Linux lists. Other systems list none, and nothing is checked there.
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
# The threads that RPCs need; names are cut after 15 characters.
_NEEDED = frozenset({"event_engine", "default-executo", "resolver-execut"})
if tuple(int(part) for part in grpc.__version__.split(".")[:2]) < (1, 85):
    _NEEDED |= {"grpc_global_tim"}
_NAMING_SECONDS = 1.0  # a thread names itself once it runs

_REMEDY = (
    "Remedy: start the process by another method than fork, with DataLoader(multiprocessing_context='forkserver') or "
    "multiprocessing.get_context('spawn'); or fork before the first RPC; or make every RPC before the fork, so that "
    "forks need none"
)


class _Holder(Protocol):
    """An object with locks or channels of the process."""

    def forget_parent(self) -> None:
        """Drop locks and channels that the process had before the fork."""
        ...


class _Fork:
    """What the last fork left of gRPC in this process."""

    def __init__(self) -> None:
        self._before: frozenset[str] = frozenset()
        self._awaited: frozenset[str] = frozenset()
        self._lost: frozenset[str] = frozenset()
        self._lock = threading.Lock()
        self.holders: weakref.WeakSet[_Holder] = weakref.WeakSet()

    def begin(self) -> None:
        """Note the threads of gRPC; runs in the parent before each fork."""
        self._before = _grpc_threads()[0]

    def enter_child(self) -> None:
        """Note the threads of gRPC that have to come back; runs in the child after each fork."""
        self._lock = threading.Lock()
        # With the support of gRPC's Python part, the child ends gRPC and starts gRPC anew.
        self._awaited = frozenset() if grpc_fork_support() else self._before
        for holder in list(self.holders):
            holder.forget_parent()

    def check(self) -> None:
        """Raise where an RPC would hang."""
        with self._lock:
            if self._awaited:
                self._lost |= _missing(self._awaited)
                self._awaited = frozenset()
        if self._lost:
            raise ServerError(
                "an RPC in this process would hang: the process was forked from a process that uses gRPC, and threads "
                f"of gRPC ended with the fork ({', '.join(sorted(self._lost))}). {_REMEDY}"
            )


_FORK = _Fork()
os.register_at_fork(before=_FORK.begin, after_in_child=_FORK.enter_child)


def check_fork() -> None:
    """Check that an RPC in this process can end.

    Raises:
        ServerError: the process was forked, and gRPC does not work in the process.
    """
    _FORK.check()


def forget_in_children(holder: _Holder) -> None:
    """Have ``holder.forget_parent()`` called in every forked process, as long as ``holder`` lives."""
    _FORK.holders.add(holder)


def _grpc_threads() -> tuple[frozenset[str], int]:
    """Return the names of gRPC's threads that RPCs need, and the number of all threads; none where there is no list."""
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
    """Return those of the awaited threads that do not come back."""
    deadline = time.monotonic() + _NAMING_SECONDS
    while True:
        names, count = _grpc_threads()
        if awaited <= names or count == 1 or time.monotonic() > deadline:
            return awaited - names
        time.sleep(0.01)
