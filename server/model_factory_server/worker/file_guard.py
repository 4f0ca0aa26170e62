"""Notes which files a job reads, and refuses files outside of what the operator allows.

Python reports every file that Python code opens to an audit hook. Libraries that open files by themselves are wrapped:
safetensors, and torch where torch maps a file or reads an archive by name. A library of another kind that opens a file
in native code is not seen (docs/security.md).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import site
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from model_factory.environment import library_caches
from model_factory.errors import BuildError
from model_factory_server.backends.code_files import data_roots
from model_factory_server.backends.redaction import without_paths
from model_factory_server.settings.server_settings import BackendSettings
from model_factory_server.worker.read_files import (
    ABSENT,
    CHANGED,
    MAX_FILES,
    ReadFile,
    Signature,
    content_digest,
    is_code,
    signature_of,
)


class Room(Enum):
    """What a folder is to a build."""

    QUIET = "quiet"
    """Python, libraries and the system: allowed, and in no key."""
    CODE = "code"
    """Code of the operator's, which the code digest covers; other files there are noted."""
    DATA = "data"
    """Files that the operator allows: all of them are noted."""


_SYSTEM = ("/proc", "/sys", "/dev", "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/cuda")
_SYSTEM_DATA = ("zoneinfo", "locale", "i18n", "fonts", "fontconfig", "ca-certificates", "mime", "misc", "terminfo")
_SYSTEM_SETTINGS = (
    "localtime timezone resolv.conf hosts host.conf gai.conf nsswitch.conf services protocols ld.so.cache ld.so.conf "
    "ld.so.conf.d ssl pki ca-certificates ca-certificates.conf fonts mime.types os-release lsb-release debian_version "
    "locale.alias locale.conf OpenCL vulkan nvidia"
).split()
_NATIVE: Any = torch._C  # noqa: SLF001  where torch.package and torch.jit read archives
_METADATA = (".dist-info", ".egg-info")
_PYTHON_DATA = ("lib", "lib64", "share", "etc", "ssl", "include")
_IMPORTING = "<frozen importlib"


Seen = tuple[dict[str, Signature | None], list[str]]
"""Paths that were read, with what tells whether they have changed since, and paths that were refused."""


class FileGuard:
    """What a process read since :meth:`watch` was called. There is one for each process, since audit hooks stay."""

    def __init__(self) -> None:
        self._rooms: Mapping[str, Room | None] = {}
        self._seen: dict[str, Signature | None] = {}
        self._own: set[str] = set()
        self._refused: list[str] = []
        self._started_ns = 0
        self._temporary = ""

    def watch(self, settings: BackendSettings, store: Path) -> None:
        """Note and refuse from now on, until the process ends."""
        self._rooms = _rooms(settings, store)
        self._started_ns = time.time_ns()
        self._temporary = os.path.realpath(_temporary_folder())
        _wrap_native_readers(self.reads)
        sys.addaudithook(self._audit)

    def seen(self) -> Seen:
        """What was read and what was refused so far; picklable, for a fork to hand to its parent."""
        return self._seen, self._refused

    def add(self, seen: Seen) -> None:
        """Add what a fork of this process has seen."""
        for path, signature in seen[0].items():
            self._seen.setdefault(path, signature)
        self._refused += seen[1]

    def refusal(self) -> BuildError | None:
        """Return why a file was refused, also where the operator's code went on without the file; else None."""
        return _refusal(self._refused[0]) if self._refused else None

    def finish(self) -> tuple[ReadFile, ...]:
        """Return every file that was read, with the digest of what was read; ``CHANGED`` where that is not known.

        Raises:
            BuildError: a file was refused, or there are too many.
        """
        if (refusal := self.refusal()) is not None:
            raise refusal
        if len(self._seen) > MAX_FILES:
            raise BuildError(f"the build reads {len(self._seen)} files; at most {MAX_FILES} are allowed")
        files = []
        for path, signature in self._seen.items():
            digest = content_digest(path) if signature is not None else ABSENT
            is_same = path.endswith("/") or signature == signature_of(path)
            files.append(ReadFile(path, digest if is_same else CHANGED))
        return tuple(files)

    def reads(self, path: Any) -> None:
        """Note that a file is read, or refuse.

        Raises:
            BuildError: the operator does not allow the file to be read.
        """
        absolute = _absolute(path)
        if _is_importable(absolute):  # most files by far
            return
        real = os.path.realpath(absolute)
        if real in self._own or _is_importable(real):
            return
        room = self._room(real)
        if room is Room.QUIET or (room is Room.CODE and is_code(real)):
            return
        if room is not None:
            source = _source_of(absolute)
            self._note(source, signature_of(source))
        elif is_code(absolute) and (_is_importing() or _is_imported(absolute)):
            return  # from where a finder of an editable installation looks, which is not on Python's path
        elif signature_of(absolute) is not None and not self._is_new_temporary(real):
            self._refused.append(absolute)
            raise _refusal(absolute)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            self._opens(*arguments)
        elif event in {"os.listdir", "os.scandir"}:
            self._lists(arguments[0])
        elif event == "sqlite3.connect":
            self.reads(arguments[0])

    def _opens(self, path: Any, _mode: Any, flags: int) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor of a file that is open already
        if flags & os.O_ACCMODE != os.O_RDONLY and (flags & os.O_TRUNC or (flags & os.O_CREAT and not _exists(path))):
            self._own.add(os.path.realpath(os.fsdecode(path)))
        elif flags & os.O_ACCMODE != os.O_WRONLY:
            self.reads(path)

    def _lists(self, path: Any) -> None:
        """Note that a folder's entries are read, where they are data and not what Python looks for when importing."""
        if isinstance(path, int) or _is_importing():
            return
        absolute = _absolute(path or ".")
        if self._room(os.path.realpath(absolute)) in {Room.CODE, Room.DATA}:
            self._note(f"{absolute.rstrip('/')}/", signature_of(f"{absolute}/"))

    def _note(self, path: str, signature: Signature | None) -> None:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise BuildError(f"the name of a file that a build reads is not UTF-8: {_shown(path)}") from None
        self._seen.setdefault(path, signature)

    def _room(self, real: str) -> Room | None:
        """Return what the innermost known folder around a path is."""
        at = real
        while at != "/":
            if at in self._rooms:
                return self._rooms[at]
            at = at.rpartition("/")[0] or "/"
        return self._rooms.get("/")

    def _is_new_temporary(self, real: str) -> bool:
        """Whether a file was made since the job began, where temporary files are: native code writes files unseen."""
        if not real.startswith(f"{self._temporary}/"):
            return False
        found = Path(real).stat()
        return found.st_uid == os.getuid() and min(found.st_mtime_ns, found.st_ctime_ns) >= self._started_ns


GUARD = FileGuard()
"""The guard of this process."""


def _rooms(settings: BackendSettings, store: Path) -> dict[str, Room | None]:
    """Return the folders that are something to a build; None for a folder inside of one that builds may not read."""
    prefixes = {sys.prefix, sys.base_prefix}
    rooms: dict[str, Room | None] = {"/usr/share": Room.DATA, "/dev/shm": None}  # noqa: S108  files in memory
    rooms |= {f"{prefix}/{name}": Room.DATA for prefix in prefixes for name in _PYTHON_DATA}
    quiet = {*sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages(), *_SYSTEM}
    quiet |= {f"/usr/share/{name}" for name in _SYSTEM_DATA} | {f"/etc/{name}" for name in _SYSTEM_SETTINGS}
    quiet |= {f"{prefix}/{name}" for prefix in prefixes for name in ("bin", "pyvenv.cfg")} - prefixes
    inductor = Path(_temporary_folder()).glob("torchinductor_*")
    quiet |= {str(place) for place in (*library_caches(), *inductor, Path(torch.__file__).parent, store)}
    rooms |= dict.fromkeys(quiet - prefixes, Room.QUIET)
    rooms |= {str(place): Room.CODE for place in data_roots(settings) if str(place) not in quiet}
    data = {str(place): Room.DATA for place in (Path(torch.hub.get_dir()).parent, *settings.allow_files)}
    return {os.path.realpath(place): room for place, room in (rooms | data).items()}


def _temporary_folder() -> str:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:  # nothing can be written to here, so nothing is read that was
        return "/nonexistent"


def _refusal(path: str) -> BuildError:
    error = BuildError(
        f"reading {_shown(path)} is not allowed: the file is outside of the folders that builds may read. Remedy: have "
        "the server's operator put the file below a folder of --allow-files"
    )
    error.__cause__ = PermissionError(f"a build reads {path}")  # for the server's log alone
    return error


def _exists(path: Any) -> bool:
    return Path(os.fsdecode(path)).exists()


def _absolute(path: Any) -> str:
    """A path from the root, with links as they are: another target of a link is another content."""
    return os.path.abspath(os.fsdecode(path))  # noqa: PTH100  resolve() would follow the links


def _shown(path: str) -> str:
    """A path as a client may see the path: the last part alone."""
    return without_paths(path)


def _is_importable(path: str) -> bool:
    """Whether a file is code, or says which version of code is installed, at a place that Python imports from."""
    for entry in sys.path:
        root = _root(entry)
        if path.startswith(root) and (is_code(path) or path[len(root) :].partition("/")[0].endswith(_METADATA)):
            return True
    return False


@functools.cache
def _root(entry: str) -> str:
    """An entry of Python's path as what the paths below the entry begin with."""
    return f"{_absolute(entry)}/"


def _is_importing() -> bool:
    """Whether Python's import system asks, two calls below the one that reports."""
    frame: Any = sys._getframe(2)  # noqa: SLF001  there is no other way to tell
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(_IMPORTING)


def _is_imported(path: str) -> bool:
    """Whether a file is the source of an imported module: error messages and recordings quote lines of source."""
    return any(getattr(module, "__file__", None) == path for module in list(sys.modules.values()))


def _source_of(path: str) -> str:
    """Return the source of a file of byte code: whoever changes the source leaves the byte code as it was."""
    if path.endswith(".pyc"):
        try:
            source = importlib.util.source_from_cache(path)
        except (ValueError, NotImplementedError):
            return path
        return source if _exists(source) else path
    return path


def _wrap_native_readers(reads: Callable[[Any], None]) -> None:
    """Report files that are opened in native code by what torch and safetensors offer for that."""
    places: Iterable[tuple[Any, str, int, str]] = [
        (safetensors, "safe_open", 0, "filename"),
        (safetensors.torch, "safe_open", 0, "filename"),
        (torch, "from_file", 0, "filename"),
        (torch.UntypedStorage, "from_file", 0, "filename"),
        (_NATIVE, "import_ir_module", 1, "filename"),
    ]
    for owner, name, position, keyword in places:
        call = _reporting(getattr(owner, name), position, keyword, reads)
        setattr(owner, name, staticmethod(call) if isinstance(owner, type) else call)
    native = _NATIVE.PyTorchFileReader

    def read(self: Any, source: Any) -> None:
        if isinstance(source, str | bytes | os.PathLike):
            reads(source)
        native.__init__(self, source)

    # Torch's reader of archives takes a name or a file. A class still, since torch asks for instances of it.
    _NATIVE.PyTorchFileReader = type("PyTorchFileReader", (native,), {"__init__": read})
    _wrap_relative_opens(reads)


def _reporting(native: Callable[..., Any], position: int, keyword: str, reads: Callable[[Any], None]) -> Any:
    @functools.wraps(native, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        path = args[position] if len(args) > position else kwargs.get(keyword)
        if isinstance(path, str | bytes | os.PathLike):
            reads(path)
        return native(*args, **kwargs)

    return call


def _wrap_relative_opens(reads: Callable[[Any], None]) -> None:
    """Report files that are opened relative to an open folder by their full path; Python reports the rest alone."""
    native = os.open

    @functools.wraps(native)
    def call(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if dir_fd is not None and flags & os.O_ACCMODE != os.O_WRONLY:
            reads(Path(f"/proc/self/fd/{dir_fd}").readlink() / os.fsdecode(path))
        return native(path, flags, mode, dir_fd=dir_fd)

    os.open = call
