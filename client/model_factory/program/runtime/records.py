"""What a program returns where the original returned an object with named fields.

The original's class stays on the server. A dataclass, an ``OrderedDict`` or both in one (what transformers calls a
``ModelOutput``) arrives as a :class:`Record`, a named tuple as a :class:`RecordTuple`: plain data under the same names.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from model_factory.program.torch_private import register_pytree_node


class Record(OrderedDict[str, Any]):
    """Named values, as ``record.name``, ``record["name"]`` and ``record[0]``.

    A field that is None is there as an attribute, but not as an entry: so with the output classes of transformers.
    """

    def __init__(self, fields: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> None:
        fields = dict(fields)
        super().__init__((name, value) for name, value in fields.items() if value is not None)
        self._absent = tuple(name for name, value in fields.items() if value is None)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            if name in self:
                return self[name]
            if name in self._absent:
                return None
        raise AttributeError(f"the record has no field {name!r}; it has {', '.join((*self, *self._absent))}")

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __reduce__(self) -> tuple[Any, ...]:
        return (Record, (self.fields(),))

    def fields(self) -> dict[str, Any]:
        """Every field, those that are None last."""
        return dict(self) | dict.fromkeys(self._absent)

    def to_tuple(self) -> tuple[Any, ...]:
        """The values of the fields that are not None, in order."""
        return tuple(self.values())


class RecordTuple(tuple[Any, ...]):
    """A tuple whose items have names, too: ``record.name``."""

    _fields: tuple[str, ...]

    def __new__(cls, names: Iterable[str], values: Iterable[Any]) -> RecordTuple:
        """Make one of names and as many values."""
        record = super().__new__(cls, values)
        record._fields = tuple(names)
        return record

    def __getattr__(self, name: str) -> Any:
        if name != "_fields" and name in self._fields:
            return self[self._fields.index(name)]
        raise AttributeError(f"the record has no field {name!r}; it has {', '.join(self._fields)}")

    def __reduce__(self) -> tuple[Any, ...]:
        return (RecordTuple, (self._fields, tuple(self)))

    def __repr__(self) -> str:
        items = ", ".join(f"{name}={value!r}" for name, value in zip(self._fields, self, strict=True))
        return f"{type(self).__name__}({items})"


# So that DistributedDataParallel and torch.func find the tensors inside.
register_pytree_node(
    Record,
    lambda record: (list(record.fields().values()), tuple(record.fields())),
    lambda values, names: Record(zip(names, values, strict=True)),
    serialized_type_name="model_factory.Record",
)
register_pytree_node(
    RecordTuple,
    lambda record: (list(record), record._fields),
    lambda values, names: RecordTuple(names, values),
    serialized_type_name="model_factory.RecordTuple",
)
