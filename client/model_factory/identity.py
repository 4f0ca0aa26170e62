"""The identity of a build, the manifest with a build's results, and the record that every built model carries."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model_factory.digest import Blob, check_digest
from model_factory.documents import expect_type
from model_factory.errors import FormatError, ModelFactoryError
from model_factory.limits import MAX_NAME_CHARS
from model_factory.wording import html_table, is_printable, printable, shortened

if TYPE_CHECKING:
    from torch import nn

_MAX_SHOWN_CHARS = MAX_NAME_CHARS // 10  # an escape has at most ten characters

_ATTRIBUTE = "build_info"
_WRAPPED = ("module", "_orig_mod")  # names of the wrapped model in DistributedDataParallel, FSDP and torch.compile


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
    build_key: str
    """Identity of the whole build: equal keys mean equal bytes."""
    architecture_key: str
    """Identity of descriptor and programs."""
    descriptor: Blob
    """The module tree, as a JSON document."""
    programs: Blob
    """The recorded programs, as a JSON document."""
    weights: Blob
    """Parameters and buffers, as a safetensors file."""
    checkpoint_digest: str = ""
    """Digest of the checkpoint that the config names; empty without one."""
    notice: str = ""
    """Missing and unexpected tensors of the checkpoint, in words; empty without any."""
    warnings: tuple[str, ...] = ()
    """Warnings of the constructors; unknown for a build from the node cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The result of a build on a server."""

    identity: BuildIdentity
    """Software and device of the server, at the time of the response."""
    components: tuple[BuiltComponent, ...]
    """In the order of the request."""
    inline: Mapping[str, bytes]
    """Content of small blobs by digest, not verified yet."""
    server_version: str = ""
    """Version of the server's package; empty from a server that does not say."""
    server: str = ""
    """Digest of the server's identity, as the client has observed the server at the response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildInfo:
    """Everything that reproduces a build, for logs of experiments and for checkpoints.

    Every built model has the attribute ``build_info``. The attribute is plain data: the state dict does not contain the
    attribute, and copies and pickles of the model do. A field is None where the value is unknown.

    >>> model = factory.build(model_cfg)
    >>> info = BuildInfo.of(model)
    >>> info == model.build_info
    True
    >>> info.component, info.backend
    ('model', 'builtin')
    >>> import json
    >>> BuildInfo.from_dict(json.loads(json.dumps(info.as_dict()))) == info
    True
    """

    component: str
    """Name of the model in ``model_cfg``; ``model`` for a single model."""
    seed: int
    """Seed of the whole request; the component's own seed follows from the seed and the name."""
    dtype: str
    """Dtype of floating tensors by the name in torch; empty: no cast."""
    config_digest: str
    """Digest of the resolved config, for any order of keys; as printed by ``model-factory validate``."""
    build_key: str | None
    """Identity of the build: equal keys mean equal bytes. Unknown for a model built in this process, if constructors
    may read files."""
    architecture_key: str | None
    """Identity of descriptor and programs, which do not depend on the seed."""
    descriptor: str | None
    """Digest of the module tree; unknown for a model that no server could send."""
    programs: str | None
    """Digest of the recorded programs; unknown for a model built in this process without a lock or all digests."""
    weights: str | None
    """Digest of the weights file of the build, before any training; unknown for a model with a checkpoint of the
    trainer."""
    backend: str
    """Name of the backend."""
    code_digest: str
    """Digest over the backend's source files and the operator's plug-ins."""
    device_kind: str
    """Device of the initialisation: ``cpu`` or ``cuda``."""
    format_version: int
    """Version of the descriptor, programs and manifest formats."""
    torch_version: str
    """Version of torch that built the model, build variant included."""
    server_version: str | None
    """Version of the package model-factory-server that built the model."""
    client_torch_version: str
    """Version of torch in the process of the trainer."""
    client_version: str
    """Version of the package model-factory in the process of the trainer."""
    checkpoint: str | None = None
    """Name of the checkpoint that the config names as weights, in the catalogue of the server."""
    checkpoint_digest: str | None = None
    """Digest of this checkpoint; for a checkpoint in one file, the digest of the file."""

    def __deepcopy__(self, _memo: Mapping[int, Any]) -> BuildInfo:
        return self

    def __str__(self) -> str:
        known = {
            "build": self.build_key,
            "config": self.config_digest,
            "descriptor": self.descriptor,
            "programs": self.programs,
            "weights": self.weights,
            "checkpoint": self.checkpoint_digest,
            "code": self.code_digest,
        }
        digests = ", ".join(f"{name} {value[:12]}" for name, value in known.items() if value)
        made = f"backend {self.backend} on {self.device_kind}, torch {self.torch_version}"
        return f"{self.component}: seed {self.seed}, {digests}, {made}, server {self.server_version or 'unknown'}"

    def _repr_html_(self) -> str:
        return html_table(("build info", self.component), ((name, str(item)) for name, item in self.as_dict().items()))

    @staticmethod
    def of(model: nn.Module) -> BuildInfo:
        """Return the record of a built model, also inside of ``DistributedDataParallel`` or ``torch.compile``.

        Raises:
            ModelFactoryError: no factory has returned the module; a layer of a built model is an example.
        """
        module: Any = model
        while module is not None:
            info = vars(module).get(_ATTRIBUTE)
            if isinstance(info, BuildInfo):
                return info
            children = vars(module).get("_modules", {})
            module = next((children[name] for name in _WRAPPED if name in children), None)
        raise ModelFactoryError(
            f"this {type(model).__name__} has no build info. Remedy: pass the model that a factory has returned"
        )

    def attach(self, model: nn.Module) -> None:
        """Set the attribute ``build_info`` of a model; a model with an own attribute of this name keeps the own one."""
        if isinstance(vars(model).get(_ATTRIBUTE), BuildInfo) or not hasattr(model, _ATTRIBUTE):
            vars(model)[_ATTRIBUTE] = self  # past __setattr__, which a model's class may define

    def as_dict(self) -> dict[str, str | int | None]:
        """Return the fields as plain JSON values, for the config of an experiment or for a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> BuildInfo:
        """Read the fields of :meth:`as_dict`; fields of a later version are ignored.

        Only fields with a default may be missing: earlier versions did not have these fields.

        Raises:
            FormatError: a field is missing or has another type, a digest is malformed, or a text is too long.
        """
        given = expect_type(data, dict)
        fields = dataclasses.fields(cls)
        kinds = {item.name: str(item.type) for item in fields}
        missing = [item.name for item in fields if item.name not in given and item.default is dataclasses.MISSING]
        if missing:
            raise FormatError(
                f"build info without {', '.join(missing)}: the record is not whole. Remedy: write the record again "
                "from as_dict() of the build_info of a built model"
            )
        return cls(**{name: _checked(name, kind, given.get(name)) for name, kind in kinds.items()})

    @classmethod
    def of_remote(
        cls,
        built: BuiltComponent,
        manifest: Manifest,
        reference: BuildReference,
        *,
        config_digest: str,
        checkpoint: str | None,
        client_version: str,
        client_torch_version: str,
    ) -> BuildInfo:
        """Return the record of a component that a server has built; texts of the server become printable."""
        identity = manifest.identity
        return cls(
            component=built.name,
            seed=reference.seed,
            dtype=reference.dtype,
            config_digest=config_digest,
            build_key=built.build_key,
            architecture_key=built.architecture_key,
            descriptor=built.descriptor.digest,
            programs=built.programs.digest,
            weights=built.weights.digest,
            backend=_shown(identity.backend),
            code_digest=_shown(identity.code_digest),
            device_kind=_shown(identity.device_kind),
            format_version=identity.format_version,
            torch_version=_shown(identity.torch_version),
            server_version=_shown(manifest.server_version) or None,
            client_torch_version=client_torch_version,
            client_version=client_version,
            checkpoint=checkpoint,
            checkpoint_digest=built.checkpoint_digest or None,
        )


def _shortened(value: object) -> object:
    """Return the beginning of a long text, for a message."""
    return f"{value[:12]}..." if isinstance(value, str) and len(value) > 40 else value


_MAY_BE_UNKNOWN = " | None"
_DIGESTS = frozenset(
    {"config_digest", "build_key", "architecture_key", "descriptor", "programs", "weights", "checkpoint_digest"}
)


def _checked(name: str, kind: str, value: Any) -> Any:
    """Return the value of a field of :class:`BuildInfo` from an untrusted document."""
    if value is None and kind.endswith(_MAY_BE_UNKNOWN):
        return None
    if kind == "int":
        return expect_type(value, int)
    text: str = expect_type(value, str)
    if name in _DIGESTS:
        return check_digest(text)
    if len(text) > MAX_NAME_CHARS or not is_printable(text):
        raise FormatError(f"{name} of build info is not a text of at most {MAX_NAME_CHARS} visible characters")
    return text


def _shown(text: str) -> str:
    return printable(shortened(text, _MAX_SHOWN_CHARS))
