"""Models constructed where their weights file will hold them, so that little of it is left to write.

Torch's modules, and most others, make a parameter with ``torch.empty`` and then fill it, and copies of layers with
``clone``. Which of these calls makes which tensor is found out where a model's size is, on the meta device; in the
build they are then answered with memory of the file. What comes about otherwise, or is not where it was expected, is
written afterwards as always: what the file holds never depends on any of this.
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

from model_factory.descriptor.weights import ALIGNMENT, offsets, write_weights
from model_factory.digest import Blob
from model_factory.documents import decode_document, encode_document
from model_factory.errors import ModelFactoryError
from model_factory.limits import KIB, MIB
from model_factory.program.torch_names import torch_dtype, torch_name
from model_factory.store.hashing_writer import WRITE_BACK_BYTES, begin_write_back
from model_factory_server.export.describe.describe import describe, planned_tensors

_LEAST_BYTES = 64 * KIB
_AHEAD_BYTES = 256 * MIB
_STEP_BYTES = 8 * MIB
_PAUSE_SECONDS = 0.005
_MADV_POPULATE_WRITE = 23  # of Linux 5.14

_libc = ctypes.CDLL(None)  # its madvise, for that of Python's mmap holds the interpreter meanwhile

_RESIZED = "resize storage that is not resizable"  # in what torch says: a file's memory does not grow
_MAKERS = (torch.empty, torch.Tensor.clone)


class Place(NamedTuple):
    """Where in a weights file a tensor goes."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Placement(NamedTuple):
    """Which calls that make tensors in a construction make which parts of its weights file."""

    size: int
    """Of the file up to the last of them."""
    places: Mapping[int, Place]
    """By the number of the call, from 0."""

    def encode(self) -> bytes:
        """Write it as a document."""
        places = [[number, at.offset, list(at.shape), torch_name(at.dtype)] for number, at in self.places.items()]
        return encode_document({"size": self.size, "places": places})

    @classmethod
    def decode(cls, data: bytes) -> Placement:
        """The inverse of :meth:`encode`."""
        document = decode_document(data, "a placement")
        places = {
            number: Place(offset, tuple(shape), torch_dtype(dtype))
            for number, offset, shape, dtype in document["places"]
        }
        return cls(document["size"], places)


class Allocations(TorchFunctionMode):
    """While it is entered, notes what is made on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self._count = 0
        self._made: dict[int, tuple[int, tuple[int, ...], torch.dtype]] = {}  # memory, shape and dtype, by the call
        self._memories: dict[int, torch.UntypedStorage] = {}  # kept, so that each has a number of its own

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _MAKERS:
            if type(result) is torch.Tensor and result.is_meta and _is_whole(result):
                memory = _memory(result)
                if memory not in self._memories:  # else it is the memory of one made before
                    self._memories[memory] = result.untyped_storage()
                    self._made[self._count] = (memory, tuple(result.shape), result.dtype)
            self._count += 1
        return result

    def placement(self, model: nn.Module) -> bytes | None:
        """Where those of a model constructed meanwhile go, as a document; None if that cannot be known."""
        try:
            tensors = planned_tensors(model, describe(model, refused={}))
            starts = offsets(tensors)
            owners = {_memory(tensor): name for name, tensor in tensors.items() if _is_whole(tensor)}
        except Exception:  # noqa: BLE001  its build comes to it again, where it is an error
            return None
        places = {
            number: Place(starts[name], shape, dtype)
            for number, (memory, shape, dtype) in self._made.items()
            if (name := owners.get(memory)) is not None
            and (tuple(tensors[name].shape), tensors[name].dtype) == (shape, dtype)
            and tensors[name].nbytes >= _LEAST_BYTES
            and starts[name] % ALIGNMENT == 0
        }
        size = max((place.offset + _bytes(place) for place in places.values()), default=0)
        return Placement(size, places).encode() if places else None


class WeightsFile:
    """A weights file, and a construction that happens in it as far as that can be."""

    def __init__(self, file: BinaryIO, placement: Placement | None) -> None:
        self._file = file
        self._memory = None if placement is None else _mapped(file, placement)
        self.reserved = 0 if self._memory is None or placement is None else placement.size
        """Bytes that it takes on the disk already."""

    def construct(self, make: Callable[[], nn.Module]) -> nn.Module:
        """Return the model that ``make`` constructs, in the file what is placed."""
        if self._memory is not None:
            try:
                with self._memory.provided_ahead(), self._memory:
                    return make()
            except ModelFactoryError as error:
                if _RESIZED not in str(error):
                    raise
            self._memory = None
        return make()

    def write(self, tensors: Mapping[str, torch.Tensor]) -> Blob:
        """Write all that is not in its place already; return what the file is then.

        Raises:
            OSError: it cannot be written.
        """
        if self._memory is None:
            blob = Blob(*write_weights(self._file, tensors))
        else:
            blob = Blob(*write_weights(self._memory, self._memory.settled(tensors)))  # type: ignore[arg-type]
        self._file.truncate(blob.size)
        return blob


def _mapped(file: BinaryIO, placement: Placement) -> _FileMemory | None:
    """The file's memory, with its room on the disk, for none may be missing where no error could say so.

    None where there is no room, which has to be made first, or on a file system that maps no files.
    """
    try:
        os.posix_fallocate(file.fileno(), 0, placement.size)
        return _FileMemory(file, mmap.mmap(file.fileno(), placement.size), placement.places)
    except OSError:
        file.truncate(0)
        return None


class _FileMemory(TorchFunctionMode):
    """The memory of a file; while this is entered, what is placed is made in it.

    It is also what to write that file's content to: what lies in its place is not written again.
    """

    def __init__(self, file: BinaryIO, mapping: mmap.mmap, places: Mapping[int, Place]) -> None:
        super().__init__()
        self._file = file
        self._mapping = mapping
        self._places = places
        self._start = _address(mapping)
        self._numbers = itertools.count()
        self._begun = self._given = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        place = self._places.get(next(self._numbers)) if func in _MAKERS else None
        if place is not None and func is torch.empty and _is_empty_for(place, args, kwargs):
            return self._give(place)
        if place is not None and func is torch.Tensor.clone and _is_clone_for(place, args, kwargs):
            return self._give(place).copy_(args[0]).data
        return func(*args, **kwargs)

    def _give(self, place: Place) -> torch.Tensor:
        if self._given - self._begun >= WRITE_BACK_BYTES:  # what was given before has been filled
            begin_write_back(self._file, self._begun, self._given - self._begun)
            self._begun = self._given
        self._given = max(self._given, place.offset)
        count = _bytes(place) // place.dtype.itemsize
        flat = torch.frombuffer(self._mapping, dtype=place.dtype, count=count, offset=place.offset)
        return flat.view(place.shape).data  # no view, as which it could not be detached in place

    @contextmanager
    def provided_ahead(self) -> Iterator[None]:
        """Have the kernel provide the memory in a thread beside the block; it takes about as long as to fill it.

        Not too much ahead: the kernel would begin to write it to the disk as it is.
        """
        enough = Event()

        def provide() -> None:
            for start in range(0, len(self._mapping), _STEP_BYTES):
                while start > self._given + _AHEAD_BYTES and not enough.wait(_PAUSE_SECONDS):
                    pass
                size = min(_STEP_BYTES, len(self._mapping) - start)
                where = ctypes.c_void_p(self._start + start), ctypes.c_size_t(size)
                if enough.is_set() or _libc.madvise(*where, _MADV_POPULATE_WRITE):  # or the kernel knows no such thing
                    return

        thread = Thread(target=provide)
        thread.start()
        try:
            yield
        finally:
            enough.set()
            thread.join()

    def settled(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return tensors to write: those that lie in this memory but not in their places are copied."""
        starts = offsets(tensors)
        return {
            name: tensor.clone() if self._holds(tensor) and not self._is_settled(tensor, starts[name]) else tensor
            for name, tensor in tensors.items()
        }

    def _holds(self, tensor: torch.Tensor) -> bool:
        return self._start <= tensor.untyped_storage().data_ptr() < self._start + len(self._mapping)

    def _is_settled(self, tensor: torch.Tensor, offset: int) -> bool:
        return _is_whole(tensor) and tensor.data_ptr() == self._start + offset

    def write(self, data: bytes | memoryview) -> None:
        """Write ``data`` behind what was written before, unless it is there already."""
        position = self._file.tell()
        if isinstance(data, memoryview) and not data.readonly and _address(data) == self._start + position:
            self._file.seek(len(data), os.SEEK_CUR)
        else:
            self._file.write(data)

    def flush(self) -> None:
        """As a file's."""
        self._file.flush()

    def fileno(self) -> int:
        """As a file's."""
        return self._file.fileno()


def _is_empty_for(place: Place, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of ``torch.empty`` is for a plain tensor as planned."""
    given = {name: value for name, value in kwargs.items() if value is not None and value is not False}
    if not given.keys() <= {"size", "dtype", "device"} or torch.are_deterministic_algorithms_enabled():  # which fill it
        return False
    if torch.device(given.get("device", torch.get_default_device())).type != "cpu":
        return False
    asked = torch.empty(*args, **given | {"device": "meta"})
    return (tuple(asked.shape), asked.dtype) == (place.shape, place.dtype)


def _is_clone_for(place: Place, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of ``clone`` is for a plain tensor as planned."""
    tensor, *others = args
    if others or kwargs not in ({}, {"memory_format": torch.preserve_format}):
        return False
    if type(tensor) is not torch.Tensor or tensor.requires_grad or tensor.device.type != "cpu":
        return False
    return (tuple(tensor.shape), tensor.dtype) == (place.shape, place.dtype) and _is_whole(tensor)


def _is_whole(tensor: torch.Tensor) -> bool:
    """Whether a tensor is all of its memory, as it lies."""
    plain = tensor.layout is torch.strided and not tensor.is_conj() and not tensor.is_neg()
    try:
        return plain and tensor.is_contiguous() and tensor.nbytes == tensor.untyped_storage().nbytes()
    except (NotImplementedError, RuntimeError):  # it has no memory: one of vmap, say
        return False


def _bytes(place: Place) -> int:
    return torch.Size(place.shape).numel() * place.dtype.itemsize


def _memory(tensor: torch.Tensor) -> int:
    memory: int = tensor.untyped_storage()._cdata  # noqa: SLF001  data_ptr() is 0 for all on meta
    return memory


def _address(data: mmap.mmap | memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(data))
