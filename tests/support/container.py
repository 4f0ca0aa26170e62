"""Runs a command the way an engine runs a container of docker/: where this user may, without an engine.

That is a mount namespace of its own in which the root is read-only, the container's user without capabilities or new
privileges, and ``unshare`` refused, as the usual engines' default seccomp profile refuses it. The network is this
machine's.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_UNSHARE = {"x86_64": 272, "aarch64": 97}  # the call's number
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050001  # with EPERM
_ASIDE = Path("/mnt")
_KERNELS_OWN = ("/proc", "/sys", "/dev")
_NOT_HERE = "this needs root, unshare and setpriv, and a system that gives out mount namespaces"


def why_not() -> str:
    """Why this user cannot have a container here; empty if there can be one."""
    tools = [shutil.which(name) for name in ("unshare", "setpriv", "mount")]
    if os.geteuid() != 0 or not all(tools) or platform.machine() not in _UNSHARE:
        return _NOT_HERE
    tried = subprocess.run(["unshare", "--mount", "mount", "--make-rprivate", "/"], capture_output=True, check=False)
    return f"{_NOT_HERE}: {tried.stderr.decode().strip()}" if tried.returncode else ""


def contained(
    command: Sequence[str | Path], *, user: str, writable: Mapping[str, Path], read_only: Mapping[str, Path]
) -> list[str]:
    """Return what runs ``command`` as ``user`` in such a container; its process is the command's own.

    ``writable`` and ``read_only`` are places inside and what is mounted there; the first are given to the user. The
    project and the Python that runs this stay where they are, also if their folders are closed to others.
    """
    for folder in writable.values():
        os.chown(folder, int(user), int(user))
    places = [*((place, str(path), True) for place, path in writable.items()),
              *((place, str(path), False) for place, path in read_only.items())]  # fmt: skip
    given = {"user": user, "places": places, "command": [str(item) for item in command]}
    return ["unshare", "--mount", sys.executable, str(Path(__file__)), json.dumps(given)]


def check_contained(process: int, user: str, writable: set[str]) -> None:
    """Assert that a process has that user and no rights, and nothing but ``writable`` that it could write to."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    assert fields["Uid"].split() == fields["Gid"].split() == [user] * 4
    assert not fields["Groups"].split()
    assert all(int(fields[name], 16) == 0 for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"))
    assert fields["NoNewPrivs"].strip() == "1"
    mounts = [line.split() for line in Path(f"/proc/{process}/mountinfo").read_text(encoding="utf-8").splitlines()]
    assert {"/", *writable} <= {item[4] for item in mounts}
    for point, options in ((item[4], item[5].split(",")) for item in mounts):
        assert point in writable or "ro" in options or _is_kernels(point), point


def _main(user: str, places: list[tuple[str, str, bool]], command: list[str]) -> None:
    """Make the container around this process, and become the command."""
    kept = {os.path.realpath(path) for path in (Path(__file__).parents[2], sys.prefix, sys.base_prefix)}
    places = [*places, *((path, path, False) for path in kept if not path.startswith("/usr"))]
    places.sort(key=lambda item: item[0].count("/"))  # what is inside another place comes after it
    _mount("--make-rprivate", "/")
    _mount("-t", "tmpfs", "-o", "mode=0755", "aside", str(_ASIDE))
    for number, (_, path, _) in enumerate(places):
        _make(_ASIDE / str(number), like=Path(path))
        _mount("--rbind", path, str(_ASIDE / str(number)))
    covered = set()
    for number, (place, _, _) in enumerate(places):
        top = str(Path(*Path(place).parts[:2]))
        if top not in covered and top != place:  # nothing is made in the machine's own folders
            _mount("-t", "tmpfs", "-o", "mode=0755", "cover", top)
        covered.add(top)
        _make(Path(place), like=_ASIDE / str(number))
        _mount("--rbind", str(_ASIDE / str(number)), place)
    subprocess.run(["umount", "--recursive", "--lazy", str(_ASIDE)], check=True)
    writable = {place for place, _, is_writable in places if is_writable}
    for point in _mount_points():
        if point not in writable and Path(point).exists() and not _is_kernels(point):
            _mount("-o", "remount,bind,ro", point)
    _refuse_unshare()
    nobody = ["--reuid", user, "--regid", user, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
    os.chdir("/")
    os.execvp("setpriv", ["setpriv", *nobody, "--no-new-privs", *command])  # noqa: S606


def _make(place: Path, like: Path) -> None:
    """Make a folder or file to mount on, if there is none."""
    if like.is_dir():
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()


def _mount_points() -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]


def _is_kernels(point: str) -> bool:
    return any(point == item or point.startswith(f"{item}/") for item in _KERNELS_OWN)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _refuse_unshare() -> None:
    """Have the kernel answer ``unshare`` with EPERM, in this process and all that come of it."""
    steps = [
        (0x20, 0, 0, 0),  # load the call's number
        (0x15, 0, 1, _UNSHARE[platform.machine()]),  # is it this one?
        (0x06, 0, 0, _REFUSE),
        (0x06, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program) == 0, os.strerror(ctypes.get_errno())


if __name__ == "__main__":
    _main(**json.loads(sys.argv[1]))
