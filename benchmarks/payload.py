"""The payload of the transfers: a safetensors file of random tensors, and checks of received copies."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from blake3 import blake3

from model_factory.descriptor.weights import write_weights
from model_factory.digest import digest_of_file
from model_factory.store import Blob, Store

TENSORS = 16


@dataclass(frozen=True, kw_only=True)
class Payload:
    """A blob in a store, with the tensors inside."""

    blob: Blob
    """Digest and size."""
    path: Path
    """File of the blob."""
    tensors: dict[str, torch.Tensor]
    """Tensors by name."""

    def check_file(self, path: Path) -> None:
        """Fail unless a file has the bytes of the payload."""
        assert path.stat().st_size == self.blob.size, f"the size of {path} differs from the payload"
        assert digest_of_file(path) == self.blob.digest, f"the bytes of {path} differ from the payload"

    def check_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Fail unless names and values are the ones of the payload."""
        assert dict(tensors).keys() == self.tensors.keys(), "the names differ from the payload"
        for name, tensor in self.tensors.items():
            assert torch.equal(tensors[name], tensor), f"tensor {name} differs from the payload"


def make_payload(store: Store, size: int) -> Payload:
    """Write a payload of about ``size`` bytes into a store."""
    count = size // TENSORS // 4
    tensors = {f"tensor{index:02}": torch.randn(count) for index in range(TENSORS)}
    with store.stage() as (file, publish):
        blob = Blob(*write_weights(file, tensors))
        path = publish(blob)
    return Payload(blob=blob, path=path, tensors=tensors)


def land(path: Path, receive: Callable[[BinaryIO], None]) -> None:
    """Receive into a file like the node cache: flush, rename, flush the folder."""
    staging = path.with_name(f"{path.name}.part")
    with staging.open("wb", buffering=0) as file:
        receive(file)
        os.fsync(file.fileno())
    staging.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def digest_of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a digest over names and bytes, to compare results of two processes."""
    hasher = blake3(max_threads=blake3.AUTO)
    for name, tensor in sorted(tensors.items()):
        hasher.update(name.encode())
        if tensor.numel():
            hasher.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
