"""The identity of a build, and the manifest with a build's results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model_factory.digest import Blob


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildIdentity:
    """Software and device that a server builds with."""

    backend: str
    """Name of the backend."""
    code_digest: str
    """Digest over the backend's source files and the operator's plug-ins."""
    torch_version: str
    """Version of torch, build variant included."""
    device_kind: str
    """``cpu`` or ``cuda``."""
    format_version: int
    """Version of the descriptor, programs and manifest formats."""

    def differences(self, other: BuildIdentity) -> list[str]:
        """List the fields that differ from another identity, with both values.

        Example:
            >>> ours = BuildIdentity(
            ...     backend="builtin", code_digest="a1", torch_version="2.6", device_kind="cpu", format_version=1
            ... )
            >>> import dataclasses
            >>> ours.differences(dataclasses.replace(ours, torch_version="2.7"))
            ["torch '2.6' is '2.7'"]
        """
        names = {
            "backend": "backend",
            "code_digest": "code",
            "torch_version": "torch",
            "device_kind": "device",
            "format_version": "format",
        }
        pairs = ((name, getattr(self, field), getattr(other, field)) for field, name in names.items())
        return [f"{name} {_shortened(own)!r} is {_shortened(others)!r}" for name, own, others in pairs if own != others]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReference:
    """Reference to the build of a module."""

    identity: BuildIdentity
    """Software and device of the server."""
    architecture_key: str
    """Identity of descriptor and programs, from the server of the build."""
    descriptor: Blob
    """The module tree."""
    dtype: str
    """Dtype to which the build cast floating tensors; empty: no cast."""
    seed: int
    """Seed of the whole request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltComponent:
    """The blobs of one built component."""

    name: str
    """Name of the component in the request."""
    architecture_key: str
    """Identity of descriptor and programs."""
    descriptor: Blob
    """The module tree, as a JSON document."""
    programs: Blob
    """The recorded programs, as a JSON document."""
    weights: Blob
    """Parameters and buffers, as a safetensors file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The result of a build on a server."""

    identity: BuildIdentity
    """Software and device of the server, at the time of the response."""
    components: tuple[BuiltComponent, ...]
    """In the order of the request."""
    inline: Mapping[str, bytes]
    """Content of small blobs by digest, not verified yet."""


def _shortened(value: object) -> object:
    """Return the beginning of a long text, for a message."""
    return f"{value[:12]}..." if isinstance(value, str) and len(value) > 40 else value
