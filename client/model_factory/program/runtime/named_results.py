"""Results with named fields.

The class of a result stays on the server. The client gets plain data with the same field names: a :class:`Record` for
a dataclass, an ``OrderedDict`` or a ``ModelOutput`` of transformers, a :class:`RecordTuple` for a named tuple, and a
:class:`RecordObject` for another object.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from model_factory.program.torch_private import MappingKey, register_pytree_node


class Record(OrderedDict[str, Any]):
    """Named values: ``record.name``, ``record["name"]`` and ``record[0]``.

    A field of value None is an attribute, but no entry, as in the output classes of transformers.

    Example:
        >>> output = Record({"logits": 1.5, "loss": None})
        >>> output.logits, output["logits"], output[0]
        (1.5, 1.5, 1.5)
        >>> output.loss is None, "loss" in output, output.to_tuple()
        (True, False, (1.5,))
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
        """Return every field; fields of value None last."""
        return dict(self) | dict.fromkeys(self._absent)

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the values of the fields, in order, without None."""
        return tuple(self.values())


class RecordTuple(tuple[Any, ...]):
    """A tuple with names for its items.

    Example:
        >>> output = RecordTuple(("mean", "std"), (0.5, 2.0))
        >>> output.std, output[1]
        (2.0, 2.0)
        >>> mean, std = output
        >>> output
        RecordTuple(mean=0.5, std=2.0)
    """

    _fields: tuple[str, ...]

    def __new__(cls, names: Iterable[str], values: Iterable[Any]) -> RecordTuple:
        """Make a tuple of ``values`` with ``names``, of the same number."""
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


class RecordObject:
    """An object with the attributes of a model's own object, and without methods.

    Example:
        >>> cache = RecordObject({"keys": 1, "values": 2})
        >>> cache.keys, cache.values
        (1, 2)
        >>> cache
        RecordObject(keys=1, values=2)
    """

    def __init__(self, fields: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> None:
        vars(self).update(fields)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"the result of a rebuilt model has no attribute {name!r}; it has {', '.join(vars(self))}, and no methods"
        )

    def __repr__(self) -> str:
        return f"RecordObject({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


# So that DistributedDataParallel, torch.func and torch.export find the tensors inside.
register_pytree_node(
    Record,
    lambda record: (list(record.fields().values()), tuple(record.fields())),
    lambda values, names: Record(zip(names, values, strict=True)),
    serialized_type_name="model_factory.Record",
    flatten_with_keys_fn=lambda record: (
        [(MappingKey(name), value) for name, value in record.fields().items()],
        tuple(record.fields()),
    ),
)
register_pytree_node(
    RecordTuple,
    lambda record: (list(record), record._fields),
    lambda values, names: RecordTuple(names, values),
    serialized_type_name="model_factory.RecordTuple",
    flatten_with_keys_fn=lambda record: (
        [(MappingKey(name), value) for name, value in zip(record._fields, record, strict=True)],
        record._fields,
    ),
)
register_pytree_node(
    RecordObject,
    lambda record: (list(vars(record).values()), tuple(vars(record))),
    lambda values, names: RecordObject(zip(names, values, strict=True)),
    serialized_type_name="model_factory.RecordObject",
    flatten_with_keys_fn=lambda record: (
        [(MappingKey(name), value) for name, value in vars(record).items()],
        tuple(vars(record)),
    ),
)
