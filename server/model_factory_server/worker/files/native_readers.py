"""Report files opened by torch and safetensors in native code, invisible to Python's audit hooks."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

OnRead = Callable[[Any], None]
"""Called with the path of a file before the file is read; may refuse the file by raising an error."""

_NATIVE: Any = torch._C  # noqa: SLF001  torch.package and torch.jit read archives with these classes


def wrap_native_readers(on_read: OnRead) -> None:
    """Wrap the functions of torch and safetensors for opening files by name, and ``os.open``; see the table below."""
    readers: Iterable[tuple[Any, str, int]] = [  # owner, name, and position of the argument `filename`
        (safetensors, "safe_open", 0),
        (safetensors.torch, "safe_open", 0),
        (torch, "from_file", 0),
        (torch.UntypedStorage, "from_file", 0),
        (_NATIVE, "import_ir_module", 1),
    ]
    for owner, name, position in readers:
        wrapped = _reporting(getattr(owner, name), position, on_read)
        setattr(owner, name, staticmethod(wrapped) if isinstance(owner, type) else wrapped)
    _wrap_archive_reader(on_read)
    _wrap_os_open(on_read)


def _reporting(native: Callable[..., Any], position: int, on_read: OnRead) -> Any:
    @functools.wraps(native, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        path = args[position] if len(args) > position else kwargs.get("filename")
        if isinstance(path, str | bytes | os.PathLike):
            on_read(path)
        return native(*args, **kwargs)

    return call


def _wrap_archive_reader(on_read: OnRead) -> None:
    """Wrap torch's reader of archives, for a name or a file; by a subclass, since torch uses ``isinstance``."""
    native = _NATIVE.PyTorchFileReader

    def initialise(self: Any, source: Any) -> None:
        if isinstance(source, str | bytes | os.PathLike):
            on_read(source)
        native.__init__(self, source)

    _NATIVE.PyTorchFileReader = type("PyTorchFileReader", (native,), {"__init__": initialise})


def _wrap_os_open(on_read: OnRead) -> None:
    """Report files opened relative to an open folder: Python's audit event has the relative path only."""
    native = os.open

    @functools.wraps(native)
    def call(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if dir_fd is not None and flags & os.O_ACCMODE != os.O_WRONLY:
            on_read(Path(f"/proc/self/fd/{dir_fd}").readlink() / os.fsdecode(path))
        return native(path, flags, mode, dir_fd=dir_fd)

    os.open = call
