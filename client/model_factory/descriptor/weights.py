"""Weights: one safetensors file per component.

The writer differs from the library's writer in three points: a single pass writes and hashes the tensors without a
second copy in memory; the tensors are in the order of the descriptor; and the data starts on a 64-byte boundary,
largest alignment first. Mapped tensors are therefore aligned like allocated tensors, and kernels compute bit-identical
results.
"""

from __future__ import annotations

import itertools
import json
import math
import mmap
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from model_factory.digest import digest_of, digest_on_all_cores
from model_factory.errors import FormatError, StoreError
from model_factory.store.hashing_writer import HashingWriter

ALIGNMENT = 64

MAX_HEADER_BYTES = 100_000_000
"""Bound of the safetensors library on the length of a header."""

WEIGHTS_NAME = "model.safetensors"
"""Name of the weights in a folder, as on the Hugging Face Hub."""

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
"""Dtypes with a name in safetensors."""

_BY_NAME = {name: dtype for dtype, name in DTYPES.items()}


def write_weights(file: BinaryIO, tensors: Mapping[str, torch.Tensor]) -> tuple[str, int]:
    """Write tensors as a safetensors file, and hash on as many threads as torch uses.

    Returns:
        Digest of the file, and size in bytes.

    Raises:
        FormatError: a dtype has no name in safetensors.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryFile(buffering=0) as file:
        ...     digest, size = write_weights(file, {"weight": torch.ones(2, 2)})
        ...     tensors = map_weights(file)
        >>> size, tensors["weight"].tolist()
        (144, [[1.0, 1.0], [1.0, 1.0]])
    """
    ordered = _ordered(tensors)
    writer = HashingWriter(file, threads=torch.get_num_threads())
    writer.write(_header(ordered))
    for data in _bytes(tensor for _, tensor in ordered):
        writer.write(data)
    return writer.digest(), writer.size


def write_documents_and_weights(
    file: BinaryIO,
    tensors: Mapping[str, torch.Tensor],
    metadata: Callable[[Mapping[str, str]], Mapping[str, str]],
) -> None:
    """Write tensors as a safetensors file with metadata in the header.

    ``metadata`` returns the metadata for the digests of the tensors' bytes, by name. The function is called twice: the
    digests are known after the tensors are written. The length of the metadata must not depend on the digests.

    Raises:
        FormatError: a dtype has no name in safetensors, or the header would be too long.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryFile(buffering=0) as file:
        ...     write_documents_and_weights(file, {"w": torch.ones(2)}, lambda digests: {"digest of w": digests["w"]})
        ...     header = read_header(file)
        >>> len(header.metadata["digest of w"]), [entry.name for entry in header.entries]
        (64, ['w'])
    """
    ordered = _ordered(tensors)
    digests = dict.fromkeys(tensors, digest_of(b""))
    header = _header(ordered, metadata(digests))
    if len(header) > MAX_HEADER_BYTES:
        raise FormatError(
            f"the descriptions of the models take {len(header)} bytes; the header of a safetensors file has at most "
            f"{MAX_HEADER_BYTES}. Remedy: save the models in several files"
        )
    writer = HashingWriter(file)
    writer.write(header)
    for name, tensor in ordered:
        (data,) = [*_bytes([tensor])] or [memoryview(b"")]
        digests[name] = digest_on_all_cores(data)
        writer.write(data)
    final = _header(ordered, metadata(digests))
    assert len(final) == len(header)
    file.seek(0)
    file.write(final)


def offsets(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Return the offsets of tensors in a weights file, in bytes; also for tensors on the meta device.

    Raises:
        FormatError: a dtype has no name in safetensors.
    """
    ordered = _ordered(tensors)
    ends = itertools.accumulate((tensor.nbytes for _, tensor in ordered), initial=len(_header(ordered)))
    return dict(zip((name for name, _ in ordered), ends, strict=False))


def _ordered(tensors: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    # Whole multiples of the alignment first, then by size of element: so that as many tensors as possible are aligned.
    return sorted(tensors.items(), key=lambda item: (item[1].nbytes % ALIGNMENT != 0, -item[1].itemsize))


def _bytes(tensors: Iterable[torch.Tensor]) -> Iterator[memoryview]:
    """Yield the bytes of each tensor in memory order; a tensor on another device is copied to the host."""
    for tensor in tensors:
        if tensor.numel():
            plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
            yield plain.reshape(-1).view(torch.uint8).numpy().data


def _header(ordered: list[tuple[str, torch.Tensor]], metadata: Mapping[str, str] = MappingProxyType({})) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor in ordered:
        if tensor.dtype not in DTYPES:
            raise FormatError(f"tensor {name!r} has dtype {tensor.dtype}; a weights file cannot hold this dtype")
        end = offset + tensor.nbytes
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=not metadata).encode()
    padded = text + b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(padded).to_bytes(8, "little") + padded


class Entry(NamedTuple):
    """A tensor in a weights file."""

    name: str
    """Key of the tensor."""
    dtype: torch.dtype
    """Dtype of the numbers."""
    shape: tuple[int, ...]
    """Sizes of the axes, in the order of memory."""
    offset: int
    """Place of the first byte, in bytes from the file's beginning."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class Header(NamedTuple):
    """The header of a weights file."""

    entries: tuple[Entry, ...]
    """Tensors in the order of the file."""
    metadata: Mapping[str, str]
    """Texts by key."""


def open_weights(path: Path) -> BinaryIO:
    """Open a regular file, or the ``model.safetensors`` of a folder, without waiting for the other end of a FIFO.

    Raises:
        StoreError: the file cannot be read.
        FormatError: this is no regular file.
    """
    place = path / WEIGHTS_NAME if path.is_dir() else path
    try:
        fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        file = os.fdopen(fd, "rb", buffering=0)
    except OSError as error:
        raise StoreError(f"{place} cannot be read: {error.strerror or error}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        file.close()
        raise FormatError(f"{place} is not a file")
    return file


def read_header(file: BinaryIO) -> Header:
    """Read and check the header of an open weights file.

    Raises:
        FormatError: the file is not a whole safetensors file.
        StoreError: the file cannot be read.
    """
    with _whole():
        return _read_header(file)


def map_weights(
    file: BinaryIO,
    device: str | torch.device = "cpu",
    entries: Iterable[Entry] | None = None,
    *,
    writable: bool = True,
) -> dict[str, torch.Tensor]:
    """Return the tensors of an open weights file by name: all tensors, or the tensors of ``entries``.

    On the CPU, the tensors lie in a private mapping of the file: a write copies the written pages, and the file never
    changes. A tensor without alignment in the file, after tensors of odd sizes, is copied at once. The mapping, and so
    the open file with its locks, lives as long as any of the tensors. On another device, the tensors are copies.

    Without ``writable``, the tensors are for copies only: a write to a tensor ends the process, numbers alone are
    aligned, and the mapping counts for no limit of memory.

    Raises:
        FormatError: the file is not a whole safetensors file.
        StoreError: the file cannot be read or mapped.
        RuntimeError: the device has too little memory or does not work; torch's own error.
    """
    with _whole():
        chosen = _read_header(file).entries if entries is None else entries
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY if writable else mmap.ACCESS_READ)
        with warnings.catch_warnings():
            if not writable:
                warnings.simplefilter("ignore")  # torch has no read-only tensors
            tensors = {entry.name: _mapped(mapping, entry, ALIGNMENT if writable else 0) for entry in chosen}
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def wrong_tensors(file: BinaryIO, entries: Iterable[Entry], digests: Mapping[str, str]) -> list[str]:
    """Return the names of the tensors whose bytes have other digests. A tensor without a digest is wrong.

    Raises:
        StoreError: the file cannot be read or mapped.
    """
    with _whole(), mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping, memoryview(mapping) as data:
        wrong = []
        for entry in entries:
            with data[entry.offset : entry.offset + entry.nbytes] as part:
                if digest_on_all_cores(part) != digests.get(entry.name):
                    wrong.append(entry.name)
    return wrong


@contextmanager
def _whole() -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a disk that fails, or a file system that maps no files
        remedy = "set MODEL_FACTORY_CACHE to a folder on a local disk, or copy a model file there"
        raise StoreError(f"a weights file cannot be read: {error}. Remedy: {remedy}") from error
    except (SafetensorError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise FormatError(f"this is not a whole weights file: {error}") from None


def _read_header(file: BinaryIO) -> Header:
    found = []
    offset = 8 + int.from_bytes(os.pread(file.fileno(), 8, 0), "little")
    with safe_open(f"/dev/fd/{file.fileno()}", framework="numpy") as opened:  # checks for gaps
        for name in opened.offset_keys():
            about = opened.get_slice(name)
            dtype, shape = _BY_NAME.get(about.get_dtype()), tuple(about.get_shape())
            if dtype is None:
                raise FormatError(f"a weights file holds a tensor of the unknown dtype {about.get_dtype()!r}")
            found.append(Entry(name, dtype, shape, offset))
            offset += found[-1].nbytes
        return Header(tuple(found), opened.metadata() or {})


def _mapped(mapping: mmap.mmap, entry: Entry, alignment: int) -> torch.Tensor:
    count = math.prod(entry.shape)
    if count == 0:
        return torch.empty(entry.shape, dtype=entry.dtype)
    if entry.offset % (alignment or entry.dtype.itemsize):  # without alignment, kernels may add up in another order
        part = bytearray(mapping[entry.offset : entry.offset + entry.nbytes])
        return torch.frombuffer(part, dtype=entry.dtype).view(entry.shape).clone()
    return torch.frombuffer(mapping, dtype=entry.dtype, count=count, offset=entry.offset).view(entry.shape)
