"""Builds that a node can repeat without a server: the results of builds, as records in the node cache."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from model_factory.client.connection import Connection
from model_factory.client.fetch import read_blob
from model_factory.config.request import Component
from model_factory.digest import Blob, check_digest, digest_of
from model_factory.documents import FORMAT, encode_document, expect_str, expect_type
from model_factory.errors import FormatError, ModelFactoryError, UnavailableError
from model_factory.identity import BuildIdentity, BuiltComponent, Manifest
from model_factory.store import Store

log = logging.getLogger(__name__)

_BLOBS = ("descriptor", "programs", "weights")
_TEXTS = ("backend", "code_digest", "torch_version", "device_kind")


class KnownBuilds:
    """The builds of one factory in the node cache.

    A record is the server's response to one component of a request. The key names the request and the server as the
    trainer names both: config, component, seed and dtype, and the address (with TLS: the authorities and the name in
    the certificate). Records of other users are ignored, as all records of a store.
    """

    def __init__(self, connection: Connection, cache: Store, dtype: str) -> None:
        """Prepare for the builds from one server, cast to one dtype."""
        self._connection = connection
        self._cache = cache
        self._dtype = dtype

    def keep(self, component: Component, built: BuiltComponent, manifest: Manifest, seed: int) -> None:
        """Store a result; a cache that cannot be written is logged, and no obstacle to the build."""
        try:
            for blob in (built.descriptor, built.programs):  # from memory, if the process has built the model before
                if self._cache.find(blob) is None:
                    read_blob(self._connection, self._cache, blob, manifest.inline)
            key, document = self._key(component, seed), _encode(built, manifest)
            if self._cache.record(key) != document:
                self._cache.put_record(key, document)
        except ModelFactoryError as error:
            log.info("%s cannot be built later without the server: %s", component.name, error)

    def find(self, component: Component, seed: int, *, needs_weights: bool = True) -> tuple[BuiltComponent, Manifest]:
        """Return the latest result for a component; every needed blob of the result is in the cache.

        Raises:
            UnavailableError: the cache lacks the result, or a blob of the result.
            StoreError: the cache cannot be read.
        """
        document = self._cache.record(self._key(component, seed))
        remedy = (
            "Remedy: build once while the server can be reached, with the same config, name, seed, dtype, address and "
            "cache"
        )
        where = f"the node cache {self._cache.root}"
        try:
            found = None if document is None else _decode(component.name, document)
        except FormatError as error:
            log.warning("a record in %s is malformed: %s", where, error)
            found = None
        if found is None:
            raise UnavailableError(
                f"{where} has no build of {component.name!r} with this config, seed {seed} and dtype "
                f"{self._dtype!r} from the server at {self._connection.address}. {remedy}"
            )
        needed = [name for name in _BLOBS if needs_weights or name != "weights"]
        missing = [name for name in needed if self._cache.find(getattr(found[0], name)) is None]
        if missing:
            raise UnavailableError(f"{where} no longer has {' and '.join(missing)} of {component.name!r}. {remedy}")
        return found

    def _key(self, component: Component, seed: int) -> str:
        server = self._connection.credentials.server_identity(self._connection.address, observed=False)
        config = component.config
        parts = [server, FORMAT, component.name, config.digest, config.order_digest, seed, self._dtype]
        return digest_of(encode_document(["known build", *parts]))


def _encode(built: BuiltComponent, manifest: Manifest) -> dict[str, Any]:
    blobs = {name: getattr(built, name) for name in _BLOBS}
    checkpoint = {"digest": built.checkpoint_digest, "notice": built.notice}
    return {
        "server": manifest.server,
        "server_version": manifest.server_version,
        "identity": dataclasses.asdict(manifest.identity),
        "keys": {"build_key": built.build_key, "architecture_key": built.architecture_key},
        "blobs": {name: [blob.digest, blob.size] for name, blob in blobs.items()},
        **({"checkpoint": checkpoint} if built.checkpoint_digest else {}),
    }


def _decode(name: str, document: Any) -> tuple[BuiltComponent, Manifest]:
    """Read a record.

    Raises:
        FormatError: the record is malformed.
    """
    try:
        identity, keys, blobs = document["identity"], document["keys"], document["blobs"]
        descriptor, programs, weights = (
            Blob(check_digest(expect_str(digest)), expect_type(size, int))
            for digest, size in map(blobs.__getitem__, _BLOBS)
        )
        checkpoint = document.get("checkpoint", {"digest": "", "notice": ""})
        built = BuiltComponent(
            name=name,
            build_key=check_digest(expect_str(keys["build_key"])),
            architecture_key=check_digest(expect_str(keys["architecture_key"])),
            descriptor=descriptor,
            programs=programs,
            weights=weights,
            checkpoint_digest=check_digest(expect_str(checkpoint["digest"])) if checkpoint["digest"] else "",
            notice=expect_str(checkpoint["notice"]),
        )
        manifest = Manifest(
            identity=BuildIdentity(
                **{key: expect_str(identity[key]) for key in _TEXTS},
                format_version=expect_type(identity["format_version"], int),
            ),
            components=(built,),
            inline={},
            server_version=expect_str(document["server_version"]),
            server=check_digest(expect_str(document["server"])),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"a field is missing or has another type: {error}") from None
    return built, manifest
