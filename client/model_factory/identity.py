"""What built a module: copied from the manifest of a build, and compared wherever the build is referred to later."""

from __future__ import annotations

from dataclasses import dataclass

from model_factory.digest import Blob


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildIdentity:
    """What a server builds with."""

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
        """Name what differs from another identity, with both values.

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
        return [f"{name} {_short(own)!r} is {_short(others)!r}" for name, own, others in pairs if own != others]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReference:
    """The build that a module comes from."""

    identity: BuildIdentity
    """What the server built with."""
    architecture_key: str
    """Identity of descriptor and programs, as the server of the build gave it."""
    descriptor: Blob
    """The module tree."""
    dtype: str
    """What floating tensors were cast to by the build; empty: left."""
    seed: int
    """Seed of the whole request."""


def _short(value: object) -> object:
    """A value that fits into a message: of a long text the beginning."""
    return f"{value[:12]}..." if isinstance(value, str) and len(value) > 40 else value
