"""Lock files: digests of the bundles that a trainer has reviewed and trusts, for version control."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_factory.digest import check_digest
from model_factory.documents import SOURCE_FORMAT, decode_document
from model_factory.errors import FormatError, SourceError
from model_factory.source.bundle import Bundle

LOCK_NAME = "model-factory.lock"
"""Default name of a lock file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """The entry of a bundle in a lock file."""

    needed_by: tuple[str, ...]
    """Blocks that need the bundle, for people."""
    files: Mapping[str, str]
    """Digests of the files by name."""
    requires: tuple[str, ...]
    """Required packages in the syntax of pip, for people."""


Lock = Mapping[str, Pinned]
"""Pinned bundles by digest."""


def pin(bundle: Bundle, needed_by: tuple[str, ...]) -> Pinned:
    """Return the entry of a bundle for a lock file."""
    requires = tuple(
        f"{item.distribution}=={item.version}" if item.version else item.distribution for item in bundle.requires
    )
    return Pinned(needed_by=needed_by, files=bundle.file_digests, requires=requires)


def encode_lock(lock: Lock) -> bytes:
    """Return the text of a lock file, sorted and indented for readable diffs."""
    bundles = {
        digest: {"needed_by": list(item.needed_by), "files": dict(item.files), "requires": list(item.requires)}
        for digest, item in lock.items()
    }
    return (json.dumps({"format": SOURCE_FORMAT, "bundles": bundles}, indent=2, sort_keys=True) + "\n").encode()


def read_lock(path: Path) -> dict[str, Pinned]:
    """Read a lock file.

    Raises:
        SourceError: the file is missing or malformed.
    """
    try:
        document = decode_document(path.read_bytes(), f"the lock file {path}")
        return _decode(document)
    except OSError as error:
        raise SourceError(
            f"the lock file {path} cannot be read: {error.strerror or error}. Remedy: write the file with "
            f"`model-factory trust CONFIG -o {path}`"
        ) from None
    except (FormatError, AttributeError, KeyError, TypeError) as error:
        raise SourceError(
            f"{path} is not a lock file: {error}. Remedy: write the file again with `model-factory trust CONFIG -o "
            f"{path}`"
        ) from None


def _decode(document: Any) -> dict[str, Pinned]:
    if document.keys() != {"format", "bundles"} or document["format"] != SOURCE_FORMAT:
        raise FormatError(f"expected exactly the keys 'bundles' and 'format', and format {SOURCE_FORMAT}")
    return {check_digest(digest): _pinned(item) for digest, item in document["bundles"].items()}


def _pinned(item: Any) -> Pinned:
    return Pinned(
        needed_by=tuple(map(str, item["needed_by"])),
        files={str(name): check_digest(digest) for name, digest in item["files"].items()},
        requires=tuple(map(str, item["requires"])),
    )


def changes(lock: Lock, files: Mapping[str, str]) -> list[str]:
    """List how files (digests by name) differ from the most similar bundle of a lock file, a line per file.

    >>> pinned = Pinned(needed_by=(), files={"blocks.py": "ab" * 32}, requires=())
    >>> changes({"cd" * 32: pinned}, {"blocks.py": "ef" * 32, "more.py": "ab" * 32})
    ['changed  blocks.py', 'added    more.py']
    """
    nearest = max(lock.values(), key=lambda item: len(item.files.keys() & files.keys()), default=None)
    before: Mapping[str, str] = {} if nearest is None else nearest.files
    lines = []
    for name in sorted(before.keys() | files.keys()):
        if name not in before:
            lines.append(f"added    {name}")
        elif name not in files:
            lines.append(f"removed  {name}")
        elif before[name] != files[name]:
            lines.append(f"changed  {name}")
    return lines
