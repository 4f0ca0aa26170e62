"""Keys: what a build is, so that equal builds are made once."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from blake3 import blake3

import model_factory
from model_factory.config import ResolvedConfig
from model_factory.digest import digest_of
from model_factory.documents import FORMAT, encode_document

_SERVER = Path(__file__).parent
_CORE = Path(model_factory.__file__).parent
# What decides about weights, descriptors and programs. Not the package version: most changes to it change no model.
_CODE = (
    _SERVER / "constructor",
    _SERVER / "recorder.py",
    _SERVER / "symbols.py",
    _SERVER / "portable.py",
    _CORE / "graph",
    _CORE / "descriptor",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """What builds: part of every key."""

    name: str
    """Of the backend."""
    code_digest: str
    """Over its source files."""
    torch_version: str
    """As the installed package says, build variant included."""
    device_kind: str
    """``cpu`` or ``cuda``: random numbers differ between the two."""


def builtin_backend(device_kind: str) -> Backend:
    """Identify the built-in backend of this installation; imports no torch."""
    hasher = blake3()
    for root in _CODE:
        for path in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
            hasher.update(f"{path.name}\0".encode())
            hasher.update(path.read_bytes())
    return Backend(
        name="builtin",
        code_digest=hasher.hexdigest(),
        torch_version=metadata.version("torch"),
        device_kind=device_kind,
    )


def architecture_key(backend: Backend, config: ResolvedConfig, dtype: str) -> str:
    """Key of everything about a build that the seed does not change: descriptor and programs."""
    return _key("architecture", backend, config, dtype)


def build_key(backend: Backend, config: ResolvedConfig, dtype: str, seed: int) -> str:
    """Key of a whole build: equal keys, equal bytes. ``seed`` is the component's own."""
    return _key("build", backend, config, dtype, seed)


def call_key(
    backend: Backend, config: ResolvedConfig, dtype: str, path: str, call: bytes, training: dict[str, bool]
) -> str:
    """Key of the program of one module for one call."""
    return _key("call", backend, config, dtype, path, digest_of(call), training)


def _key(kind: str, backend: Backend, config: ResolvedConfig, *rest: object) -> str:
    identity = [kind, FORMAT, backend.name, backend.code_digest, backend.torch_version, backend.device_kind]
    return digest_of(encode_document([*identity, config.digest, config.order_digest, *rest]))
