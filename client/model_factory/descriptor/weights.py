"""Weights: one safetensors file per component.

Our own writer, for what the library's lacks: one pass over the tensors (written and hashed as they lie, with no second
copy in memory), the order of the descriptor, and data that starts on a 64-byte boundary, largest alignment first, so
that mapped tensors are aligned as freshly allocated ones are and kernels compute bit-identical results.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from typing import BinaryIO

import torch
from blake3 import blake3
from safetensors import SafetensorError, safe_open

from model_factory.errors import FormatError
from model_factory.landing import WriteBack

ALIGNMENT = 64

DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
}
"""What safetensors has a name for."""

_BY_NAME = {name: dtype for dtype, name in DTYPES.items()}


def write_weights(file: BinaryIO, tensors: Mapping[str, torch.Tensor]) -> tuple[str, int]:
    """Write tensors as a safetensors file; return its digest and size in bytes.

    Raises:
        FormatError: a tensor's dtype has no written form.
    """
    hasher = blake3(max_threads=blake3.AUTO)
    # Whole multiples of the alignment first, so that all of them stay aligned, then by size of element for the same.
    ordered = sorted(tensors.items(), key=lambda item: (item[1].nbytes % ALIGNMENT != 0, -item[1].itemsize))
    header = _header(ordered)
    disk = WriteBack(file)
    size = len(header)
    file.write(header)
    hasher.update(header)
    for _, tensor in ordered:
        data = _bytes(tensor) if tensor.numel() else b""
        file.write(data)
        hasher.update(data)
        disk.wrote(tensor.nbytes)
        size += tensor.nbytes
    return hasher.hexdigest(), size


def _bytes(tensor: torch.Tensor) -> memoryview:
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data


def _header(ordered: list[tuple[str, torch.Tensor]]) -> bytes:
    entries: dict[str, object] = {}
    offset = 0
    for name, tensor in ordered:
        if tensor.dtype not in DTYPES:
            raise FormatError(f"tensor {name!r} has dtype {tensor.dtype}, which a weights file cannot hold")
        end = offset + tensor.nbytes
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    padded = text + b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(padded).to_bytes(8, "little") + padded


def map_weights(file: BinaryIO, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """Map an open weights file and return its tensors by name.

    On the CPU the tensors lie in a private mapping of the file: nothing is copied until it is written to, and the file
    never changes. Only those that cannot be aligned in it, behind others of odd sizes, are copied at once. The mapping,
    and so the open file with its locks, lives as long as any of the tensors.

    Raises:
        FormatError: the file is not a whole safetensors file.
    """
    name = f"/dev/fd/{file.fileno()}"
    try:
        if torch.device(device).type != "cpu":
            with safe_open(name, framework="pt", device=str(device)) as opened:
                return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  not a mapping
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        tensors: dict[str, torch.Tensor] = {}
        with safe_open(name, framework="numpy") as opened:  # which checks that the tensors cover the file without gaps
            offset = 8 + int.from_bytes(mapping[:8], "little")
            for key in opened.offset_keys():
                about = opened.get_slice(key)
                tensors[key] = tensor = _mapped(mapping, offset, about.get_dtype(), about.get_shape())
                offset += tensor.nbytes
    except (SafetensorError, OSError, ValueError) as error:
        raise FormatError(f"this is not a whole weights file: {error}") from None
    return tensors


def _mapped(mapping: mmap.mmap, offset: int, kind: str, shape: list[int]) -> torch.Tensor:
    dtype = _BY_NAME.get(kind)
    if dtype is None:
        raise FormatError(f"a weights file holds a tensor of the unknown dtype {kind!r}")
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    if offset % ALIGNMENT:  # kernels may add up in another order where the data lies otherwise than they allocate it
        part = bytearray(mapping[offset : offset + count * dtype.itemsize])
        return torch.frombuffer(part, dtype=dtype).view(shape).clone()
    return torch.frombuffer(mapping, dtype=dtype, count=count, offset=offset).view(shape)
