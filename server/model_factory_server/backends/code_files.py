"""The files of the operator's that decide what a backend builds. They are found and read, never imported."""

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
"""What a policy_constructor checkout holds."""

MAX_CODE_FILES = 50_000
"""Files under one root."""

PLUGIN_GROUP = "model_factory.plugins"
"""The entry points by which installed packages name their plug-ins: ``my_blocks = "my_blocks.registration"``."""

_NEVER_IMPORTED = frozenset(
    {"torch", "numpy", "yaml", "model_factory", "model_factory_server"} | sys.stdlib_module_names
)
_MODULE_SUFFIXES = frozenset({".py", ".so", ".pyd"})
_VENV_MARK = "pyvenv.cfg"
_HUBCONF = "hubconf.py"
_PACKAGE = Path(__file__).parents[1]


def with_installed_plugins(plugins: Sequence[str]) -> tuple[str, ...]:
    """Return the plug-ins of installed packages, sorted, and then ``plugins``; each once."""
    installed = sorted(entry.value for entry in metadata.entry_points(group=PLUGIN_GROUP))
    return tuple(dict.fromkeys([*installed, *plugins]))


def operator_files(settings: BackendSettings) -> dict[str, Path]:
    """Every file of the operator's that a backend runs or loads, by a name that is the same on every machine.

    Raises:
        ServerError: something is not where the settings say.
    """
    if settings.path is not None:
        files = _named("checkout", _checkout_files(settings.path))
    else:
        files = _named("hub", _hub_files(settings.hub))
    for plugin in settings.plugins:
        files |= _named(f"plug-in {plugin}", _plugin_files(plugin))
    for module in settings.imports:
        if module.partition(".")[0] in _NEVER_IMPORTED:
            raise ServerError(
                f"--allow-import {module}: a config could then call whatever is below {module!r}, and load code or "
                "write files with it. Remedy: name a package that holds blocks and nothing else"
            )
        files |= _named(f"import {module}", _plugin_files(module))
    return files


def operator_roots(settings: BackendSettings) -> tuple[Root, ...]:
    """Where the code is that is handed out as source: checkout, plug-ins, hub repository, and the block library."""
    roots = [] if settings.path is None else [Root(settings.path.resolve())]
    for plugin in settings.plugins:
        top = plugin.partition(".")[0]
        spec = importlib.util.find_spec(top)
        assert spec is not None
        places = [*(spec.submodule_search_locations or ())] or [spec.origin or ""]
        roots += [Root(Path(place).parent, frozenset({top})) for place in places]
    if settings.path is None and (repository := local_hub_repository(settings.hub)) is not None:
        roots.append(Root(repository))
    return (*roots, Root(_PACKAGE.parent, frozenset({_PACKAGE.name})))


def data_roots(settings: BackendSettings) -> list[Path]:
    """Folders of the operator's that builds may read files of: checkout, plug-ins, allowed packages, hub folder.

    Of a plug-in that is one file: the folder of the file.
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
    """Digest over names and content."""
    hasher = blake3()
    for name, path in sorted(files.items()):
        hasher.update(f"{len(name)}:{name}{digest_of_file(path)}".encode())
    return hasher.hexdigest()


def stamp_of_files(files: Mapping[str, Path]) -> str:
    """Digest over names, sizes and times of change: tells in no time whether a file was touched since."""
    hasher = blake3()
    for name, path in sorted(files.items()):
        status = path.stat()
        hasher.update(f"{len(name)}:{name}{status.st_size}:{status.st_mtime_ns};".encode())
    return hasher.hexdigest()


def code_files(root: Path) -> dict[str, Path]:
    """What Python can import below ``root`` (a file, or a folder), and all else that lies in packages there.

    Hidden files, caches and virtual environments are left out, and so are folders of results that trainings write
    into a checkout. Links are followed.
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
            raise ServerError(f"{root} holds more than {MAX_CODE_FILES} files; name a folder with less code")
    return files


def local_hub_repository(hub: HubSettings) -> Path | None:
    """The local copy of the hub repository: the hub folder itself, or where ``torch.hub`` keeps it inside."""
    if hub.directory is None:
        return None
    name, _, reference = hub.repository.partition(":")
    cached = f"{name.replace('/', '_')}_{reference.replace('/', '_') or '*'}"
    candidates = [hub.directory, *sorted(hub.directory.glob(cached))]
    return next((folder for folder in candidates if (folder / _HUBCONF).is_file()), None)


def _checkout_files(path: Path) -> dict[str, Path]:
    if not (path / CHECKOUT_PACKAGE / "__init__.py").is_file():
        raise ServerError(f"--backend-path {path} holds no package {CHECKOUT_PACKAGE}; name the checkout's folder")
    return code_files(path)


def _plugin_files(plugin: str) -> dict[str, Path]:
    """The files of a plug-in's top-level package, or its one file: finding more would import the package."""
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
    """What is loaded from the hub folder; nothing where downloads may change it: there, the reference counts."""
    repository = local_hub_repository(hub)
    if repository is None or hub.directory is None or hub.allow_download:
        return {}
    weights = {path.name: path for path in (hub.directory / "checkpoints").glob("*") if path.is_file()}
    return code_files(repository) | _named("checkpoints", weights)


def _named(prefix: str, files: Mapping[str, Path]) -> dict[str, Path]:
    return {f"{prefix}/{name}": path for name, path in files.items()}
