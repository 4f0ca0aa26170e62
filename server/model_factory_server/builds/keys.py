"""Keys: what a build is, so that equal builds are made once.

A key of this module is the base of a final key: :func:`with_files` adds the names and contents of the files that the
job of the key reads, which nobody knows before the first job. So under :func:`reads_key` of the base the store has the
paths that the last job read; a lookup hashes these files as they are now, and finds a result only where one was made
from just these contents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from model_factory.config import ResolvedConfig
from model_factory.digest import digest_of
from model_factory.documents import FORMAT, encode_document
from model_factory.identity import BuildReference
from model_factory_server.backends.identity import BackendIdentity
from model_factory_server.worker.read_files import ReadFile, encode_files


def architecture_key(backend: BackendIdentity, config: ResolvedConfig, dtype: str) -> str:
    """Key of everything about a build that the seed does not change: descriptor and programs."""
    return _key("architecture", backend, config, dtype)


def outline_key(backend: BackendIdentity, config: ResolvedConfig, dtype: str) -> str:
    """Key of a descriptor from a build without tensors, which says of source modules only that they are some."""
    return _key("outline", backend, config, dtype)


def build_key(backend: BackendIdentity, config: ResolvedConfig, dtype: str, seed: int) -> str:
    """Key of a whole build: equal keys, equal bytes. ``seed`` is the component's own."""
    return _key("build", backend, config, dtype, seed)


def call_key(built: BuildReference, dtype: str, path: str, call: bytes, training: Mapping[str, bool]) -> str:
    """Key of the program of one module for one call; ``built`` is the build of the module, whatever its seed."""
    parts = ["call", built.architecture_key, built.descriptor.digest, built.dtype]
    return digest_of(encode_document([*parts, dtype, path, digest_of(call), dict(training)]))


def reads_key(base: str) -> str:
    """Key of the paths that jobs of a key are known to read."""
    return digest_of(encode_document(["reads", base]))


def with_files(base: str, files: Sequence[ReadFile]) -> str:
    """Key of a result that was made from files; ``base`` is the key of everything else."""
    return digest_of(encode_document(["files", base, encode_files(files)])) if files else base


def _key(kind: str, backend: BackendIdentity, config: ResolvedConfig, *rest: object) -> str:
    identity = [kind, FORMAT, backend.name, backend.code_digest, backend.torch_version, backend.device_kind]
    return digest_of(encode_document([*identity, config.digest, config.order_digest, *rest]))
