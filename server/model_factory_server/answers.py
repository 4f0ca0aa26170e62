"""Answers given before, in memory: the same request gets them again as long as the store has what they name.

A request is bytes, and a build is decided by its bytes, by this server's code, which does not change while it runs, and
by the files that the build read. So nothing of a config is read again to answer a rank that asks for what another has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from model_factory.limits import KIB, MIB
from model_factory.store import Blob, Store
from model_factory_server.read_files import ReadFile

MAX_BYTES = 64 * MIB
"""Of all requests and answers together; those used least recently go."""

_FILE_BYTES = 300  # of a path and a digest as Python keeps them, beside the path's own length
_OVERHEAD_BYTES = KIB  # of the objects around one answer: measured with a build of one component


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """An answer."""

    kind: Any
    """The message's class."""
    data: bytes
    """The message. Serialised, since messages take up to five times of what they say they do, if they are small."""
    blobs: tuple[Blob, ...]
    """What has to be in the store for it to be true."""
    files: tuple[ReadFile, ...]
    """What has to be unchanged for it to be true."""
    size: int
    """Of request and answer and what is around them, in bytes."""


class Answers:
    """Messages by the request that they answer."""

    def __init__(
        self, store: Store, unchanged: Callable[[Iterable[ReadFile]], bool], max_bytes: int = MAX_BYTES
    ) -> None:
        """``unchanged`` is whether files that builds read are known to be as they were."""
        self._store = store
        self._unchanged = unchanged
        self._max_bytes = max_bytes
        self._known: dict[bytes, _Known] = {}
        self._bytes = 0

    @property
    def size(self) -> int:
        """Bytes of all that is kept."""
        return self._bytes

    def find(self, request: Any) -> Any | None:
        """Return the answer to a request, or None if it is to be worked out."""
        key = _key(request)
        known = self._forget(key)
        if known is None or not all(self._store.find(blob, may_hash=False) for blob in known.blobs):
            return None
        if not self._unchanged(known.files):
            return None
        self._remember(key, known)  # now the last one
        return known.kind.FromString(known.data)

    def keep(self, request: Any, message: Any, blobs: Iterable[Blob | None], files: Iterable[ReadFile]) -> None:
        """Keep an answer that holds as long as these blobs are in the store, and these files are unchanged.

        A None among the blobs is nothing.
        """
        key, data = _key(request), message.SerializeToString()
        read = tuple(files)
        size = len(key) + len(data) + _OVERHEAD_BYTES + sum(len(file.path) + _FILE_BYTES for file in read)
        self._forget(key)
        needed = tuple(blob for blob in blobs if blob is not None)
        self._remember(key, _Known(kind=type(message), data=data, blobs=needed, files=read, size=size))
        while self._bytes > self._max_bytes:
            self._forget(next(iter(self._known)))

    def _remember(self, key: bytes, known: _Known) -> None:
        self._known[key] = known
        self._bytes += known.size

    def _forget(self, key: bytes) -> _Known | None:
        known = self._known.pop(key, None)
        if known is not None:
            self._bytes -= known.size
        return known


def _key(request: Any) -> bytes:
    data: bytes = request.SerializeToString(deterministic=True)
    name: str = request.DESCRIPTOR.name
    return name.encode() + b"\0" + data
