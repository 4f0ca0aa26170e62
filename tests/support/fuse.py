"""A real FUSE file system over a folder, with the locks that a test wants. It speaks to the kernel itself."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

LOCKS = {"of this machine": 0, "no flock": 1 << 10, "none": 1 << 10 | 1 << 1}
"""Flags of the first answer: the kinds of lock that the kernel asks the file system for, which then has none."""

_HEADER = struct.Struct("<IIQQIIIHH")
_MAX_WRITE = 1 << 16
_BIG_WRITES = 1 << 5
_SILENT = {2, 36, 42}  # forget, interrupt, batch_forget


class Fuse:
    """The file system, mounted on a folder as long as its process lives."""

    def __init__(self, place: Path, backing: Path, locks: str) -> None:
        """Mount it; raises OSError where this user or machine cannot."""
        self._place = place
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(place), str(backing), locks], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "mounted\n":
            self.close()
            raise OSError("no FUSE file system can be mounted here")

    def end(self) -> None:
        """Kill the process, and leave the mount without its other side."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def close(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", "-l", str(self._place)], check=False, capture_output=True)
        self.end()


class _Served:
    def __init__(self, device: int, backing: Path, flags: int) -> None:
        self._device, self._flags = device, flags
        self._paths = {1: backing}
        self._ino = {backing.stat().st_ino: 1}
        self._calls: dict[int, Callable[[int, bytes], bytes]] = {
            1: self._lookup,
            3: self._getattr,
            4: self._setattr,
            9: self._mkdir,
            10: self._unlink,
            11: self._rmdir,
            12: lambda node, body: self._rename(node, body, 8),
            13: self._link,
            14: self._open,
            15: self._read,
            16: self._write,
            17: self._statfs,
            18: self._release,
            20: lambda _node, _body: b"",
            26: self._init,
            27: lambda _node, _body: bytes(16),
            28: self._readdir,
            29: lambda _node, _body: b"",
            30: lambda _node, _body: b"",
            35: self._create,
            45: lambda node, body: self._rename(node, body, 16),
        }

    def run(self) -> None:
        while True:
            try:
                request = os.read(self._device, _MAX_WRITE + 4096)
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    return
                continue
            _length, code, unique, node, *_ = _HEADER.unpack_from(request)
            if code in _SILENT:
                continue
            answer, failed = b"", 0
            try:
                answer = self._calls.get(code, _missing)(node, request[_HEADER.size :])
            except OSError as error:
                failed = -(error.errno or errno.EIO)
            with suppress(OSError):
                os.write(self._device, struct.pack("<IiQ", 16 + len(answer), failed, unique) + answer)

    def _init(self, _node: int, _body: bytes) -> bytes:
        fields = (7, 31, _MAX_WRITE, self._flags | _BIG_WRITES, 16, 12, _MAX_WRITE, 1, 0, 0)
        return struct.pack("<IIIIHHIIHH8I", *fields, *bytes(8))

    def _child(self, node: int, name: bytes) -> Path:
        return self._paths[node] / os.fsdecode(name.rstrip(b"\0"))

    def _lookup(self, node: int, body: bytes) -> bytes:
        return self._entry(self._child(node, body))

    def _entry(self, path: Path) -> bytes:
        found = path.lstat()
        node = self._ino.setdefault(found.st_ino, found.st_ino + 1)
        self._paths[node] = path
        return struct.pack("<QQQQII", node, 0, 0, 0, 0, 0) + _attributes(found)

    def _getattr(self, node: int, body: bytes) -> bytes:
        flags, _, handle = struct.unpack_from("<IIQ", body)
        found = os.fstat(handle) if flags & 1 else self._paths[node].lstat()
        return bytes(16) + _attributes(found)

    def _setattr(self, node: int, body: bytes) -> bytes:
        valid, _, handle, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode = struct.unpack_from(
            "<IIQQQQQQIIII", body
        )
        target = Path(f"/proc/self/fd/{handle}") if valid & 64 else self._paths[node]
        found = target.stat()
        if valid & 1:
            target.chmod(mode & 0o7777)
        if valid & 8:
            os.truncate(target, size)
        if valid & (16 | 32 | 128 | 256):
            now, second = time.time_ns(), 10**9
            used = now if valid & 128 else atime * second + atime_ns if valid & 16 else found.st_atime_ns
            changed = now if valid & 256 else mtime * second + mtime_ns if valid & 32 else found.st_mtime_ns
            os.utime(target, ns=(used, changed))
        return bytes(16) + _attributes(target.stat())

    def _mkdir(self, node: int, body: bytes) -> bytes:
        mode, umask = struct.unpack_from("<II", body)
        path = self._child(node, body[8:])
        path.mkdir(mode & 0o7777 & ~umask)
        return self._entry(path)

    def _unlink(self, node: int, body: bytes) -> bytes:
        self._child(node, body).unlink()
        return b""

    def _rmdir(self, node: int, body: bytes) -> bytes:
        self._child(node, body).rmdir()
        return b""

    def _rename(self, node: int, body: bytes, skip: int) -> bytes:
        (folder,) = struct.unpack_from("<Q", body)
        old, new = body[skip:].rstrip(b"\0").split(b"\0")
        self._entry(self._child(node, old).rename(self._child(folder, new)))
        return b""

    def _link(self, node: int, body: bytes) -> bytes:
        (old,) = struct.unpack_from("<Q", body)
        path = self._child(node, body[8:])
        path.hardlink_to(self._paths[old])
        return self._entry(path)

    def _open(self, node: int, body: bytes) -> bytes:
        (flags,) = struct.unpack_from("<I", body)
        handle = os.open(self._paths[node], flags & (os.O_ACCMODE | os.O_TRUNC))
        return struct.pack("<QII", handle, 0, 0)

    def _create(self, node: int, body: bytes) -> bytes:
        flags, mode, umask = struct.unpack_from("<III", body)
        path = self._child(node, body[16:])
        handle = os.open(path, flags & (os.O_ACCMODE | os.O_TRUNC | os.O_EXCL) | os.O_CREAT, mode & 0o7777 & ~umask)
        return self._entry(path) + struct.pack("<QII", handle, 0, 0)

    def _read(self, _node: int, body: bytes) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", body)
        return os.pread(handle, size, offset)

    def _write(self, _node: int, body: bytes) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", body)
        return struct.pack("<II", os.pwrite(handle, body[40 : 40 + size], offset), 0)

    def _release(self, _node: int, body: bytes) -> bytes:
        os.close(struct.unpack_from("<Q", body)[0])
        return b""

    def _statfs(self, _node: int, _body: bytes) -> bytes:
        found = os.statvfs(self._paths[1])
        counts = (found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree)
        return struct.pack("<5Q4I6I", *counts, found.f_bsize, 255, found.f_frsize, 0, *bytes(6))

    def _readdir(self, node: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        answer = b""
        for index, path in enumerate(sorted(self._paths[node].iterdir())[offset:], offset + 1):
            name, found = os.fsencode(path.name), path.lstat()
            item = struct.pack("<QQII", found.st_ino, index, len(name), stat.S_IFMT(found.st_mode) >> 12) + name
            item += bytes(-len(item) % 8)
            if len(answer) + len(item) > size:
                break
            answer += item
        return answer


def _missing(_node: int, _body: bytes) -> bytes:
    """Every call that a store does not make, and locks."""
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def _attributes(found: os.stat_result) -> bytes:
    times = (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)
    wide = (found.st_ino, found.st_size, found.st_blocks, *(time // 10**9 for time in times))
    small = (found.st_mode, found.st_nlink, found.st_uid, found.st_gid, 0, 4096, 0)
    return struct.pack("<6Q10I", *wide, *(time % 10**9 for time in times), *small)


def _main(place: str, backing: str, locks: str) -> None:
    device = os.open("/dev/fuse", os.O_RDWR)
    data = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other".encode()
    if ctypes.CDLL(None, use_errno=True).mount(b"trial", os.fsencode(place), b"fuse.trial", 0, data) != 0:
        raise OSError(ctypes.get_errno(), "mount")
    print("mounted", flush=True)  # noqa: T201  for who waits
    _Served(device, Path(backing), LOCKS[locks]).run()


if __name__ == "__main__":
    _main(*sys.argv[1:])
