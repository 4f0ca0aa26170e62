"""Example inputs of a forward, by the names of its parameters: shapes with named axes, or values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from model_factory.errors import FormatError
from model_factory.limits import MAX_EXAMPLE_RANK, MAX_INTEGER
from model_factory.program.torch_names import torch_dtype
from model_factory.wording import listed, quoted

Sizes = Mapping[str, int]
"""Size of each named axis."""

_CONSTANTS = {"none": None, "true": True, "false": False}
_FORM = (
    "NAME=[DTYPE:]AXIS,AXIS,..., for example observation=batch,12 or tokens=int64:batch,20 or mask=none; a number is a "
    "fixed size, a name is an axis of any size; NAME.0 and NAME.1 are items of a list"
)
_AXIS_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FIRST_SIZE = 3  # torch.export treats sizes 0 and 1 as fixed
_INTEGERS_BELOW = 2  # an index that fits every table


@dataclass(frozen=True, slots=True)
class Input:
    """One tensor among the inputs."""

    axes: tuple[int | str, ...]
    """Fixed size or name of each axis."""
    dtype: torch.dtype | None = None
    """Dtype; None: the dtype of the model's floating parameters."""
    value: torch.Tensor | None = None
    """Example values; None: random values."""

    def tensor(self, sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
        """Return an example at the sizes of the named axes; ``dtype`` is the dtype of the model."""
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in self.axes]
        if self.value is not None:
            return _resized(self.value, shape)
        chosen = self.dtype or dtype
        if chosen.is_floating_point or chosen.is_complex:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(chosen)
        return torch.randint(_INTEGERS_BELOW, shape, generator=generator).to(chosen)


@dataclass(frozen=True, slots=True)
class ExampleInputs:
    """Inputs of a forward by name: an :class:`Input`, a list of inputs, or None, True or False.

    >>> inputs = parse_inputs(["observation=batch,12", "mask=none"])
    >>> inputs.axis_names
    ['batch']
    >>> {name: value if value is None else tuple(value.shape) for name, value in inputs.example({"batch": 3}).items()}
    {'observation': (3, 12), 'mask': None}
    """

    by_name: Mapping[str, Any] = field(default_factory=dict)

    @property
    def leaves(self) -> list[Input]:
        """Tensors, in order."""
        return [item for item in _flat(self.by_name) if isinstance(item, Input)]

    @property
    def axis_names(self) -> list[str]:
        """Names of axes, in order of appearance."""
        return list(dict.fromkeys(axis for leaf in self.leaves for axis in leaf.axes if isinstance(axis, str)))

    def first_sizes(self) -> dict[str, int]:
        """Return sizes for the named axes: sizes of the values, else pairwise different sizes.

        Raises:
            FormatError: the values have two sizes for one name, or a size that an axis of any size cannot begin with.
        """
        sizes = {name: _FIRST_SIZE + index for index, name in enumerate(self.axis_names)}
        known: dict[str, int] = {}
        for leaf in self.leaves:
            for axis, size in zip(leaf.axes, () if leaf.value is None else leaf.value.shape, strict=False):
                if isinstance(axis, str) and known.setdefault(axis, size) != size:
                    raise FormatError(f"the values have the sizes {known[axis]} and {size} for the axis {axis!r}")
        for name, size in known.items():
            if size < 2:
                raise FormatError(
                    f"the values have the size {size} along {name!r}, and torch.export fixes this size. Remedy: give "
                    "values of size 2 or more along an axis of any size"
                )
        return sizes | known

    def example(self, sizes: Sizes, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Any]:
        """Return keyword arguments of a call; ``dtype`` is the dtype of floating tensors without one."""
        generator = torch.Generator().manual_seed(seed)
        return {
            name: _mapped(value, lambda leaf: leaf.tensor(sizes, dtype, generator))
            for name, value in self.by_name.items()
        }

    def named_axes(self) -> dict[str, Any]:
        """Return the names of the named axes by position, in the nesting of the inputs."""

        def names(leaf: Input) -> dict[int, str]:
            return {position: axis for position, axis in enumerate(leaf.axes) if isinstance(axis, str)}

        return {name: _mapped(value, names) for name, value in self.by_name.items()}


def parse_inputs(texts: Iterable[str], values: Mapping[str, torch.Tensor] | None = None) -> ExampleInputs:
    """Read inputs of the form ``NAME=[DTYPE:]AXIS,AXIS,...``; ``values`` are example tensors by name.

    A value without a text has fixed sizes.

    Raises:
        FormatError: a text or a name is malformed, or a value does not fit its text.

    Example:
        >>> parse_inputs(["images.0=batch,3,8,8", "images.1=batch,3,4,4"]).example({"batch": 2})["images"][1].shape
        torch.Size([2, 3, 4, 4])
    """
    values = values or {}
    found: dict[str, Any] = {name: Input(tuple(value.shape), value.dtype, value) for name, value in values.items()}
    for text in texts:
        name, separator, body = text.partition("=")
        if not separator or not name:
            raise FormatError(f"{quoted(text)} is not an input. Remedy: write {_FORM}")
        if name in found and name not in values:
            raise FormatError(f"the input {quoted(name)} is given twice")
        found[name] = _parse(name, body, values.get(name))
    return ExampleInputs(_nested(found))


def _parse(name: str, body: str, value: torch.Tensor | None) -> Any:
    if body in _CONSTANTS:
        return _CONSTANTS[body]
    dtype_name, separator, axes_text = body.rpartition(":")
    try:
        dtype = torch_dtype(dtype_name) if separator else None
    except FormatError as error:
        raise FormatError(f"the input {quoted(name)}: {error}. Remedy: write {_FORM}") from None
    axes = tuple(_axis(name, item) for item in axes_text.split(",")) if axes_text else ()
    if len(axes) > MAX_EXAMPLE_RANK:
        raise FormatError(f"the input {quoted(name)} has {len(axes)} axes; at most {MAX_EXAMPLE_RANK} are allowed")
    if value is None:
        return Input(axes, dtype)
    fits = len(axes) == value.dim() and all(
        isinstance(axis, str) or axis == size for axis, size in zip(axes, value.shape, strict=True)
    )
    if not fits or (dtype is not None and dtype != value.dtype):
        raise FormatError(f"the value of {quoted(name)} is {value.dtype} {tuple(value.shape)}; given: {quoted(body)}")
    return Input(axes, value.dtype, value)


def _axis(name: str, text: str) -> int | str:
    if text.isdecimal() and len(text) <= len(str(MAX_INTEGER)) and int(text) <= MAX_INTEGER:
        return int(text)
    if not _AXIS_NAME.fullmatch(text):
        raise FormatError(f"the input {quoted(name)} has the axis {quoted(text)}. Remedy: write {_FORM}")
    return text


def _nested(found: Mapping[str, Any]) -> dict[str, Any]:
    """Gather ``NAME.0``, ``NAME.1`` as a list under ``NAME``."""
    nested: dict[str, Any] = {}
    for path, item in found.items():
        name, separator, index = path.partition(".")
        if not separator:
            nested[name] = item
        else:
            nested.setdefault(name, {})[index] = item
    for name, items in nested.items():
        if isinstance(items, dict):
            if sorted(items, key=lambda key: (len(key), key)) != [str(index) for index in range(len(items))]:
                raise FormatError(f"the items of the list {quoted(name)} are {listed(items)}, not 0, 1, 2, ...")
            nested[name] = [items[str(index)] for index in range(len(items))]
    return nested


def _mapped(value: Any, function: Any) -> Any:
    if isinstance(value, list):
        return [_mapped(item, function) for item in value]
    return function(value) if isinstance(value, Input) else value


def _flat(by_name: Mapping[str, Any]) -> list[Any]:
    return [item for value in by_name.values() for item in (value if isinstance(value, list) else [value])]


def _resized(value: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """Repeat or cut a tensor along each axis: the values stay values of the example."""
    for axis, size in enumerate(shape):
        if value.shape[axis] != size:
            value = value.index_select(axis, torch.arange(size) % value.shape[axis])
    return value
