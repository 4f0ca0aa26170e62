"""The folders readable for a build, and the part of their files in the key of the build."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

import torch

from model_factory.environment import library_caches
from model_factory_server.backends.checkpoint_catalogue import checkpoint_files
from model_factory_server.backends.code_files import data_roots
from model_factory_server.settings.server_settings import BackendSettings


class FolderKind(Enum):
    """The kind of a folder: decides about reading, and about the key of a build."""

    SYSTEM = "system"
    """Python, libraries and the system: files may be read, and belong to no key."""
    CODE = "code"
    """The operator's code: the code digest covers code, and every other file read belongs to the key."""
    DATA = "data"
    """Data allowed by the operator: every file read belongs to the key."""


_SYSTEM = ("/proc", "/sys", "/dev", "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/cuda")
_SYSTEM_DATA = ("zoneinfo", "locale", "i18n", "fonts", "fontconfig", "ca-certificates", "mime", "misc", "terminfo")
_SYSTEM_SETTINGS = (
    "localtime timezone resolv.conf hosts host.conf gai.conf nsswitch.conf services protocols ld.so.cache ld.so.conf "
    "ld.so.conf.d ssl pki ca-certificates ca-certificates.conf fonts mime.types os-release lsb-release debian_version "
    "locale.alias locale.conf OpenCL vulkan nvidia"
).split()
_PYTHON_DATA = ("lib", "lib64", "share", "etc", "ssl", "include")


class ReadableFolders:
    """The folders readable for the builds of a server, each with its kind.

    Example:
        >>> folders = ReadableFolders(BackendSettings(allow_files=(Path("/allowed"),)), Path("/store"))
        >>> folders.kind_of("/allowed/table.csv"), folders.kind_of("/root/.ssh/id_rsa")
        (<FolderKind.DATA: 'data'>, None)
    """

    def __init__(self, settings: BackendSettings, store: Path) -> None:
        """Collect the folders of this Python, of the system, and of the operator's settings."""
        self._kinds = _folder_kinds(settings, store)

    def kind_of(self, real_path: str) -> FolderKind | None:
        """Return the kind of the innermost known folder around a path without links; ``None``: unreadable."""
        folder = real_path
        while folder != "/":
            if folder in self._kinds:
                return self._kinds[folder]
            folder = folder.rpartition("/")[0] or "/"
        return self._kinds.get("/")


def temporary_folder() -> str:
    """Return the folder for temporary files; the path of a missing folder if no folder can be written to."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        return "/nonexistent"


def _folder_kinds(settings: BackendSettings, store: Path) -> Mapping[str, FolderKind | None]:
    """Return the kind of each folder; ``None`` for an unreadable folder inside a readable folder."""
    prefixes = {sys.prefix, sys.base_prefix}
    kinds: dict[str, FolderKind | None] = {"/usr/share": FolderKind.DATA, "/dev/shm": None}  # noqa: S108  files in memory
    kinds |= {f"{prefix}/{name}": FolderKind.DATA for prefix in prefixes for name in _PYTHON_DATA}
    system = {*sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages(), *_SYSTEM}
    system |= {f"/usr/share/{name}" for name in _SYSTEM_DATA} | {f"/etc/{name}" for name in _SYSTEM_SETTINGS}
    system |= {f"{prefix}/{name}" for prefix in prefixes for name in ("bin", "pyvenv.cfg")} - prefixes
    inductor = Path(temporary_folder()).glob("torchinductor_*")
    system |= {str(folder) for folder in (*library_caches(), *inductor, Path(torch.__file__).parent, store)}
    kinds |= dict.fromkeys(system - prefixes, FolderKind.SYSTEM)
    kinds |= {str(folder): FolderKind.CODE for folder in data_roots(settings) if str(folder) not in system}
    checkpoints = [file for path in settings.checkpoint_paths.values() for file in checkpoint_files(path)]
    allowed = (Path(torch.hub.get_dir()).parent, *settings.allow_files, *checkpoints)
    data = {str(folder): FolderKind.DATA for folder in allowed}
    return {os.path.realpath(folder): kind for folder, kind in (kinds | data).items()}
