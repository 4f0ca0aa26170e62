"""Writes run-time values as arguments of a program's steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from model_factory.errors import FormatError, NotPortableError
from model_factory.program.arguments.unreadable import Unreadable
from model_factory.program.bounds import bounded_integer
from model_factory.program.ir import Argument, Device, Fields, GeneratorOf, Ref, Size, TorchConst
from model_factory.program.runtime.named_results import Record, RecordObject, RecordTuple
from model_factory.program.torch_names import torch_name
from model_factory_server.export.conditions.dtype_reads import DtypeReads
from model_factory_server.export.conditions.symbols import SymbolTable
from model_factory_server.export.conditions.unread_arguments import UseNoting, constant_of
from model_factory_server.export.trace.results import plain_key


class ArgumentWriter:
    """Writes the arguments of a recording."""

    def __init__(
        self,
        name_of: Callable[[torch.Tensor], str],
        symbols: SymbolTable,
        dtypes: DtypeReads,
        generators: Mapping[int, str],
    ) -> None:
        """Use ``name_of(tensor)`` as the name of a tensor, and ``generators`` as names of generators by id."""
        self._generators = generators
        self._name_of = name_of
        self._symbols = symbols
        self._dtypes = dtypes

    def write(self, value: Any) -> Argument:  # noqa: C901  one arm per kind of value
        """Write a value.

        Raises:
            NotPortableError: the value, or an item of the value, is not plain data.
        """
        if type(value) is Unreadable:
            _ = value.use  # raises
        if type(value) is UseNoting:
            value = constant_of(value)
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, torch.Tensor):
            return Ref(self._name_of(value))
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            return Size(self._symbols.expression(value))
        if type(value) is float:
            return self._dtypes.number(value)
        if value is None or value is Ellipsis or type(value) in {bool, str}:
            return value
        if type(value) is int:
            return _bounded(value)
        if isinstance(value, torch.dtype):
            return self._dtypes.dtype(value)
        if isinstance(value, torch.memory_format | torch.layout):
            return TorchConst(torch_name(value))
        if isinstance(value, torch.device):
            return Device()
        if isinstance(value, torch.Generator) and id(value) in self._generators:
            return GeneratorOf(self._generators[id(value)])
        return self._write_container(value)

    def _write_container(self, value: Any) -> Argument:
        if isinstance(value, slice):
            return slice(*(self.write(bound) for bound in (value.start, value.stop, value.step)))
        if isinstance(value, list):
            return [self.write(item) for item in value]
        if type(value) is tuple or isinstance(value, torch.Size):
            return tuple(self.write(item) for item in value)
        if isinstance(value, Record):
            return Fields(tuple(value.fields()), tuple(map(self.write, value.fields().values())))
        if isinstance(value, RecordTuple):
            return Fields(value._fields, tuple(map(self.write, value)), "named_tuple")
        if isinstance(value, RecordObject):
            return Fields(tuple(vars(value)), tuple(map(self.write, vars(value).values())), "object")
        if isinstance(value, dict):
            return {plain_key(key): self.write(item) for key, item in value.items()}
        raise NotPortableError(
            f"the forward passes a {type(value).__module__}.{type(value).__qualname__}, which is not plain data. "
            "Remedy: pass tensors, numbers, texts and None, in lists, tuples and dicts"
        )


def _bounded(value: int) -> int:
    try:
        return bounded_integer(value)
    except FormatError as error:
        raise NotPortableError(f"the forward uses a large integer: {error}") from None
