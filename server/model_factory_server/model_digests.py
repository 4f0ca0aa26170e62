"""Digests of a model in this process: the digests that a server would give for the same build."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from model_factory.config import ModelConfig
from model_factory.describe.describe import describe, named_tensors
from model_factory.descriptor.codec import encode_descriptor, encode_programs
from model_factory.descriptor.tree import Descriptor
from model_factory.descriptor.weights import write_weights
from model_factory.digest import digest_of
from model_factory.errors import FormatError, NotPortableError
from model_factory.program.torch_names import torch_dtype
from model_factory_server.export.exporter import export_model
from model_factory_server.export.source.bundling import Root


class ModelDigests(NamedTuple):
    """Digests of the results of a build; ``None`` where unknown."""

    descriptor: str | None = None
    """Digest of the module tree."""
    programs: str | None = None
    """Digest of the recorded programs."""
    weights: str | None = None
    """Digest of the weights file."""


def described_digests(model: nn.Module) -> ModelDigests:
    """Return the digests that need no recording, in about the time of a read of the weights.

    The descriptor is the descriptor of a server, except for a block that a server sends as source, and for a block
    whose forward assigns attributes.

    Example:
        >>> digests = described_digests(nn.Linear(2, 2))
        >>> len(digests.descriptor), digests.programs
        (64, None)
    """
    try:
        descriptor = describe(model)
        return ModelDigests(
            descriptor=digest_of(encode_descriptor(descriptor)), weights=_weights_digest(model, descriptor)
        )
    except (FormatError, NotPortableError):  # no server could send this model
        return ModelDigests()


def recorded_digests(model: nn.Module, config: ModelConfig, roots: Sequence[Root], dtype: str) -> ModelDigests:
    """Return all digests; recording takes as long as a first build on a server.

    Args:
        model: A model that nobody else uses, before the cast: recordings may leave attributes, and the model is cast.
        config: The config of the model.
        roots: Folders with code allowed to be sent as source.
        dtype: Dtype of floating tensors after the cast; empty: no cast.

    Raises:
        NotPortableError: a block can neither be recorded nor sent as source.
        FormatError: a tensor has no place in a weights file.

    Example:
        >>> from model_factory.config import resolve_mapping
        >>> document = {"schema_version": 1, "model": {"sequential": {"layers": [{"_type_": "nn.ReLU"}]}}}
        >>> len(recorded_digests(nn.ReLU(), resolve_mapping(document, env={}).model, (), "").programs)
        64
    """
    exported = export_model(model, config, roots)
    if dtype:
        model.to(dtype=torch_dtype(dtype))
    descriptor = describe(model, exported.classes, exported.bundle) if dtype else exported.descriptor
    return ModelDigests(
        descriptor=digest_of(encode_descriptor(descriptor)),
        programs=digest_of(encode_programs(exported.programs)),
        weights=_weights_digest(model, descriptor),
    )


def _weights_digest(model: nn.Module, descriptor: Descriptor) -> str:
    with Path(os.devnull).open("wb", buffering=0) as nowhere:
        digest, _ = write_weights(nowhere, named_tensors(model, descriptor))
    return digest
