"""What a trainer trusts: nothing, everything its server says, or bundles by digest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from model_factory.digest import check_digest
from model_factory.errors import FormatError, SourceError
from model_factory.source.bundle import decode_bundle
from model_factory.source.lock import LOCK_NAME, Lock, changes, read_lock

TrustSource: TypeAlias = "bool | str | PathLike[str] | Iterable[str] | None"
"""As trainers say it: None or False, True, the path of a lock file, or digests."""


class Trust:
    """Decides whether a bundle may be fetched and run. Has no fallback: what is not trusted is an error."""

    def __init__(self, trusted: TrustSource) -> None:
        """Read what is trusted.

        Raises:
            SourceError: it names a lock file that is none.
            FormatError: it has a digest that is none.
        """
        self._everything = trusted is True
        self._lock: Lock = {}
        self._said = "trust_source is not set"
        self._digests: frozenset[str] = frozenset()
        if isinstance(trusted, str | PathLike):
            self._lock = read_lock(Path(trusted))
            self._digests = frozenset(self._lock)
            self._said = f"{Path(trusted)} does not have it"
        elif trusted is not None and not isinstance(trusted, bool):
            self._digests = frozenset(map(check_digest, trusted))
            self._said = "it is not among the digests of trust_source"

    def check(self, component: str, digest: str, reasons: Mapping[str, str], fetch: Callable[[], bytes]) -> None:
        """Refuse a bundle that is not trusted; nothing of it is run, and without a lock file nothing is fetched.

        Args:
            component: Whose it is.
            digest: The bundle's.
            reasons: Why each block needs it, by path and class.
            fetch: Reads the bundle, to say how it differs from the lock file's.

        Raises:
            SourceError: it is not trusted.
        """
        if self._everything or digest in self._digests:
            return
        blocks = "; ".join(f"{block}: {reason}" for block, reason in reasons.items())
        raise SourceError(
            f"component {component!r} needs source code of the server's for {blocks}. Its bundle is {digest}, and "
            f"{self._said}; nothing of it was run.{self._differences(fetch)} Remedy: look at it with `model-factory "
            f"trust CONFIG`, which writes {LOCK_NAME}, and pass trust_source={LOCK_NAME!r}; or change the block so "
            "that it needs no source (docs/portability.md)"
        )

    def _differences(self, fetch: Callable[[], bytes]) -> str:
        if not self._lock:
            return ""
        try:
            lines = changes(self._lock, decode_bundle(fetch()).file_digests)
        except FormatError as error:
            return f" (It is no bundle: {error}.)"
        return f" The files differ from those of the lock file: {', '.join(' '.join(line.split()) for line in lines)}."
