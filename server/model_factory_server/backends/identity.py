"""The identity of a backend, part of every build key and of the capabilities of a server."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import model_factory
from model_factory.digest import digest_of
from model_factory.documents import FORMAT, encode_document
from model_factory.identity import BuildIdentity
from model_factory_server.backends.code_files import code_files, digest_of_files, operator_files, stamp_of_files
from model_factory_server.settings.server_settings import BUILTIN, BackendSettings

_SERVER = Path(__file__).parents[1]
_CORE = Path(model_factory.__file__).parent
# Whole packages instead of a list of files: every file that determines weights, descriptors or programs is inside.
_CODE = (
    _SERVER / "backends",
    _SERVER / "constructor",
    _SERVER / "export",
    _SERVER / "worker",
    _CORE / "checkpoint",
    _CORE / "config",
    _CORE / "describe",
    _CORE / "descriptor",
    _CORE / "program",
    _CORE / "source",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendIdentity:
    """Identity of a backend and of the environment of builds."""

    name: str
    """``builtin`` or ``policy_constructor``."""
    version: str
    """Version of the package, for people; empty if unknown."""
    code_digest: str
    """Digest over source files, plug-ins, versions of packages, and the settings that select code."""
    torch_version: str
    """Version of the installed package, build variant included."""
    device_kind: str
    """``cpu`` or ``cuda``: random numbers differ between the two."""
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    """Path of each checkpoint by name. Part of the keys of configs that name a checkpoint."""
    code_stamp: str
    """Digest over sizes and modification times of checkout and plug-ins: workers detect changes. Not part of a key."""

    @property
    def public(self) -> BuildIdentity:
        """The part that manifests contain and requests refer to."""
        return BuildIdentity(
            backend=self.name,
            code_digest=self.code_digest,
            torch_version=self.torch_version,
            device_kind=self.device_kind,
            format_version=FORMAT,
        )


def identify(settings: BackendSettings, device_kind: str) -> BackendIdentity:
    """Identify the backend of the settings; imports neither torch nor plug-ins.

    Raises:
        ServerError: a checkout, plug-in or package of the settings does not exist.
    """
    own = {f"{package.name}/{name}": path for package in _CODE for name, path in code_files(package).items()}
    operators = operator_files(settings)
    stamp = stamp_of_files(operators)  # before the digest, so that a change in between is detected
    version = _version(settings)
    # Plug-ins register in this order, so the order is part of the identity.
    parts: list[Any] = [digest_of_files(own), digest_of_files(operators), list(settings.plugins)]
    # A server must not return a build from a shared store if the server forbids the files of the build.
    parts += [["files", *map(str, settings.allow_files)]] if settings.allow_files else []
    parts += [["packages", _installed()]] if operators else []
    # A server without source sharing must not send source from a shared store.
    parts += ["source is shared"] if settings.share_source else []
    # Without the version of this package: the digest covers the code, and most releases change no model.
    parts += [settings.hub.repository, settings.hub.version] if settings.name == BUILTIN else [version]
    parts += [["hub", settings.hub.repository]] if settings.name != BUILTIN and settings.hub.directory else []
    return BackendIdentity(
        name=settings.name,
        version=version,
        code_digest=digest_of(encode_document(parts)),
        torch_version=metadata.version("torch"),
        device_kind=device_kind,
        checkpoints={name: str(path) for name, path in settings.checkpoint_paths.items()},
        code_stamp=stamp,
    )


def _installed() -> list[list[str]]:
    """Return name and version of every installed package except this project: plug-ins may import any package."""
    found = {(str(item.name).lower(), item.version) for item in metadata.distributions()}
    return sorted([name, version] for name, version in found if not name.replace("_", "-").startswith("model-factory"))


def _version(settings: BackendSettings) -> str:
    if settings.path is None:
        return metadata.version("model-factory-server")
    try:
        project = tomllib.loads((settings.path / "pyproject.toml").read_text(encoding="utf-8"))
        return str(project["project"]["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
