"""The sandbox of a worker: limits enforced by the kernel."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from contextlib import suppress
from pathlib import Path

from model_factory.limits import KIB

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_OOM_FIRST = "500"
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

_libc = ctypes.CDLL(None, use_errno=True)

NO_GPUS = {"CUDA_VISIBLE_DEVICES": ""}
"""Environment variables for hiding every GPU from a process."""


def die_with_parent() -> None:
    """Let the kernel end this process when the parent ends."""
    parent = os.getppid()
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def lead_own_group() -> None:
    """Lead a session and a process group, for killing this process together with its children."""
    with suppress(PermissionError):  # the process is a leader already
        os.setsid()


def kill_session(leader: int) -> None:
    """Kill every process of a session, in whatever process group; a child forked during the call may survive."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):  # not a process, or gone
            if int((entry / "stat").read_bytes().rpartition(b")")[2].split()[3]) == leader:
                os.kill(int(entry.name), signal.SIGKILL)


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
    with suppress(OSError):
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


def leave_network() -> bool:
    """Move this process into a network namespace without interfaces; return False if the kernel forbids the move."""
    user, group = os.getuid(), os.getgid()
    if _libc.unshare(_CLONE_NEWNET) == 0:
        return True
    if _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    with suppress(OSError):  # without these files this process sees every file as owned by "nobody"
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    return True


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
