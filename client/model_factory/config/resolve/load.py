"""A config file to a tree of nodes, merged on top of the files named by ``defaults``."""

from __future__ import annotations

import stat
from pathlib import Path

from model_factory.config.bounds import MAX_CONFIG_BYTES, MAX_FILES
from model_factory.config.resolve.merge import merge
from model_factory.config.syntax.bounded_nodes import with_keys
from model_factory.config.syntax.cursor import Cursor
from model_factory.config.syntax.nodes import MapNode, Place, Scalar
from model_factory.config.syntax.yaml_tree import parse_yaml
from model_factory.errors import ConfigError

DEFAULTS = "defaults"
"""The key with the files to merge below a file."""


def load_file(path: Path) -> MapNode:
    """Return the config in a YAML file, without ``defaults``; list directives may be left.

    Raises ConfigError if a file cannot be read, is not a config, or includes itself.
    """
    return _Includes().load(path, ())


class _Includes:
    """The loading of one config; counts the files."""

    def __init__(self) -> None:
        self._loaded = 0

    def load(self, path: Path, chain: tuple[Path, ...], named_at: str | None = None) -> MapNode:
        """Load a file; ``chain`` are the files that led there, ``named_at`` is the place in the last of them."""
        if any(_same_file(path, earlier) for earlier in chain):
            names = " -> ".join(str(link) for link in (*chain, path))
            raise ConfigError(f"defaults include cycle detected: {names}", place=named_at)
        self._loaded += 1
        if self._loaded > MAX_FILES:
            raise ConfigError(f"'defaults' lead to more than {MAX_FILES} files", place=named_at)
        own = parse_yaml(_read_text(path, named_at), str(path))
        result: MapNode | None = None
        for item in _defaults(own):
            included = self.load(path.parent / item.text(), (*chain, path), str(item.node.place))
            result = included if result is None else merge(Cursor(result), Cursor(included))
        own = without_defaults(own)
        return own if result is None else merge(Cursor(result), Cursor(own))


def has_defaults(tree: MapNode) -> bool:
    """Whether the tree has ``defaults`` other than null."""
    node = tree.entries.get(DEFAULTS)
    return node is not None and not (isinstance(node, Scalar) and node.value is None)


def without_defaults(tree: MapNode) -> MapNode:
    """Return the tree without the key ``defaults``."""
    return with_keys(tree, tree.entries.keys() - {DEFAULTS})


def _defaults(tree: MapNode) -> list[Cursor]:
    """Return the file names in ``defaults``; null gives no files."""
    if not has_defaults(tree):
        return []
    items = Cursor(tree).entry(DEFAULTS).items("file paths")
    for item in items:
        item.text()  # every name is checked before the first file is opened
    return items


def _same_file(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except (OSError, ValueError):
        return False  # the reading of the file reports the error


def _read_text(path: Path, named_at: str | None) -> str:
    try:
        # Checked first, because opening a pipe waits for its writer.
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
