"""``model-factory cache``: list, verify or shrink a node cache or a server's store; needs no server and no torch."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from model_factory.cli.output import say
from model_factory.environment import default_cache_bytes, default_cache_dir
from model_factory.errors import ModelFactoryError
from model_factory.limits import MIB
from model_factory.store import Store

_GIB = 1024 * MIB
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def add_cache(commands: Any) -> None:
    """Add the command to the sub-parsers of ``model-factory``."""
    parser = commands.add_parser("cache", help="list, verify or shrink the cache of this node")
    parser.add_argument(
        "--dir",
        type=Path,
        default=None,
        help="folder of another store, for example of a server (default: the node cache)",
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    actions.add_parser("ls", help="list the blobs, most recently used first").set_defaults(run=_list)
    actions.add_parser("verify", help="hash every blob, and remove damaged blobs").set_defaults(run=_verify)
    prune = actions.add_parser("prune", help="remove unused blobs and records, least recently used first")
    prune.add_argument(
        "--max-gib",
        type=float,
        default=None,
        metavar="N",
        help="size to keep, in GiB (default: the bound of the cache)",
    )
    prune.set_defaults(run=_prune)


def _store(arguments: argparse.Namespace) -> Store:
    root: Path = arguments.dir or default_cache_dir()
    try:
        is_store = (root / "blobs").is_dir()
    except PermissionError:  # the error of the store names the remedy
        is_store = True
    if not is_store:
        raise ModelFactoryError(f"{root} is not a cache or store: no folder 'blobs' was found")
    return Store(root)


def _list(arguments: argparse.Namespace) -> int:
    store = _store(arguments)
    found = store.entries()
    for entry in found:
        marks = [mark for mark, holds in (("in use", entry.in_use), ("shared", entry.links > 1)) if holds]
        say(
            f"{entry.digest}  {_size(entry.size):>10}  {_ago(time.time() - entry.used):>8}  {', '.join(marks)}".rstrip()
        )
    say(f"{len(found)} blobs, {_size(sum(entry.size for entry in found))} in {store.root}")
    say(f"{_size(store.taken_bytes())} count for the bound, with records, and at least 16 KiB for each file")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    store = _store(arguments)
    found = store.entries()
    damaged = [entry for entry in found if not store.verify(entry.digest) and not entry.path.exists()]
    for entry in damaged:
        say(f"{entry.digest} was damaged and is removed; the next use fetches or builds the blob again")
    say(f"{len(found)} blobs checked, {len(damaged)} damaged")
    return 1 if damaged else 0


def _prune(arguments: argparse.Namespace) -> int:
    store = _store(arguments)
    if arguments.max_gib is not None and not 0 <= arguments.max_gib < 1 << 30:
        raise ModelFactoryError(f"--max-gib is a size in GiB, for example 64, got {arguments.max_gib:g}")
    bound = default_cache_bytes() if arguments.max_gib is None else int(arguments.max_gib * _GIB)
    removed = store.prune(bound)
    freed, left = (sum(entry.size for entry in some) for some in (removed, store.entries()))
    say(f"{len(removed)} blobs and records removed, {_size(freed)}; {_size(left)} left")
    if store.taken_bytes() > bound:
        say(f"the bound is {_size(bound)}; the remaining blobs are in use", error=True)
    return 0


def _size(count: int) -> str:
    return f"{count / _GIB:.2f} GiB" if count >= _GIB else f"{count / MIB:.2f} MiB"


def _ago(seconds: float) -> str:
    for unit, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"
