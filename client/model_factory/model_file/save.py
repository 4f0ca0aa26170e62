"""``save``: writes models with descriptors, programs, weights and source to one file, or to a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model_factory.config.request import SINGLE
from model_factory.descriptor.architecture import Architecture
from model_factory.descriptor.codec import encode_descriptor, encode_programs
from model_factory.descriptor.weights import WEIGHTS_NAME, write_documents_and_weights
from model_factory.digest import Blob
from model_factory.errors import NotPortableError
from model_factory.limits import MAX_COMPONENTS, MAX_DOCUMENT_BYTES
from model_factory.model_file.index import INDEX, Index, SavedComponent, encode_index
from model_factory.model_file.live import PortableModel, portable_model
from model_factory.store.staging import whole_file
from model_factory.wording import is_printable, quoted

FILE_SUFFIXES = (".mf", ".safetensors")
"""Suffixes of one file; every other path is a folder."""

CONFIG_NAME = "config.json"
"""Name of the description in a folder, for people and for the Hugging Face Hub."""


def save(models: nn.Module | Mapping[str, nn.Module], path: str | PathLike[str]) -> None:
    """Write models from any factory, as the models are now, for :func:`model_factory.load`.

    The file has descriptors, programs, current weights, flags, and source code if a module needs source. The file is a
    safetensors file: every reader of safetensors finds the tensors by the names of the state dict. Gradients and
    optimisers are not part of a file. A module that a trainer has changed is written with the changes, or refused.

    Args:
        models: A module, or modules by name. ``DistributedDataParallel`` and ``torch.compile`` around a module are left
            out.
        path: A file with the suffix ``.mf`` or ``.safetensors``; or a folder, which gets the same file as
            ``model.safetensors``, and a ``config.json``. An existing file is replaced after the new file is whole.

    Raises:
        NotPortableError: a module has code of this process: a hook, a replaced method or class. The message has the
            module and the remedy. Nothing is written.
        StoreError: the file cannot be written; an existing file stays.
        FormatError: the descriptions of the models are larger than a file allows.

    Example:
        >>> from model_factory import load, save
        >>> policy = factory.build(model_cfg)
        >>> save(policy, "policy.mf")
        >>> again = load("policy.mf")
        >>> torch.equal(policy(torch.ones(2, 8)), again(torch.ones(2, 8)))
        True
    """
    single = isinstance(models, nn.Module)
    named: Mapping[str, nn.Module] = {SINGLE: models} if isinstance(models, nn.Module) else models
    _check_names(named)
    parts = {name: _portable(name, model) for name, model in named.items()}
    file = _Contents(parts, single=single)
    place = Path(path)
    with ExitStack() as stack:
        if place.suffix not in FILE_SUFFIXES:
            config = stack.enter_context(whole_file(place / CONFIG_NAME))
            config.write(file.description())
            place /= WEIGHTS_NAME
        target = stack.enter_context(whole_file(place))
        write_documents_and_weights(target, file.tensors, file.metadata)


def _check_names(models: Mapping[str, Any]) -> None:
    if not 0 < len(models) <= MAX_COMPONENTS:
        raise ValueError(f"{len(models)} models to save; a file has 1 to {MAX_COMPONENTS}")
    for name, model in models.items():
        if not isinstance(model, nn.Module):
            raise TypeError(f"a model is an nn.Module, and {quoted(name)} is a {type(model).__name__}")
        if not isinstance(name, str) or not name or not is_printable(name):
            raise ValueError(f"{quoted(name)} is not the name of a model: a text of visible characters")


def _portable(name: str, model: nn.Module) -> PortableModel:
    try:
        return portable_model(model)
    except NotPortableError as error:
        raise NotPortableError(f"{quoted(name)} cannot be saved: {error}") from error


class _Contents:
    """The parts of a file."""

    def __init__(self, models: Mapping[str, PortableModel], *, single: bool) -> None:
        self._models = models
        self._documents: dict[str, str] = {}  # by digest
        components = tuple(self._component(name, model) for name, model in models.items())
        self._index = Index(
            components=components,
            single=single,
            tensors={},
            version=metadata.version("model-factory"),
            torch_version=str(torch.__version__),
        )
        self.tensors: dict[str, torch.Tensor] = {}
        for component, model in zip(components, models.values(), strict=True):
            named = {self._index.prefix(component) + name: tensor for name, tensor in model.tensors.items()}
            twice = named.keys() & self.tensors.keys()
            if twice:
                raise NotPortableError(
                    f"two models have a tensor {quoted(min(twice))}. Remedy: save with another name than "
                    f"{quoted(component.name)}"
                )
            self.tensors |= named

    def metadata(self, digests: Mapping[str, str]) -> dict[str, str]:
        """Return the metadata of the file, for the digests of the tensors."""
        index = Index(
            components=self._index.components,
            single=self._index.single,
            tensors=digests,
            version=self._index.version,
            torch_version=self._index.torch_version,
        )
        return {"format": "pt", INDEX: encode_index(index), **self._documents}

    def description(self) -> bytes:
        """Return the text of ``config.json``: a description for people; the reader of a folder ignores the text."""
        architectures = {name: Architecture(model.descriptor) for name, model in self._models.items()}
        infos = [model.build_info for model in self._models.values()]
        document = {
            "model_type": "model_factory",
            "architectures": [item.modules[0].type for item in architectures.values()],
            "model_factory_version": self._index.version,
            "torch_version": self._index.torch_version,
            "models": {
                name: {
                    "parameters": item.parameters,
                    "bytes": item.bytes,
                    "build_info": None if info is None else info.as_dict(),
                }
                for (name, item), info in zip(architectures.items(), infos, strict=True)
            },
        }
        return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()

    def _component(self, name: str, model: PortableModel) -> SavedComponent:
        if model.bundle is not None:
            self._add(model.bundle)
        return SavedComponent(
            name=name,
            descriptor=self._add(encode_descriptor(model.descriptor)),
            programs=self._add(encode_programs(model.programs)),
            build_info=model.build_info,
        )

    def _add(self, document: bytes) -> Blob:
        if len(document) > MAX_DOCUMENT_BYTES:
            raise NotPortableError(
                f"a description of {len(document)} bytes; at most {MAX_DOCUMENT_BYTES} are allowed. Remedy: save parts "
                "of the model as models of their own"
            )
        blob = Blob.of(document)
        self._documents[blob.digest] = document.decode()
        return blob
