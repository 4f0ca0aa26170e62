"""The payload of the transfers: one safetensors file of random tensors, and checks that it arrived."""

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
    """A blob in a store, and what it is made of."""

    blob: Blob
    """Its identity."""
    path: Path
    """Where it lies."""
    tensors: dict[str, torch.Tensor]
    """The tensors it holds."""

    def check_file(self, path: Path) -> None:
        """Fail unless a file has the payload's bytes."""
        assert path.stat().st_size == self.blob.size, f"{path} has another size than the payload"
        assert digest_of_file(path) == self.blob.digest, f"{path} has other bytes than the payload"

    def check_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Fail unless these are the payload's tensors."""
        assert dict(tensors).keys() == self.tensors.keys(), "other tensors than the payload's"
        for name, tensor in self.tensors.items():
            assert torch.equal(tensors[name], tensor), f"tensor {name} has other values than the payload's"


def make_payload(store: Store, size: int) -> Payload:
    """Write a payload of about ``size`` bytes into a store."""
    count = size // TENSORS // 4
    tensors = {f"tensor{index:02}": torch.randn(count) for index in range(TENSORS)}
    with store.stage() as (file, publish):
        blob = Blob(*write_weights(file, tensors))
        path = publish(blob)
    return Payload(blob=blob, path=path, tensors=tensors)


def land(path: Path, receive: Callable[[BinaryIO], None]) -> None:
    """Receive into a file as a cache does: flushed to disk, then renamed, the rename flushed."""
    staging = path.with_name(f"{path.name}.part")
    with staging.open("wb", buffering=0) as file:
        receive(file)
        os.fsync(file.fileno())
    staging.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def digest_of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Digest over names and bytes, for results in another process."""
    hasher = blake3(max_threads=blake3.AUTO)
    for name, tensor in sorted(tensors.items()):
        hasher.update(name.encode())
        if tensor.numel():
            hasher.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
