"""Keys of builds: equal builds have equal keys, and are made once.

The keys of this module are base keys. The final key also covers the paths and contents of the files read by the job.
No server knows these files before the first job. Therefore the store keeps the paths read by the last job, under
:func:`reads_key` of the base key. A lookup hashes the current content of these files, and finds a result only if a job
has read exactly this content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from model_factory.digest import digest_of
from model_factory.documents import FORMAT, encode_document
from model_factory.identity import BuildReference
from model_factory_server.backends.identity import BackendIdentity
from model_factory_server.builds.checked_config import CheckedConfig
from model_factory_server.worker.files.read_files import ReadFile, encode_files


def architecture_key(backend: BackendIdentity, config: CheckedConfig, dtype: str) -> str:
    """Return the key of descriptor and programs, which do not depend on the seed."""
    return _key("architecture", backend, config, dtype)


def outline_key(backend: BackendIdentity, config: CheckedConfig, dtype: str) -> str:
    """Return the key of an outline: a descriptor made without tensors, and without a source bundle."""
    return _key("outline", backend, config, dtype)


def build_key(backend: BackendIdentity, config: CheckedConfig, dtype: str, seed: int) -> str:
    """Return the key of a whole build; ``seed`` is the component's own. Equal keys mean equal bytes."""
    return _key("build", backend, config, dtype, seed)


def call_key(built: BuildReference, dtype: str, path: str, call: bytes, training: Mapping[str, bool]) -> str:
    """Return the key of a module's program for a call; ``built`` is the module's build, under any seed."""
    parts = ["call", built.architecture_key, built.descriptor.digest, built.dtype]
    return digest_of(encode_document([*parts, dtype, path, digest_of(call), dict(training)]))


def reads_key(base_key: str) -> str:
    """Return the key of the list of paths read by the last job of a base key."""
    return digest_of(encode_document(["reads", base_key]))


def final_key(base_key: str, files: Sequence[ReadFile]) -> str:
    """Return the key of a result made from these files; without files, the base key.

    Example:
        >>> final_key("base", ())
        'base'
        >>> len(final_key("base", [ReadFile("/data/a", "")]))
        64
    """
    return digest_of(encode_document(["files", base_key, encode_files(files)])) if files else base_key


def _key(kind: str, backend: BackendIdentity, config: CheckedConfig, *rest: object) -> str:
    identity = [kind, FORMAT, backend.name, backend.code_digest, backend.torch_version, backend.device_kind]
    # Replicas with one store may map a name to different files; the contents of the files are in the final key.
    named = [["checkpoint", backend.checkpoints.get(config.checkpoint, "")]] if config.checkpoint else []
    return digest_of(encode_document([*identity, config.digest, config.order_digest, *rest, *named]))
