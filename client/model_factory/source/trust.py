"""The trainer's trust in source code: none, all code of the server, or bundles by digest."""

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
"""Value of ``trust_source``: None or False, True, the path of a lock file, or digests."""


class Trust:
    """Decides whether a bundle may be fetched and run. Without fallback: untrusted code is an error.

    >>> trust = Trust(["ab" * 32])
    >>> trust.check("encoder", "ab" * 32, reasons={}, fetch=lambda: b"")
    """

    def __init__(self, trusted: TrustSource) -> None:
        """Read a value of ``trust_source``.

        Raises:
            SourceError: the lock file is missing or malformed.
            FormatError: a digest is malformed.
        """
        self._everything = trusted is True
        self._lock: Lock = {}
        self._cause = "trust_source is not set"
        self._digests: frozenset[str] = frozenset()
        if isinstance(trusted, str | PathLike):
            self._lock = read_lock(Path(trusted))
            self._digests = frozenset(self._lock)
            self._cause = f"{Path(trusted)} does not contain the digest"
        elif trusted is not None and not isinstance(trusted, bool):
            self._digests = frozenset(map(check_digest, trusted))
            self._cause = "trust_source does not contain the digest"

    def check(self, component: str, digest: str, reasons: Mapping[str, str], fetch: Callable[[], bytes]) -> None:
        """Refuse an untrusted bundle. No code is run, and without a lock file the bundle is not fetched.

        Args:
            component: Name of the component.
            digest: Digest of the bundle.
            reasons: Reasons why blocks need source code, by path and class of the block.
            fetch: Reads the bundle, to list differences to the lock file.

        Raises:
            SourceError: the bundle is not trusted.
        """
        if self._everything or digest in self._digests:
            return
        blocks = "; ".join(f"{block}: {reason}" for block, reason in reasons.items())
        raise SourceError(
            f"component {component!r} needs source code from the server for {blocks}. The bundle is {digest}; "
            f"{self._cause}; no code was run.{self._differences(fetch)} Remedy: review the code with "
            f"`model-factory trust CONFIG`, which writes {LOCK_NAME}, and pass trust_source={LOCK_NAME!r}; or change "
            "the block to need no source code (docs/portability.md)"
        )

    def _differences(self, fetch: Callable[[], bytes]) -> str:
        if not self._lock:
            return ""
        try:
            lines = changes(self._lock, decode_bundle(fetch()).file_digests)
        except FormatError as error:
            return f" (The bundle is malformed: {error}.)"
        return (
            f" The files differ from the files in the lock file: {', '.join(' '.join(line.split()) for line in lines)}."
        )
