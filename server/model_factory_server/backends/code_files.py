"""The files that determine the results of a backend: checkout, plug-ins, hub repository. Nothing is imported here."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from blake3 import blake3

from model_factory.digest import digest_of_file
from model_factory.errors import ServerError
from model_factory_server.export.source.bundling import Root
from model_factory_server.settings.server_settings import BackendSettings, HubSettings

CHECKOUT_PACKAGE = "model_constructor"
"""Name of the package in a policy_constructor checkout."""

MAX_CODE_FILES = 50_000
"""Files under a root."""

PLUGIN_GROUP = "model_factory.plugins"
"""Entry point group of plug-ins in installed packages: ``my_blocks = "my_blocks.registration"``."""

_NEVER_IMPORTED = frozenset(
    {"torch", "numpy", "yaml", "model_factory", "model_factory_server"} | sys.stdlib_module_names
)
_MODULE_SUFFIXES = frozenset({".py", ".so", ".pyd"})
_VENV_MARK = "pyvenv.cfg"
_HUBCONF = "hubconf.py"
_PACKAGE = Path(__file__).parents[1]


def with_installed_plugins(plugins: Sequence[str]) -> tuple[str, ...]:
    """Return the plug-ins of installed packages, sorted, followed by ``plugins``, without duplicates.

    Example:
        >>> with_installed_plugins(["my_blocks", "my_blocks"])[-1]
        'my_blocks'
    """
    installed = sorted(entry.value for entry in metadata.entry_points(group=PLUGIN_GROUP))
    return tuple(dict.fromkeys([*installed, *plugins]))


def operator_files(settings: BackendSettings) -> dict[str, Path]:
    """Return every file that a backend runs or loads, by a name that is equal on all machines.

    Raises:
        ServerError: a checkout, plug-in or package of the settings does not exist.
    """
    if settings.path is not None:
        files = _named("checkout", _checkout_files(settings.path)) | _named("hub", _hub_code(settings.hub))
    else:
        files = _named("hub", _hub_files(settings.hub))
    for plugin in settings.plugins:
        files |= _named(f"plug-in {plugin}", _plugin_files(plugin))
    for module in settings.imports:
        if module.partition(".")[0] in _NEVER_IMPORTED:
            raise ServerError(
                f"--allow-import {module}: a config could then call every function below {module!r}, also to load code "
                "or write files. Remedy: name a package that contains blocks only"
            )
        files |= _named(f"import {module}", _plugin_files(module))
    return files


def operator_roots(settings: BackendSettings) -> tuple[Root, ...]:
    """Return the folders whose code can be sent as source: checkout, plug-ins, hub repository, block library."""
    roots = [] if settings.path is None else [Root(settings.path.resolve())]
    for plugin in settings.plugins:
        top = plugin.partition(".")[0]
        spec = importlib.util.find_spec(top)
        assert spec is not None
        places = [*(spec.submodule_search_locations or ())] or [spec.origin or ""]
        roots += [Root(Path(place).parent, frozenset({top})) for place in places]
    if (repository := local_hub_repository(settings.hub)) is not None:
        roots.append(Root(repository))
    return (*roots, Root(_PACKAGE.parent, frozenset({_PACKAGE.name})))


def data_roots(settings: BackendSettings) -> list[Path]:
    """Return the folders whose files builds may read: checkout, plug-ins, allowed packages, hub folder.

    For a plug-in in a single file: the folder of the file.
    """
    roots = [] if settings.path is None else [settings.path]
    roots += [] if settings.hub.directory is None else [settings.hub.directory]
    for module in (*settings.plugins, *settings.imports):
        spec = importlib.util.find_spec(module.partition(".")[0])
        if spec is not None and (spec.has_location or spec.submodule_search_locations):
            origin = [] if spec.origin is None else [str(Path(spec.origin).parent)]
            roots += [Path(place) for place in [*(spec.submodule_search_locations or ())] or origin]
    return roots


def digest_of_files(files: Mapping[str, Path]) -> str:
    """Return the digest over names and contents."""
    hasher = blake3()
    for name, path in sorted(files.items()):
        hasher.update(f"{len(name)}:{name}{digest_of_file(path)}".encode())
    return hasher.hexdigest()


def stamp_of_files(files: Mapping[str, Path]) -> str:
    """Return a digest over names, sizes and modification times, which detects a change without hashing contents."""
    hasher = blake3()
    for name, path in sorted(files.items()):
        status = path.stat()
        hasher.update(f"{len(name)}:{name}{status.st_size}:{status.st_mtime_ns};".encode())
    return hasher.hexdigest()


def code_files(root: Path) -> dict[str, Path]:
    """Return importable files below ``root`` (a file or a folder), and all other files inside packages.

    Hidden files, caches, virtual environments and data folders outside packages are left out. Links are followed.

    Raises:
        ServerError: there are over ``MAX_CODE_FILES`` files.
    """
    if not root.is_dir():
        return {root.name: root}
    files: dict[str, Path] = {}
    seen: set[Path] = set()
    pending = [(root, False)]
    while pending:
        folder, in_package = pending.pop()
        entries = {entry.name: entry for entry in folder.iterdir() if not entry.name.startswith(".")}
        if _VENV_MARK in entries or (real := folder.resolve()) in seen:
            continue
        seen.add(real)
        in_package = in_package or "__init__.py" in entries
        entries.pop("__pycache__", None)
        for entry in entries.values():
            if entry.is_dir():
                pending.append((entry, in_package))
            elif entry.is_file() and (in_package or entry.suffix in _MODULE_SUFFIXES):
                files[entry.relative_to(root).as_posix()] = entry
        if len(files) > MAX_CODE_FILES:
            raise ServerError(f"{root} holds more than {MAX_CODE_FILES} files. Remedy: name a folder with less code")
    return files


def local_hub_repository(hub: HubSettings) -> Path | None:
    """Return the local copy of the hub repository: the hub folder, or the copy of ``torch.hub`` inside; or ``None``."""
    if hub.directory is not None and (hub.directory / _HUBCONF).is_file():
        return hub.directory
    return cached_hub_repository(hub, hub.repository)


def cached_hub_repository(hub: HubSettings, repository: str) -> Path | None:
    """Return the copy of a repository ``OWNER/NAME[:REF]`` that ``torch.hub`` keeps in the hub folder; or ``None``."""
    if hub.directory is None:
        return None
    name, _, reference = repository.partition(":")
    cached = f"{name.replace('/', '_')}_{reference.replace('/', '_') or '*'}"
    return next((folder for folder in sorted(hub.directory.glob(cached)) if (folder / _HUBCONF).is_file()), None)


def _checkout_files(path: Path) -> dict[str, Path]:
    if not (path / CHECKOUT_PACKAGE / "__init__.py").is_file():
        raise ServerError(
            f"--backend-path {path} holds no package {CHECKOUT_PACKAGE}. Remedy: name the folder of the checkout"
        )
    return code_files(path)


def _plugin_files(plugin: str) -> dict[str, Path]:
    """Return the files of the top-level package of a plug-in, or the single file; submodules need an import."""
    top = plugin.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top) if all(map(str.isidentifier, plugin.split("."))) else None
    except ValueError:
        spec = None
    if spec is None:
        raise ServerError(
            f"plug-in {plugin!r} is not installed: this Python finds no module {top!r}. Remedy: pip install it into "
            "the server's environment, or put its folder on PYTHONPATH"
        )
    roots = [*(spec.submodule_search_locations or ())] or [spec.origin or ""]
    files: dict[str, Path] = {}
    for root in roots:
        files |= _named(top, code_files(Path(root)))
    if not all(path.is_file() for path in files.values()):
        raise ServerError(f"plug-in {plugin!r} has no source files, since {top!r} is part of Python itself")
    return files


def _hub_files(hub: HubSettings) -> dict[str, Path]:
    """Return the files that are loaded from the hub folder; empty if downloads can change the folder."""
    repository = local_hub_repository(hub)
    if repository is None or hub.directory is None or hub.allow_download:
        return {}
    weights = {path.name: path for path in (hub.directory / "checkpoints").glob("*") if path.is_file()}
    return code_files(repository) | _named("checkpoints", weights)


def _hub_code(hub: HubSettings) -> dict[str, Path]:
    """Return the code of every repository in the hub folder; empty if downloads can change the folder.

    A checkout chooses the repositories. Weights are no code: a build notes the weights that the build reads.
    """
    return {} if hub.directory is None or hub.allow_download else code_files(hub.directory)


def _named(prefix: str, files: Mapping[str, Path]) -> dict[str, Path]:
    return {f"{prefix}/{name}": path for name, path in files.items()}
