"""Construct a model inside its weights file, with few tensors left to write.

Torch's modules, and most others, make a parameter with ``torch.empty`` and fill the parameter afterwards; copies of
layers are made with ``clone``. Planning on the meta device notes these calls and their tensors. During the build, the
same calls return memory of the file. All other tensors are written after the construction. So a placement never changes
the content of the file.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from model_factory.describe.describe import describe, planned_tensors
from model_factory.descriptor.weights import ALIGNMENT, offsets, write_weights
from model_factory.digest import Blob
from model_factory.documents import decode_document, encode_document
from model_factory.errors import ModelFactoryError
from model_factory.limits import KIB, MIB
from model_factory.program.torch_names import torch_dtype, torch_name
from model_factory.store.hashing_writer import WRITE_BACK_BYTES, begin_write_back

_MIN_TENSOR_BYTES = 64 * KIB
_POPULATE_AHEAD_BYTES = 256 * MIB
_POPULATE_STEP_BYTES = 8 * MIB
_PAUSE_SECONDS = 0.005
_MADV_POPULATE_WRITE = 23  # of Linux 5.14

_libc = ctypes.CDLL(None)  # for madvise: that of Python's mmap blocks the interpreter during the call

_RESIZE_ERROR = "resize storage that is not resizable"  # in torch's message: memory of a file cannot grow
_ALLOCATING_CALLS = (torch.empty, torch.Tensor.clone)


class TensorPlace(NamedTuple):
    """The place of a tensor in a weights file."""

    offset: int
    """In bytes."""
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Placement(NamedTuple):
    """The places of tensors made inside the weights file by a construction."""

    size: int
    """Bytes of the file up to the end of the last place."""
    places: Mapping[int, TensorPlace]
    """Place by the number of the allocating call in the construction, counted from 0."""

    def encode(self) -> bytes:
        """Return the placement as a document.

        Example:
            >>> Placement(8, {0: TensorPlace(0, (2,), torch.float32)}).encode()
            b'{"places":[[0,0,[2],"float32"]],"size":8}'
        """
        places = [
            [number, place.offset, list(place.shape), torch_name(place.dtype)] for number, place in self.places.items()
        ]
        return encode_document({"size": self.size, "places": places})

    @classmethod
    def decode(cls, data: bytes) -> Placement:
        """Read a document of :meth:`encode`.

        Raises:
            FormatError: the data is not a document.
        """
        document = decode_document(data, "a placement")
        places = {
            number: TensorPlace(offset, tuple(shape), torch_dtype(dtype))
            for number, offset, shape, dtype in document["places"]
        }
        return cls(document["size"], places)


class AllocationLog(TorchFunctionMode):
    """Notes the allocating calls of a construction on the meta device; a context manager.

    Example:
        >>> with AllocationLog() as allocations, torch.device("meta"):
        ...     model = nn.Linear(256, 128)
        >>> allocations.placement(model).places[0].shape
        (128, 256)
    """

    def __init__(self) -> None:
        super().__init__()
        self._count = 0
        self._allocations: dict[int, tuple[int, tuple[int, ...], torch.dtype]] = {}  # storage, shape, dtype; by call
        self._storages: dict[int, torch.UntypedStorage] = {}  # kept alive, so that each has an address of its own

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _ALLOCATING_CALLS:
            if type(result) is torch.Tensor and result.is_meta and _fills_storage(result):
                storage = _storage_id(result)
                if storage not in self._storages:  # otherwise the call returned an earlier tensor
                    self._storages[storage] = result.untyped_storage()
                    self._allocations[self._count] = (storage, tuple(result.shape), result.dtype)
            self._count += 1
        return result

    def placement(self, model: nn.Module) -> Placement | None:
        """Return the placement of a model constructed under this log; ``None`` where no tensor can be placed.

        Offsets follow from the descriptor, hence a description of the model on the meta device: the real model does not
        exist yet. The build describes the real model later.
        """
        try:
            tensors = planned_tensors(model, describe(model, refused={}))
            starts = offsets(tensors)
            names = {_storage_id(tensor): name for name, tensor in tensors.items() if _fills_storage(tensor)}
        except Exception:  # noqa: BLE001  the build itself meets the same error, and reports the error
            return None
        places = {
            number: TensorPlace(starts[name], shape, dtype)
            for number, (storage, shape, dtype) in self._allocations.items()
            if (name := names.get(storage)) is not None
            and (tuple(tensors[name].shape), tensors[name].dtype) == (shape, dtype)
            and tensors[name].nbytes >= _MIN_TENSOR_BYTES
            and starts[name] % ALIGNMENT == 0
        }
        size = max((place.offset + place.size for place in places.values()), default=0)
        return Placement(size, places) if places else None


class WeightsFile:
    """A weights file, and the construction of a model inside the file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryFile() as file:
        ...     weights_file = WeightsFile(file, placement=None)
        ...     model = weights_file.construct(lambda: nn.Linear(2, 2))
        ...     blob = weights_file.write(model.state_dict())
        >>> blob.size > 24
        True
    """

    def __init__(self, file: BinaryIO, placement: Placement | None) -> None:
        """Map the file where a placement is given and the file can be mapped."""
        self._file = file
        self._memory = None if placement is None else _map_file(file, placement)
        self.reserved = 0 if self._memory is None or placement is None else placement.size
        """Bytes of the file on the disk already."""

    def construct(self, make: Callable[[], nn.Module]) -> nn.Module:
        """Return the model constructed by ``make``, with placed tensors inside the file.

        A constructor may resize a storage, and memory of a file cannot be resized: ``make`` is then called again,
        without the placement.
        """
        if self._memory is not None:
            try:
                with self._memory.populated_ahead(), self._memory:
                    return make()
            except ModelFactoryError as error:
                if _RESIZE_ERROR not in str(error):
                    raise
            self._memory = None
        return make()

    def write(self, tensors: Mapping[str, torch.Tensor]) -> Blob:
        """Write every tensor outside of its place, and return the identity of the file.

        Raises:
            OSError: the file cannot be written.
        """
        if self._memory is None:
            blob = Blob(*write_weights(self._file, tensors))
        else:
            blob = Blob(*write_weights(self._memory, self._memory.without_overlaps(tensors)))  # type: ignore[arg-type]
        self._file.truncate(blob.size)
        return blob


def _map_file(file: BinaryIO, placement: Placement) -> _FileMemory | None:
    """Allocate the file's blocks on the disk and map the file; ``None`` on a full disk or without mappings.

    The blocks come first: a write to a mapping without a block kills the process.
    """
    try:
        os.posix_fallocate(file.fileno(), 0, placement.size)
        return _FileMemory(file, mmap.mmap(file.fileno(), placement.size), placement.places)
    except OSError:
        file.truncate(0)
        return None


class _FileMemory(TorchFunctionMode):
    """A mapped file: as a context manager, returns memory of the file from the placed allocating calls.

    Also the file to write the weights to: ``write`` skips tensors in their places.
    """

    def __init__(self, file: BinaryIO, mapping: mmap.mmap, places: Mapping[int, TensorPlace]) -> None:
        super().__init__()
        self._file = file
        self._mapping = mapping
        self._places = places
        self._start = _address(mapping)
        self._numbers = itertools.count()
        self._written_back = self._allocated = 0  # offsets in the file

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        place = self._places.get(next(self._numbers)) if func in _ALLOCATING_CALLS else None
        if place is not None and func is torch.empty and _is_planned_empty(place, args, kwargs):
            return self._allocate(place)
        if place is not None and func is torch.Tensor.clone and _is_planned_clone(place, args, kwargs):
            return self._allocate(place).copy_(args[0]).data
        return func(*args, **kwargs)

    def _allocate(self, place: TensorPlace) -> torch.Tensor:
        if self._allocated - self._written_back >= WRITE_BACK_BYTES:  # earlier tensors have been filled by now
            begin_write_back(self._file, self._written_back, self._allocated - self._written_back)
            self._written_back = self._allocated
        self._allocated = max(self._allocated, place.offset)
        count = place.size // place.dtype.itemsize
        flat = torch.frombuffer(self._mapping, dtype=place.dtype, count=count, offset=place.offset)
        return flat.view(place.shape).data  # not a view: a view cannot be detached in place

    @contextmanager
    def populated_ahead(self) -> Iterator[None]:
        """Let the kernel provide memory in a thread beside the block; providing takes about as long as filling.

        The thread stays at most 256 MiB ahead: the kernel would write untouched pages to the disk.
        """
        enough = Event()

        def populate() -> None:
            for start in range(0, len(self._mapping), _POPULATE_STEP_BYTES):
                while start > self._allocated + _POPULATE_AHEAD_BYTES and not enough.wait(_PAUSE_SECONDS):
                    pass
                size = min(_POPULATE_STEP_BYTES, len(self._mapping) - start)
                where = ctypes.c_void_p(self._start + start), ctypes.c_size_t(size)
                if enough.is_set() or _libc.madvise(*where, _MADV_POPULATE_WRITE):  # an older kernel returns an error
                    return

        thread = Thread(target=populate)
        thread.start()
        try:
            yield
        finally:
            enough.set()
            thread.join()

    def without_overlaps(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return tensors to write, with copies of the tensors in this memory outside of their places."""
        starts = offsets(tensors)
        return {
            name: tensor.clone() if self._holds(tensor) and not self._is_in_place(tensor, starts[name]) else tensor
            for name, tensor in tensors.items()
        }

    def _holds(self, tensor: torch.Tensor) -> bool:
        return self._start <= tensor.untyped_storage().data_ptr() < self._start + len(self._mapping)

    def _is_in_place(self, tensor: torch.Tensor, offset: int) -> bool:
        return _fills_storage(tensor) and tensor.data_ptr() == self._start + offset

    def write(self, data: bytes | memoryview) -> None:
        """Write ``data`` at the current position, or skip ``data`` from this position of the mapping."""
        position = self._file.tell()
        if isinstance(data, memoryview) and not data.readonly and _address(data) == self._start + position:
            self._file.seek(len(data), os.SEEK_CUR)
        else:
            self._file.write(data)

    def flush(self) -> None:
        """Flush the file."""
        self._file.flush()

    def fileno(self) -> int:
        """Return the file's descriptor."""
        return self._file.fileno()


def _is_planned_empty(place: TensorPlace, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of ``torch.empty`` makes the planned plain tensor."""
    given = {name: value for name, value in kwargs.items() if value is not None and value is not False}
    if not given.keys() <= {"size", "dtype", "device"}:
        return False
    if torch.are_deterministic_algorithms_enabled():  # torch.empty then fills the tensor
        return False
    if torch.device(given.get("device", torch.get_default_device())).type != "cpu":
        return False
    wanted = torch.empty(*args, **given | {"device": "meta"})
    return (tuple(wanted.shape), wanted.dtype) == (place.shape, place.dtype)


def _is_planned_clone(place: TensorPlace, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of ``clone`` makes the planned plain tensor."""
    tensor, *others = args
    if others or kwargs not in ({}, {"memory_format": torch.preserve_format}):
        return False
    if type(tensor) is not torch.Tensor or tensor.requires_grad or tensor.device.type != "cpu":
        return False
    return (tuple(tensor.shape), tensor.dtype) == (place.shape, place.dtype) and _fills_storage(tensor)


def _fills_storage(tensor: torch.Tensor) -> bool:
    """Whether a tensor is contiguous and covers its whole storage."""
    plain = tensor.layout is torch.strided and not tensor.is_conj() and not tensor.is_neg()
    try:
        return plain and tensor.is_contiguous() and tensor.nbytes == tensor.untyped_storage().nbytes()
    except (NotImplementedError, RuntimeError):  # without a storage, for example under vmap
        return False


def _storage_id(tensor: torch.Tensor) -> int:
    storage: int = tensor.untyped_storage()._cdata  # noqa: SLF001  data_ptr() is 0 for every meta tensor
    return storage


def _address(data: mmap.mmap | memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(data))
