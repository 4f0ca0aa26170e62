"""Source code of a server: fetched and run if the trainer trusts the source."""

from __future__ import annotations

from torch import nn

from model_factory.client.connection import Connection
from model_factory.client.fetch import read_blob
from model_factory.descriptor.rebuild import FindClass, give_source_classes
from model_factory.descriptor.tree import Descriptor
from model_factory.errors import FormatError, SourceError
from model_factory.limits import MAX_SOURCE_BYTES
from model_factory.source.loader import load_source
from model_factory.source.trust import Trust
from model_factory.store import Blob, Store

_ROOT = "the model"


class SourceClient:
    """Reads bundles of a server, and finds classes in trusted bundles."""

    def __init__(self, connection: Connection, cache: Store, trust: Trust) -> None:
        """Prepare for the bundles of one server."""
        self._connection = connection
        self._cache = cache
        self._trust = trust

    def read(self, bundle: Blob) -> bytes:
        """Return a bundle of source code as text; no code is run.

        Raises:
            FormatError: the bundle is too large.
            IntegrityError: the server sent other bytes.
            UnavailableError: the server went away.
        """
        if bundle.size > MAX_SOURCE_BYTES:
            raise FormatError(f"a bundle of {bundle.size} bytes; at most {MAX_SOURCE_BYTES} are allowed")
        return read_blob(self._connection, self._cache, bundle, {}, is_private=True)

    def find_class(self, component: str, descriptor: Descriptor, path: str = "") -> FindClass | None:
        """Return a function to find classes in trusted source; None without source.

        ``path`` is the path of the described module in the component, for errors.

        Raises:
            SourceError: the source is not trusted, or cannot run here.
        """
        bundle = descriptor.bundle
        if bundle is None:
            return None
        reasons = {_below(path, block): reason for block, reason in descriptor.source_reasons.items()}
        self._trust.check(component, bundle.digest, reasons, lambda: self.read(bundle))
        source = load_source(self.read(bundle), bundle.digest, f"{component}: {', '.join(reasons)}")
        return lambda item: source.find_class(item.module, item.qualname, item.reason)


class SourceAtCall:
    """A module that turned out to need source code at a call; see ``SourceForm``."""

    def __init__(self, source: SourceClient, component: str, path: str, descriptor: Descriptor) -> None:
        """Prepare for the module of a descriptor, at a path of a component."""
        self._source = source
        self._component = component
        self._path = path
        self._descriptor = descriptor

    def give_classes(self, module: nn.Module) -> None:
        """Give a program module, and program modules below, the classes of the source code, in place.

        Raises:
            SourceError: the source is not trusted, or cannot run here.
            FormatError: the server has described another module.
        """
        bundle = self._descriptor.bundle
        if bundle is None:
            raise FormatError(f"the server has sent the source of {self._path} without a bundle")
        try:
            find_class = self._source.find_class(self._component, self._descriptor, self._path)
        except SourceError as error:
            raise SourceError(
                f"{error}. A call of the block has shown the need, so `model-factory trust` lists the source for a "
                "config with a `signature:` of such a call, or for a block with example_inputs(); "
                f"factory.read_source(Blob({bundle.digest!r}, {bundle.size})) returns the text"
            ) from error
        assert find_class is not None
        give_source_classes(module, self._descriptor, find_class)


def _below(path: str, block: str) -> str:
    """Put a path before the path in ``router (Router)``, or in the place of ``the model``."""
    if not path:
        return block
    return f"{path}{block.removeprefix(_ROOT)}" if block.startswith(f"{_ROOT} (") else f"{path}.{block}"
