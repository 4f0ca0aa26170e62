"""``model-factory trust``: show source code that models would run on this machine, and pin the code in a lock file."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from model_factory.cli.models import MODEL_FILE
from model_factory.cli.output import say
from model_factory.cli.source_text import WIDTH, numbered_lines
from model_factory.client.factory import RemoteModelFactory
from model_factory.descriptor.architecture import UNRECORDED, Architecture
from model_factory.descriptor.tree import Descriptor
from model_factory.digest import Blob
from model_factory.errors import SourceError
from model_factory.model_file.load import ModelFile
from model_factory.source.bundle import Bundle, decode_bundle
from model_factory.source.lock import Lock, changes, encode_lock, pin, read_lock
from model_factory.store.staging import whole_file
from model_factory.wording import shortened

_MARGIN = 20
"""Columns of a terminal for the numbers of lines."""


def trust(configs: Mapping[str, str], server: str, *, lock: Path, check: bool, text: bool) -> int:
    """Print the source bundles of the models in ``configs``, and write the digests to the file ``lock``.

    A model file needs no server. With ``check``, write nothing, and return 1 if the lock file has other digests.
    """
    bundles: dict[str, Bundle] = {}
    needed_by: dict[str, list[str]] = {}
    for name, descriptor, unrecorded, read_source in _described(configs, server):
        ref = descriptor.bundle
        if ref is None:
            say(f"{name}: needs no source code{', as far as known' if unrecorded else ''}")
        for block in unrecorded:
            say(f"  {block}: may need source at its first call; a `signature:` in the config shows the need")
        if ref is None:
            continue
        if ref.digest not in bundles:
            bundles[ref.digest] = decode_bundle(read_source(ref))
        blocks = descriptor.source_reasons
        needed_by.setdefault(ref.digest, []).extend(f"{name}: {block}" for block in blocks)
        say(f"{name}: needs source code, bundle {ref.digest}")
        for block, reason in blocks.items():
            say(f"  {block}: {shortened(reason)}")
        _say_contents(bundles[ref.digest], text=text)
    pinned = {digest: pin(bundle, tuple(needed_by[digest])) for digest, bundle in bundles.items()}
    return _check(lock, pinned) if check else _write(lock, pinned)


def _described(
    configs: Mapping[str, str], server: str
) -> Iterator[tuple[str, Descriptor, list[str], Callable[[Blob], bytes]]]:
    """Yield name, descriptor, unrecorded blocks and reader of source of each model: from files, and from the server."""
    files = {name: path for name, path in configs.items() if Path(path).suffix == MODEL_FILE}
    for name, path in files.items():
        with ModelFile(path) as file, file.errors():
            for part in file.names:
                yield (name if file.single else f"{name}.{part}"), file.descriptor(part), [], file.source
    others = {name: path for name, path in configs.items() if name not in files}
    if others:
        factory = RemoteModelFactory(server)
        described = factory.describe(others, portability=True)
        assert isinstance(described, dict)
        for name, architecture in described.items():
            _refuse_unbuildable(name, architecture)
            unrecorded = [f"{row.path} ({row.type})" for row in architecture.modules if row.reason == UNRECORDED]
            yield name, architecture.descriptor, unrecorded, factory.read_source


def _refuse_unbuildable(name: str, architecture: Architecture) -> None:
    refused = {} if architecture.portability is None else architecture.portability.refused
    for path, reason in refused.items():
        raise SourceError(f"component {name!r} cannot be built: {path or 'the model'}: {reason}")


def _say_contents(bundle: Bundle, *, text: bool) -> None:
    width = max(_MARGIN, min(WIDTH, shutil.get_terminal_size((WIDTH + _MARGIN, 0)).columns - _MARGIN))
    for name, content in sorted(bundle.files.items()):
        shown = numbered_lines(content, width)
        say(f"  {name}, {shown.count} lines{shown.warning}")
        for line in shown.lines if text else ():
            say(f"    {line}")
    for item in bundle.requires:
        here = "" if importlib.util.find_spec(item.module) else " (not installed here)"
        say(f"  imports {item.module}, of {item.distribution} {item.version or '(version unknown)'}{here}")


def _write(path: Path, pinned: Lock) -> int:
    with whole_file(path) as file:
        file.write(encode_lock(pinned))
    say(f"{path}: {len(pinned)} bundle{'' if len(pinned) == 1 else 's'} pinned")
    return 0


def _check(path: Path, pinned: Lock) -> int:
    locked = read_lock(path)
    for digest in pinned.keys() - locked.keys():
        say(f"{path} does not have bundle {digest}:")
        for line in changes(locked, pinned[digest].files):
            say(f"  {line}")
    for digest in locked.keys() - pinned.keys():
        say(f"{path} has bundle {digest}; no model of this command needs the bundle")
    if locked.keys() == pinned.keys():
        say(f"{path} is up to date")
        return 0
    return 1
