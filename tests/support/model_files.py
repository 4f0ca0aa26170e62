"""Model files with the documents of a test, valid or not; all digests match."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from model_factory.descriptor.codec import encode_programs
from model_factory.descriptor.weights import write_documents_and_weights
from model_factory.digest import Blob
from model_factory.model_file.index import INDEX, Index, SavedComponent, encode_index


def write_model_file(
    path: Path, descriptor: bytes, tensors: Mapping[str, torch.Tensor], programs: bytes = encode_programs(())
) -> None:
    """Write a file of a single model."""
    component = SavedComponent(
        name="model", descriptor=Blob.of(descriptor), programs=Blob.of(programs), build_info=None
    )

    def metadata(digests: Mapping[str, str]) -> dict[str, str]:
        index = Index(components=(component,), single=True, tensors=digests, version="0.1.0", torch_version="2.13.0")
        documents = {Blob.of(data).digest: data.decode() for data in (descriptor, programs)}
        return {INDEX: encode_index(index), **documents}

    with path.open("wb") as file:
        write_documents_and_weights(file, tensors, metadata)
