"""Notes every file read by a job, and refuses files outside of the operator's folders.

Python reports every file opened by Python code to an audit hook. Libraries that open files in native code are wrapped:
safetensors, and torch where torch maps a file or reads an archive by name. Files opened in native code
of any other library are not seen (docs/security.md).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from model_factory.errors import BuildError
from model_factory_server.backends.redaction import without_paths
from model_factory_server.settings.server_settings import BackendSettings
from model_factory_server.worker.files import native_readers
from model_factory_server.worker.files.folders import FolderKind, ReadableFolders, temporary_folder
from model_factory_server.worker.files.read_files import (
    ABSENT,
    CHANGED,
    MAX_FILES,
    FileStamp,
    ReadFile,
    content_digest,
    is_code,
    stamp_of,
)

_METADATA = (".dist-info", ".egg-info")
_IMPORT_SYSTEM = "<frozen importlib"
_OWN_SOURCE = frozenset({__file__, native_readers.__file__})


class ObservedFiles(NamedTuple):
    """The files seen by a guard; picklable, for a fork to send to its parent."""

    read: dict[str, FileStamp | None]
    """Stamp at the first read, by path."""
    refused: list[str]
    """Paths of refused files."""


class FileGuard:
    """The files read by this process since :meth:`watch`; a single guard per process, since audit hooks stay."""

    def __init__(self) -> None:
        self._folders: ReadableFolders | None = None
        self._observed = ObservedFiles({}, [])
        self._created: set[str] = set()
        self._started_ns = 0
        self._temporary = ""

    def watch(self, settings: BackendSettings, store: Path) -> None:
        """Note and refuse files from now on, until the process ends."""
        self._folders = ReadableFolders(settings, store)
        self._started_ns = time.time_ns()
        self._temporary = os.path.realpath(temporary_folder())
        native_readers.wrap_native_readers(self.check_read)
        sys.addaudithook(self._on_event)

    def observed(self) -> ObservedFiles:
        """Return the files read and refused until now."""
        return self._observed

    def add(self, observed: ObservedFiles) -> None:
        """Add the files observed by a fork of this process."""
        for path, stamp in observed.read.items():
            self._observed.read.setdefault(path, stamp)
        self._observed.refused.extend(observed.refused)

    def refusal(self) -> BuildError | None:
        """Return the error of the first refused file, even if the operator's code caught the error."""
        return _refusal(self._observed.refused[0]) if self._observed.refused else None

    def finish(self) -> tuple[ReadFile, ...]:
        """Return every file that was read, with its digest; ``CHANGED`` for a file changed after the first read.

        Raises:
            BuildError: a file was refused, or the job read too many files.
        """
        if (refusal := self.refusal()) is not None:
            raise refusal
        if len(self._observed.read) > MAX_FILES:
            raise BuildError(f"the build reads {len(self._observed.read)} files; at most {MAX_FILES} are allowed")
        files = []
        for path, stamp in self._observed.read.items():
            digest = content_digest(path) if stamp is not None else ABSENT
            is_same = path.endswith("/") or stamp == stamp_of(path)
            files.append(ReadFile(path, digest if is_same else CHANGED))
        return tuple(files)

    def check_read(self, path: Any) -> None:
        """Note a file before the file is read, or refuse the file.

        Raises:
            BuildError: the operator does not allow this file.
        """
        absolute = _absolute(path)
        if _is_importable(absolute):  # most files by far
            return
        real = os.path.realpath(absolute)
        if real in self._created or _is_importable(real):
            return
        kind = self._kind_of(real)
        if kind is FolderKind.SYSTEM or (kind is FolderKind.CODE and is_code(real)):
            return
        if kind is not None:
            source = _source_of(absolute)
            self._note(source, stamp_of(source))
        elif is_code(absolute) and (_is_import_running() or _is_imported(absolute)):
            return  # an editable installation, whose finder looks outside of Python's path
        elif stamp_of(absolute) is not None and not self._is_new_temporary(real):
            self._observed.refused.append(absolute)
            raise _refusal(absolute)

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Handle an audit event of Python."""
        if event == "open":
            self._on_open(*arguments)
        elif event in {"os.listdir", "os.scandir"}:
            self._on_list(arguments[0])
        elif event == "sqlite3.connect":
            self.check_read(arguments[0])

    def _on_open(self, path: Any, _mode: Any, flags: int) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # the descriptor of an open file
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if writes and (flags & os.O_TRUNC or (flags & os.O_CREAT and not _exists(path))):
            self._created.add(os.path.realpath(os.fsdecode(path)))
        elif flags & os.O_ACCMODE != os.O_WRONLY:
            self.check_read(path)

    def _on_list(self, path: Any) -> None:
        """Note a folder whose entries are listed; the import system's own listings do not count."""
        if isinstance(path, int) or _is_import_running():
            return
        absolute = _absolute(path or ".")
        if self._kind_of(os.path.realpath(absolute)) in {FolderKind.CODE, FolderKind.DATA}:
            self._note(f"{absolute.rstrip('/')}/", stamp_of(f"{absolute}/"))

    def _note(self, path: str, stamp: FileStamp | None) -> None:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise BuildError(
                f"the name of a file that the build reads is not UTF-8: {without_paths(path)}. Remedy: rename the file"
            ) from None
        self._observed.read.setdefault(path, stamp)

    def _kind_of(self, real_path: str) -> FolderKind | None:
        return None if self._folders is None else self._folders.kind_of(real_path)

    def _is_new_temporary(self, real_path: str) -> bool:
        """Whether a temporary file was made since the job began: files written by native code are not seen."""
        if not real_path.startswith(f"{self._temporary}/"):
            return False
        status = Path(real_path).stat()
        return status.st_uid == os.getuid() and min(status.st_mtime_ns, status.st_ctime_ns) >= self._started_ns


GUARD = FileGuard()
"""The guard of this process."""


def _refusal(path: str) -> BuildError:
    error = BuildError(
        f"reading {without_paths(path)} is not allowed: the file is outside of the folders that builds may read. "
        "Remedy: have the server's operator put the file below a folder of --allow-files"
    )
    error.__cause__ = PermissionError(f"a build reads {path}")  # the full path is for the server's log alone
    return error


def _exists(path: Any) -> bool:
    return Path(os.fsdecode(path)).exists()


def _absolute(path: Any) -> str:
    """Return an absolute path with links kept: a changed link is a changed content."""
    return os.path.abspath(os.fsdecode(path))  # noqa: PTH100  resolve() would follow the links


def _is_importable(path: str) -> bool:
    """Whether a file below Python's path is code, or metadata of an installed package."""
    for entry in sys.path:
        root = _import_root(entry)
        if path.startswith(root) and (is_code(path) or path[len(root) :].partition("/")[0].endswith(_METADATA)):
            return True
    return False


@functools.cache
def _import_root(entry: str) -> str:
    """Return an entry of Python's path as the prefix of all paths below the entry."""
    return f"{_absolute(entry)}/"


def _is_import_running() -> bool:
    """Whether Python's import system made the current call: the first frame outside of this package's two modules."""
    frame: Any = sys._getframe(2)  # noqa: SLF001  there is no public way
    while frame is not None and frame.f_code.co_filename in _OWN_SOURCE:
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(_IMPORT_SYSTEM)


def _is_imported(path: str) -> bool:
    """Whether a file is the source of an imported module: error messages and recordings quote lines of source."""
    return any(getattr(module, "__file__", None) == path for module in list(sys.modules.values()))


def _source_of(path: str) -> str:
    """Return the source of a file of byte code: an edit of the source leaves the byte code unchanged at first."""
    if path.endswith(".pyc"):
        try:
            source = importlib.util.source_from_cache(path)
        except (ValueError, NotImplementedError):
            return path
        return source if _exists(source) else path
    return path
