"""What a backend is: part of every key, and of a server's capabilities."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
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
# Whole packages, so that no list of files has to follow the code: every file that decides about weights, descriptors or
# programs lies in one of these packages.
_CODE = (
    _SERVER / "backends",
    _SERVER / "constructor",
    _SERVER / "export",
    _SERVER / "worker",
    _CORE / "config",
    _CORE / "descriptor",
    _CORE / "program",
    _CORE / "source",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendIdentity:
    """What builds."""

    name: str
    """Of the backend."""
    version: str
    """As its package says, for people; empty where it says nothing."""
    code_digest: str
    """Over its source files, the operator's plug-ins and the versions of packages included, and over the settings that
    choose among them."""
    torch_version: str
    """As the installed package says, build variant included."""
    device_kind: str
    """``cpu`` or ``cuda``: random numbers differ between the two."""
    code_stamp: str
    """Over sizes and times of change of the operator's files: by it workers notice changes. In no key."""

    @property
    def public(self) -> BuildIdentity:
        """What manifests carry, and requests refer to."""
        return BuildIdentity(
            backend=self.name,
            code_digest=self.code_digest,
            torch_version=self.torch_version,
            device_kind=self.device_kind,
            format_version=FORMAT,
        )


def identify(settings: BackendSettings, device_kind: str) -> BackendIdentity:
    """Identify the backend of these settings; imports neither torch nor anything of the operator's.

    Raises:
        ServerError: something is not where the settings say.
    """
    own = {f"{package.name}/{name}": path for package in _CODE for name, path in code_files(package).items()}
    operators = operator_files(settings)
    stamp = stamp_of_files(operators)  # before their digest: a change in between is noticed
    version = _version(settings)
    # The order of plug-ins counts: it is the order in which they register.
    parts: list[Any] = [digest_of_files(own), digest_of_files(operators), list(settings.plugins)]
    # A build that one server refuses for the files that it reads is not answered from the store of another server.
    parts += [["files", *map(str, settings.allow_files)]] if settings.allow_files else []
    parts += [["packages", _installed()]] if operators else []
    parts += ["source is shared"] if settings.share_source else []  # what one server may hand out, another may not
    # Not this package's own version: most changes to it change no model.
    parts += [settings.hub.repository, settings.hub.version] if settings.name == BUILTIN else [version]
    return BackendIdentity(
        name=settings.name,
        version=version,
        code_digest=digest_of(encode_document(parts)),
        torch_version=metadata.version("torch"),
        device_kind=device_kind,
        code_stamp=stamp,
    )


def _installed() -> list[list[str]]:
    """Name and version of every installed package, which an operator's code may import, but for this project's own."""
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
