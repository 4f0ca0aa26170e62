"""``Checkpoint``: a file with the first weights of a model."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import nn

from model_factory.checkpoint.state_file import read_state
from model_factory.config.request import Component
from model_factory.descriptor.tree import Descriptor, TensorNode
from model_factory.errors import ConfigError, FormatError
from model_factory.program.torch_names import torch_dtype
from model_factory.protocol import Weights
from model_factory.wording import listed, nearest, quoted

log = logging.getLogger(__name__)

_SHOWN = 5
"""Tensors of other shapes in an error."""


class Checkpoint:
    """A file with the first weights of a model, for ``build(model_cfg, weights=...)``.

    A path in the place of a ``Checkpoint`` is a checkpoint of a whole model.

    >>> from safetensors.torch import save_file
    >>> save_file({f"policy.{name}": value for name, value in factory.build(model_cfg).state_dict().items()}, "old.st")
    >>> checkpoint = Checkpoint("old.st", prefixes={"policy.": ""})
    >>> model = factory.build(model_cfg, weights=checkpoint)
    >>> checkpoint.missing, checkpoint.unexpected
    ((), ())
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        prefixes: Mapping[str, str] | None = None,
        strict: bool = True,
        entry: str | None = None,
    ) -> None:
        """Name a file; the file is read by each build.

        Args:
            path: A safetensors file, a model file, a folder with a ``model.safetensors`` or with the parts of
                ``model.safetensors.index.json``, or a file of ``torch.save`` with tensors only.
            prefixes: Beginnings of names in the file, and their replacements in the model. Only tensors with such a
                beginning are used; the longest beginning counts. By default all tensors, with unchanged names.
            strict: Whether missing and unexpected tensors are errors. Otherwise missing tensors keep the weights of the
                build.
            entry: Key of the state dict in a file of ``torch.save`` with more than a state dict.
        """
        self.path = Path(path)
        self.prefixes = {"": ""} if prefixes is None else dict(prefixes)
        self.strict = strict
        self.entry = entry
        self.missing: tuple[str, ...] = ()
        """Tensors of the model that the file lacks, after a build."""
        self.unexpected: tuple[str, ...] = ()
        """Tensors of the file that the model lacks, after a build."""

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r})"

    def match(self, targets: Mapping[str, Target]) -> dict[Hashable, torch.Tensor]:
        """Return the tensors of the file by the key of the target, in the target's shape and dtype.

        Raises:
            FormatError: a tensor has another shape; or, if strict, a tensor is missing or unexpected.
            StoreError: the file cannot be read.
        """
        tensors = self.read()
        found: dict[Hashable, torch.Tensor] = {}
        wrong = []
        for name, tensor in tensors.items():
            target = targets.get(name)
            if target is None:
                continue
            if target.shape is None or tuple(tensor.shape) != target.shape:
                shape = "no shape before the first call" if target.shape is None else list(target.shape)
                wrong.append(f"{name}: {list(tensor.shape)} in the file, {shape} in the model")
                continue
            found[target.key] = _plain(tensor, target)
        if wrong:
            raise FormatError(
                f"{self.path}: {len(wrong)} tensors of other shapes: {'; '.join(wrong[:_SHOWN])}. Remedy: build from a "
                "config with the sizes of the checkpoint, or leave the tensors out with prefixes"
            )
        needed: dict[Hashable, str] = {}
        for name, target in targets.items():
            if target.is_in_state:
                needed.setdefault(target.key, name)
        self.compare(
            [name for key, name in needed.items() if key not in found],
            [name for name in tensors if name not in targets],
        )
        return found

    def read(self, *, writable: bool = True) -> dict[str, torch.Tensor]:
        """Return the tensors of the file, by the names in the model; without ``writable`` for reading only.

        Raises:
            FormatError: the file is not a state dict, or two tensors become one.
            StoreError: the file cannot be read.
        """
        by_length = sorted(self.prefixes, key=len, reverse=True)
        renamed: dict[str, torch.Tensor] = {}
        for name, tensor in read_state(self.path, self.entry, writable=writable).items():
            beginning = next((item for item in by_length if name.startswith(item)), None)
            if beginning is None:
                continue
            new = self.prefixes[beginning] + name.removeprefix(beginning)
            if new in renamed:
                raise FormatError(f"{self.path}: two tensors become {quoted(new)}. Remedy: correct prefixes")
            renamed[new] = tensor
        return renamed

    @property
    def difference(self) -> str:
        """The missing and unexpected tensors in words, after a build; empty without any."""
        parts = [
            f"{what}: {listed(names)} ({len(names)})"
            for what, names in (("missing", self.missing), ("unexpected", self.unexpected))
            if names
        ]
        return "; ".join(parts)

    def compare(self, missing: Iterable[str], unexpected: Iterable[str]) -> None:
        """Keep the names of missing and unexpected tensors.

        Raises:
            FormatError: there are any, and the checkpoint is strict.
        """
        self.missing, self.unexpected = tuple(missing), tuple(unexpected)
        if self.strict and self.difference:
            raise FormatError(
                f"{self.path} does not fit the model; {self.difference}. Remedy: map the beginnings of names with "
                "prefixes, or allow a part of the tensors with strict off"
            )

    def log_difference(self) -> None:
        """Log a line of level WARNING about missing and unexpected tensors, if there are any."""
        if self.difference:
            log.warning("%s: %s", self.path, self.difference)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A tensor of a model under one of its names."""

    key: Hashable
    """Identity of the tensor."""
    shape: tuple[int, ...] | None
    """Shape; None before a lazy module's first call."""
    dtype: torch.dtype
    """Dtype in the model."""
    is_in_state: bool
    """Whether the name is in the state dict."""


def checkpoints(weights: Weights, names: Iterable[str], *, single: bool) -> dict[str, Checkpoint]:
    """Return the checkpoint of each model with one.

    Raises:
        ConfigError: ``weights`` does not fit the request.

    Example:
        >>> checkpoints({"actor": "actor.safetensors"}, ["actor", "critic"], single=False)
        {'actor': Checkpoint('actor.safetensors')}
    """
    known = list(names)
    if weights is None:
        return {}
    if isinstance(weights, Mapping):
        if single:
            raise ConfigError("weights is a mapping, and the request is for a single model. Remedy: pass a path")
        for name in weights:
            if name not in known:
                raise ConfigError(f"weights for {quoted(name)}; the models are {listed(known)}{nearest(name, known)}")
        return {name: _checkpoint(item) for name, item in weights.items()}
    if not single:
        raise ConfigError(f"weights for one of {listed(known)}. Remedy: pass a mapping from names to paths")
    return {known[0]: _checkpoint(weights)}


def _checkpoint(item: str | PathLike[str] | Checkpoint) -> Checkpoint:
    return item if isinstance(item, Checkpoint) else Checkpoint(item)


def has_no_random_weights(component: Component, checkpoint: Checkpoint | None) -> bool:
    """Whether every weight of a component comes from a checkpoint, of the trainer or of the operator's catalogue."""
    named = component.config.model.weights
    return (checkpoint is not None and checkpoint.strict) or (named is not None and named.strict)


def described_targets(descriptor: Descriptor) -> dict[str, Target]:
    """Return the tensors of a described model by every name of a state dict, and the other tensors by their names.

    Example:
        >>> from model_factory.describe.describe import describe
        >>> [(name, target.shape) for name, target in described_targets(describe(nn.Linear(3, 2))).items()]
        [('weight', (2, 3)), ('bias', (2,))]
    """
    nodes = descriptor.tensors
    found = {name: _target(nodes[index], is_in_state=True) for name, index in _state(descriptor, 0, "")}
    others = {node.name: _target(node, is_in_state=False) for node in nodes if node.name not in found}
    return found | others


def _state(descriptor: Descriptor, module: int, prefix: str) -> Iterator[tuple[str, int]]:
    """Yield the names of a state dict in order, with positions in the table of tensors."""
    node = descriptor.modules[module]
    persistent = [(name, index) for name, index, is_persistent in node.buffers if is_persistent]
    for name, index in (*node.parameters, *persistent):
        if index is not None:
            yield prefix + name, index
    for name, child in node.children:
        if child is not None:
            yield from _state(descriptor, child, f"{prefix}{name}.")


def _target(node: TensorNode, *, is_in_state: bool) -> Target:
    return Target(key=node.name, shape=node.shape, dtype=torch_dtype(node.dtype), is_in_state=is_in_state)


def load_into(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the tensors of a checkpoint into a module of this process.

    Raises:
        FormatError: the checkpoint does not fit; the module is unchanged.
    """
    state = module.state_dict(keep_vars=True)
    targets = {
        name: Target(key=id(item), shape=_shape(item), dtype=item.dtype, is_in_state=True)
        for name, item in state.items()
    }
    by_key = {id(item): item for item in state.values()}
    with torch.no_grad():
        for key, tensor in checkpoint.match(targets).items():
            by_key[key].copy_(tensor)  # type: ignore[index]  # keys are of this function
    checkpoint.log_difference()


def _shape(tensor: torch.Tensor) -> tuple[int, ...] | None:
    return None if nn.parameter.is_lazy(tensor) else tuple(tensor.shape)


def _plain(tensor: torch.Tensor, target: Target) -> torch.Tensor:
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise FormatError(f"a tensor of the checkpoint has the layout {tensor.layout}. Remedy: call to_dense()")
    return tensor.detach().to(target.dtype)
