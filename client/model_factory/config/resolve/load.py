"""Config file -> located tree, with the files named by its ``defaults`` merged below it."""

from __future__ import annotations

import stat
from pathlib import Path

from model_factory.config.bounds import MAX_CONFIG_BYTES, MAX_FILES
from model_factory.config.resolve.merge import merge
from model_factory.config.syntax.bounded_nodes import MapBuilder
from model_factory.config.syntax.expect import require_list, require_text
from model_factory.config.syntax.nodes import MapNode, Place, Scalar
from model_factory.config.syntax.yaml_tree import parse_yaml
from model_factory.errors import ConfigError


def load_file(path: Path) -> MapNode:
    """Return the config in a YAML file; ``defaults`` is gone from it, and list directives may still stand in it.

    Raises ConfigError when a file cannot be read, is not a config, or includes itself.
    """
    return _Includes().load(path, ())


class _Includes:
    """The loading of one config; counts its files."""

    def __init__(self) -> None:
        self._loaded = 0

    def load(self, path: Path, chain: tuple[Path, ...], named_at: str | None = None) -> MapNode:
        """Load a file that the files of ``chain`` led to; ``named_at`` is where the last of them names it."""
        if any(_same_file(path, earlier) for earlier in chain):
            names = " -> ".join(str(link) for link in (*chain, path))
            raise ConfigError(f"defaults include cycle detected: {names}", place=named_at)
        self._loaded += 1
        if self._loaded > MAX_FILES:
            raise ConfigError(f"'defaults' lead to more than {MAX_FILES} files", place=named_at)
        own = parse_yaml(_read_text(path, named_at), str(path))
        result: MapNode | None = None
        for name, place in _defaults(own):
            included = self.load(path.parent / name, (*chain, path), place)
            result = included if result is None else merge(result, included)
        own = without_defaults(own)
        return own if result is None else merge(result, own)


def has_defaults(tree: MapNode) -> bool:
    """Whether the tree has ``defaults`` other than null."""
    node = tree.entries.get("defaults")
    return node is not None and not (isinstance(node, Scalar) and node.value is None)


def without_defaults(tree: MapNode) -> MapNode:
    """Return the tree without the key ``defaults``."""
    builder = MapBuilder(tree.place)
    for key, value in tree.entries.items():
        if key != "defaults":
            builder.add(key, value)
    return builder.build()


def _defaults(tree: MapNode) -> list[tuple[str, str]]:
    """Return the file names in the tree's ``defaults``, each with its place; a null ``defaults`` names no files."""
    if not has_defaults(tree):
        return []
    named = []
    for index, item in enumerate(require_list(tree.entries["defaults"], ("defaults",), "file paths").items):
        named.append((require_text(item, ("defaults", index)), str(item.place)))
    return named


def _same_file(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except (OSError, ValueError):
        return False  # reading it says what is wrong with it


def _read_text(path: Path, named_at: str | None) -> str:
    try:
        # Asked first: opening a pipe would wait for its writer.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path} is not a regular file", place=named_at)
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"cannot read the config file {str(path)!r}: {reason}", place=named_at) from None
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(f"the file is larger than {MAX_CONFIG_BYTES} bytes", place=str(path))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = Place.after(data[: error.start].decode("utf-8-sig"), str(path))
        raise ConfigError(f"the file is not UTF-8: {error.reason}", place=str(place)) from None
