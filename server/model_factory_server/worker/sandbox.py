"""The sandbox of a worker: limits enforced by the kernel."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model_factory.limits import KIB

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_MS_NOSUID_NODEV = 6
_MS_SLAVE_FOR_ALL = 0x4000 | 0x80000
_CLONE_NEWNS = 0x00020000
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_OOM_FIRST = "500"
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

_KEPT_CAPABILITIES = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4  # CHOWN, DAC_OVERRIDE, FOWNER, FSETID
_CAPABILITY_VERSION = 0x20080522
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_RESTRICT_SELF = 446
_LANDLOCK_SCOPE_SIGNAL = 2

_libc = ctypes.CDLL(None, use_errno=True)


class _CapabilityHeader(ctypes.Structure):
    """``struct __user_cap_header_struct``."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilitySet(ctypes.Structure):
    """``struct __user_cap_data_struct``."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


_Capabilities = _CapabilitySet * 2

CRASHES = frozenset(
    (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP, signal.SIGSYS)
)
"""Signals that end a process with an error inside the process: memory may have been overwritten."""

NO_GPUS = {"CUDA_VISIBLE_DEVICES": ""}
"""Environment variables for hiding every GPU from a process."""


def die_with(parent: int) -> None:
    """Let the kernel end this process when the parent ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def forbid_inspection() -> None:
    """Keep other processes of the same user from reading memory, variables and descriptors of this process.

    Holds for later forks too, and ends with ``execve``. The files of this process in ``/proc`` belong to root then.
    """
    _libc.prctl(_PR_SET_DUMPABLE, 0)


@contextmanager
def _own_proc_files() -> Iterator[None]:
    """Let this process write to its own files in ``/proc``; forbid the inspection of the process afterwards."""
    _libc.prctl(_PR_SET_DUMPABLE, 1)
    try:
        yield
    finally:
        forbid_inspection()


def adopt_orphans() -> None:
    """Become the parent of every process below this process whose own parent ends, daemons included."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


HELPERS: set[int] = set()
"""Children of this process that are no orphans, and that :func:`kill_children` leaves alone."""


def kill_children(keeping: Collection[int]) -> bool:
    """Kill the children of this process except ``keeping`` and ``HELPERS``; return whether a child was found.

    Call until no child is found: the children of a killed child become children of a process that adopts orphans.
    """
    lists = [path.read_text(encoding="ascii") for path in Path("/proc/self/task").glob("*/children")]
    children = {int(word) for text in lists for word in text.split()} - set(keeping) - HELPERS
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    for child in children:
        with suppress(ChildProcessError):
            os.waitpid(child, os.WNOHANG)
    return bool(children)


def lead_own_group() -> None:
    """Lead a session and a process group, for killing this process together with its children."""
    with suppress(PermissionError):  # the process is a leader already
        os.setsid()


def limit_resources(*, cpu_seconds: int, file_bytes: int, open_files: int) -> None:
    """Limit this process and its children for good.

    No process dumps core or gains privileges, and the kernel ends these processes first when the node is out of memory.
    """
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_CPU, cpu_seconds, more=1)  # SIGXCPU names the cause, SIGKILL would not
    _lower(resource.RLIMIT_FSIZE, file_bytes)
    _lower(resource.RLIMIT_NOFILE, open_files)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then too large a file is an OSError
    with suppress(OSError), _own_proc_files():
        Path("/proc/self/oom_score_adj").write_text(_OOM_FIRST, encoding="ascii")


def limit_memory(more_bytes: int) -> None:
    """Limit further memory of this process to ``more_bytes``; a lower limit set earlier stays."""
    bounds = resource.getrlimit(resource.RLIMIT_DATA)
    lowest = min([_data_bytes() + more_bytes, *(bound for bound in bounds if bound != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_DATA, (lowest, bounds[1]))


def allowed_memory() -> int:
    """Return the bytes of memory allowed for this process in all."""
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return node_memory() if soft == resource.RLIM_INFINITY else soft


def node_memory() -> int:
    """Return the bytes of memory of this node, or of this container if its limit is lower.

    Example:
        >>> node_memory() > KIB
        True
    """
    bounds = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # another kind of system, or no limit ("max")
            bounds.append(int(Path(name).read_text(encoding="ascii")))
    return min(bounds)


def enter_namespaces(*, network: bool) -> bool:
    """Leave the machine's shared memory, and its network unless ``network``; return False if the kernel forbids it.

    The new namespaces have no network interface. Shared memory, System V objects and files of ``/dev/shm`` alike, ends
    with the last process inside.
    """
    spaces = _CLONE_NEWNS | _CLONE_NEWIPC | (0 if network else _CLONE_NEWNET)
    user, group = os.getuid(), os.getgid()
    if _libc.unshare(spaces) != 0:
        if _libc.unshare(_CLONE_NEWUSER | spaces) != 0:
            return False
        with suppress(OSError), _own_proc_files():  # otherwise this process sees every file as owned by "nobody"
            Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    if _libc.mount(b"none", b"/", None, _MS_SLAVE_FOR_ALL, None) == 0:  # else the machine would get the next mount, too
        _libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", _MS_NOSUID_NODEV, b"mode=1777")
    return True


def drop_privileges() -> None:
    """Give up every capability of root except access to files, and signals to processes outside of this sandbox.

    Kernels before 6.12 cannot forbid signals.
    """
    held = _Capabilities()
    header = _CapabilityHeader(_CAPABILITY_VERSION, 0)
    if _libc.capget(ctypes.byref(header), held) == 0:
        kept = [held[0].permitted & _KEPT_CAPABILITIES, 0]
        _libc.capset(ctypes.byref(header), _Capabilities(*[_CapabilitySet(bits, bits, 0) for bits in kept]))
    rules = (ctypes.c_uint64 * 3)(0, 0, _LANDLOCK_SCOPE_SIGNAL)
    ruleset = _libc.syscall(_LANDLOCK_CREATE_RULESET, rules, ctypes.sizeof(rules), 0)
    if ruleset >= 0:
        _libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0)
        os.close(ruleset)


def _lower(what: int, bound: int, more: int = 0) -> None:
    """Set the soft limit to ``bound`` and the hard limit to ``bound + more``, as far as the old hard limit allows."""
    _, hard = resource.getrlimit(what)
    if hard != resource.RLIM_INFINITY:
        bound, more = min(bound, hard), min(more, hard - min(bound, hard))
    resource.setrlimit(what, (bound, bound + more))


def _data_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * KIB
    return 0
