"""Call signatures: the kinds of a call's arguments, under which a recorded program is chosen.

The signature of one argument is a tensor's rank, a plain constant, or a list, tuple or dict of argument signatures. A
tensor's signature also has the dtype, unless the dtype is a floating one, and the axes of size 0. Signatures are nested
plain tuples: cheap to compare, and ``torch.compile`` can trace the comparison::

    ("tensor", 3, "", ())   ("const", "NoneType", None)   ("list", (item, ...))   ("dict", ((key, item), ...))
    ("nan",)   ("object", "mylib.Config")   ("any", "tensor")   ("omitted",)   ("numpy", "float32", 0.5)
    ("array", 3, "", ())   ("dataclass", ((name, item), ...))   ("tensor_dict", ((key, item), ...), 1)
    ("generator",)

A NumPy scalar has its type, and an array the entries of a tensor. The kinds with parts are in
:mod:`model_factory.program.arguments.kinds`.

``("omitted",)`` is an omitted argument whose default is no plain data. ``("any", KIND)`` accepts every value of a kind.
A program has this signature for an argument that the forward never reads; a call never has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import torch

from model_factory.errors import CallSignatureError
from model_factory.program.arguments.kinds import LISTED, NAMED, ArraySizes, Parts, put_together, take_apart
from model_factory.program.arguments.unreadable import Unreadable
from model_factory.program.torch_names import torch_name

ArgumentSignature: TypeAlias = tuple[Any, ...]
"""Signature of one argument, or of one element of an argument."""

CallSignature: TypeAlias = tuple[tuple[str, ArgumentSignature], ...]
"""Name and signature of each argument, in the order of the forward's parameters."""

ANY = "any"
"""First entry of a signature that accepts every value of a kind; the second entry is the kind."""

CONSTANT_TYPES = (type(None), bool, int, float, str)


class Omitted(Enum):
    """Value of an omitted argument whose default is no plain data: the method of the original has the default."""

    OMITTED = "default of the original"

    def __repr__(self) -> str:
        return f"<{self.value}>"


OMITTED = Omitted.OMITTED
"""Value of an omitted argument whose default is no plain data."""

TENSORS = ("tensor", "array")
"""Kinds of arguments that are inputs of a program."""

GENERATOR: ArgumentSignature = ("generator",)
"""Signature of a ``torch.Generator``."""

VALUES = ("const", "nan", "numpy")
"""Kinds of arguments with a value in the signature."""

NUMPY = "numpy."
"""Beginning of the kind of a NumPy scalar."""

NUMPY_TYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
"""Dtypes of arrays and scalars that torch has, too."""

_DTYPES: Mapping[torch.dtype, str] = {
    dtype: "" if dtype.is_floating_point else torch_name(dtype)
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
}
"""Dtypes as signatures have them. Forwards often decide by kinds of numbers (a mask, an image), seldom by precision."""


def call_signature(arguments: Mapping[str, Any]) -> tuple[CallSignature, list[torch.Tensor]]:
    """Split bound arguments into their signature and their tensors, in order.

    Raises:
        CallSignatureError: an argument is a function or a class.

    Example:
        >>> signature, tensors = call_signature({"x": torch.zeros(2, 5, 16), "scale": 0.5})
        >>> signature
        (('x', ('tensor', 3, '', ())), ('scale', ('const', 'float', 0.5)))
        >>> len(tensors)
        1
    """
    tensors: list[torch.Tensor] = []
    return tuple([(name, _signature(value, name, tensors)) for name, value in arguments.items()]), tensors


def _signature(value: Any, path: str, tensors: list[torch.Tensor]) -> ArgumentSignature:  # noqa: C901  one arm per kind
    if type(value) is Unreadable:  # described before
        return ("object", object.__getattribute__(value, "_type_name"))
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return ("tensor", value.dim(), _DTYPES[value.dtype], _empty_axes(value))
    if value is None or type(value) in CONSTANT_TYPES:
        return constant_signature(value)
    if value is OMITTED:
        return ("omitted",)
    if type(value) is ArraySizes:
        tensors.append(value.tensor)
        return ("array", value.tensor.dim(), _DTYPES[value.tensor.dtype], _empty_axes(value.tensor))
    if isinstance(value, np.ndarray) and (torch.compiler.is_compiling() or value.dtype.name in NUMPY_TYPES):
        tensors.append(torch.from_numpy(value))  # a compiler reads no dtypes of arrays, and takes these dtypes only
        return ("array", tensors[-1].dim(), _DTYPES[tensors[-1].dtype], _empty_axes(tensors[-1]))
    if isinstance(value, torch.Generator):
        return GENERATOR
    parts = take_apart(value)
    if parts is not None:
        return _of_parts(parts, [_signature(item, f"{path}.{key}", tensors) for key, item in parts.entries])
    if isinstance(value, np.generic) and value.dtype.name in NUMPY_TYPES and value == value:  # noqa: PLR0124
        return ("numpy", value.dtype.name, value.item())
    if callable(value):
        raise CallSignatureError(f"argument {path!r} can be called; a remotely built module takes no functions")
    return ("object", f"{type(value).__module__}.{type(value).__qualname__}")


def parts_of(signature: ArgumentSignature) -> Sequence[tuple[Any, ArgumentSignature]] | None:
    """Return key and signature of each part, or None for an argument without parts.

    Example:
        >>> parts_of(("list", (("tensor", 1, "", ()),)))
        [(0, ('tensor', 1, '', ()))]
    """
    if signature[0] in NAMED:
        entries: Sequence[tuple[Any, ArgumentSignature]] = signature[1]
        return entries
    return list(enumerate(signature[1])) if signature[0] in LISTED else None


def with_parts(signature: ArgumentSignature, items: Iterable[ArgumentSignature]) -> ArgumentSignature:
    """Return a signature with other signatures of the parts.

    Example:
        >>> with_parts(("dict", (("x", ("const", "int", 1)),)), [("any", "int")])
        ('dict', (('x', ('any', 'int')),))
    """
    if signature[0] in LISTED:
        return (signature[0], tuple(items))
    return (signature[0], tuple(zip([key for key, _ in signature[1]], items, strict=True)), *signature[2:])


def _of_parts(parts: Parts, items: Sequence[ArgumentSignature]) -> ArgumentSignature:
    if parts.kind in LISTED:
        return (parts.kind, tuple(items))
    named = tuple([(key, item) for (key, _), item in zip(parts.entries, items, strict=True)])
    return (parts.kind, named, parts.detail) if parts.kind == "tensor_dict" else (parts.kind, named)


def constant_signature(value: bool | float | str | None) -> ArgumentSignature:
    """Return the signature of a constant. NaN has a signature without the value, since NaN differs from itself."""
    return ("const", type(value).__name__, value) if value == value else ("nan",)  # noqa: PLR0124


def _empty_axes(tensor: torch.Tensor) -> tuple[int, ...]:
    return () if tensor.numel() else tuple([axis for axis, size in enumerate(tensor.shape) if size == 0])


def match_call_signature(wanted: CallSignature, given: CallSignature) -> list[int] | None:
    """Match a program's signature ``wanted`` with a call's signature ``given``.

    Returns:
        Positions of the tensors that the program takes, among the tensors of the call; None if the program is for
        other calls.

    Example:
        >>> given, _ = call_signature({"x": torch.zeros(2), "y": torch.zeros(2)})
        >>> match_call_signature((("x", ("any", "tensor")), ("y", ("tensor", 1, "", ()))), given)
        [1]
    """
    kept: list[int] = []
    end = _match(("dict", wanted), ("dict", given), 0, kept)
    return None if end is None else kept


def is_match(wanted: ArgumentSignature, given: ArgumentSignature) -> bool:
    """Whether an argument fits a part of a program's signature.

    Example:
        >>> is_match(("any", "int"), ("const", "int", 3))
        True
    """
    return _match(wanted, given, 0, []) is not None


def _match(wanted: ArgumentSignature, given: ArgumentSignature, index: int, kept: list[int]) -> int | None:
    """Match a part of a signature whose first tensor has the number ``index``; return the number after the last."""
    if wanted[0] == ANY:
        return index + _count_tensors(given) if kind_of(given) == wanted[1] else None
    if wanted[0] != given[0]:
        return None
    parts, others = parts_of(wanted), parts_of(given)
    if parts is None or others is None:
        if wanted != given:
            return None
        kept += [index] if given[0] in TENSORS else []
        return index + int(given[0] in TENSORS)
    if len(parts) != len(others) or wanted[2:] != given[2:]:
        return None
    for (key, one), (other_key, other) in zip(parts, others, strict=True):
        end = _match(one, other, index, kept) if key == other_key else None
        if end is None:
            return None
        index = end
    return index


def _count_tensors(signature: ArgumentSignature) -> int:
    return int(signature[0] in TENSORS) + sum(_count_tensors(item) for _, item in parts_of(signature) or ())


def has_any(signature: CallSignature) -> bool:
    """Whether a part of a signature accepts every value of a kind."""
    return any(_has_any(item) for _, item in signature)


def _has_any(signature: ArgumentSignature) -> bool:
    return bool(signature[0] == ANY) or any(_has_any(item) for _, item in parts_of(signature) or ())


def kind_of(signature: ArgumentSignature) -> str:
    """Return the kind of an argument, known to a forward without a read: ``tensor``, ``list``, ``int``, a class."""
    if signature[0] in {"const", "object"}:
        return str(signature[1])
    if signature[0] == "numpy":
        return f"{NUMPY}{signature[1]}"
    return "float" if signature[0] == "nan" else str(signature[0])


def any_of_kind(signature: ArgumentSignature) -> ArgumentSignature:
    """Return the signature of every argument of the same kind.

    Example:
        >>> any_of_kind(("const", "str", "left"))
        ('any', 'str')
    """
    return (ANY, kind_of(signature))


def without_values(signature: CallSignature, known: Mapping[str, Any] = MappingProxyType({})) -> CallSignature:
    """Return a signature with the kind of each constant in place of the value; the kind of None is the value.

    An argument equal to the argument of this name in ``known`` stays.

    Example:
        >>> signature, _ = call_signature({"x": torch.zeros(2), "mode": "train", "scale": 0.5, "goal": None})
        >>> call_signature_text(without_values(signature, {"scale": 0.5}))
        'x=Tensor[rank 1], mode=any str, scale=0.5, goal=None'
    """
    usual = {name: _signature(value, name, []) for name, value in known.items()}
    return tuple((name, item if usual.get(name) == item else _without_values(item)) for name, item in signature)


def _without_values(signature: ArgumentSignature) -> ArgumentSignature:
    if signature[0] in VALUES:
        return signature if kind_of(signature) == "NoneType" else any_of_kind(signature)
    parts = parts_of(signature)
    return signature if parts is None else with_parts(signature, [_without_values(item) for _, item in parts])


def as_array(tensor: torch.Tensor) -> Any:
    """Return a NumPy array with the memory of a tensor on the CPU."""
    return tensor.detach().numpy()


def rebuild_arguments(
    signature: CallSignature,
    tensors: Iterable[torch.Tensor],
    like: Mapping[str, Any] = MappingProxyType({}),
    make_array: Callable[[torch.Tensor], Any] = as_array,
) -> dict[str, Any]:
    """Return arguments by name: the inverse of :func:`call_signature`.

    Args:
        signature: Signature of the call.
        tensors: Tensors of the call, in order.
        like: Arguments of another call, used for parts of the signature that accept every value of a kind, and for the
            classes of records and named tuples.
        make_array: Makes a NumPy array of a tensor.

    Example:
        >>> rebuild_arguments((("x", ("tensor", 1, "", ())), ("scale", ("const", "int", 2))), [torch.zeros(3)])
        {'x': tensor([0., 0., 0.]), 'scale': 2}
    """
    remaining = ((tensor, make_array) for tensor in tensors)
    return {name: _rebuild(item, remaining, like.get(name), name) for name, item in signature}


def _rebuild(signature: ArgumentSignature, tensors: Iterator[tuple[Any, Any]], like: Any, path: str) -> Any:
    match signature[0]:
        case "tensor":
            return next(tensors)[0]
        case "array":
            tensor, make_array = next(tensors)
            return make_array(tensor)
        case "const":
            return signature[2]
        case "numpy":
            return np.dtype(signature[1]).type(signature[2])
        case "nan":
            return math.nan
        case "any":
            return like
        case "omitted":
            return OMITTED
        case "generator":
            return like if isinstance(like, torch.Generator) else torch.Generator()
        case "object":
            return Unreadable(signature[1], path)
    parts = parts_of(signature)
    assert parts is not None
    likes = take_apart(like)
    given = {} if likes is None else dict(likes.entries)
    entries = [(key, _rebuild(item, tensors, given.get(key), f"{path}.{key}")) for key, item in parts]
    return put_together(Parts(signature[0], entries, *signature[2:]), like)


def leaf_names(signature: CallSignature) -> tuple[str, ...]:
    """Name the tensors of a call, in order.

    Example:
        >>> leaf_names(call_signature({"state": torch.zeros(2), "images": [torch.zeros(2), torch.zeros(2)]})[0])
        ('state', 'images.0', 'images.1')
    """
    names: list[str] = []
    for name, item in signature:
        _collect_names(name, item, names)
    return tuple(names)


def _collect_names(name: str, signature: ArgumentSignature, names: list[str]) -> None:
    if signature[0] in TENSORS:
        names.append(name)
    for key, item in parts_of(signature) or ():
        _collect_names(f"{name}.{key}", item, names)


def call_signature_text(signature: CallSignature) -> str:
    """Write a signature for a message.

    Example:
        >>> call_signature_text(call_signature({"state": torch.zeros(2, 3), "goal": None})[0])
        'state=Tensor[rank 2], goal=None'
    """
    return ", ".join(f"{name}={_text(item)}" for name, item in signature)


def _text(signature: ArgumentSignature) -> str:
    match signature[0]:
        case "tensor" | "array":
            kind, rank, dtype, empty = signature
            about = [f"rank {rank}", *([dtype] if dtype else []), *(f"size 0 at {axis}" for axis in empty)]
            return f"{kind.capitalize()}[{', '.join(about)}]"
        case "const":
            return repr(signature[2])
        case "numpy":
            return f"{kind_of(signature)}({signature[2]})"
        case "nan":
            return "nan"
        case "any":
            return f"any {signature[1]}"
        case "omitted":
            return "the default"
        case "generator":
            return "torch.Generator"
        case "object":
            return f"{signature[1]} object"
    name = "" if signature[0] in {"list", "tuple", "dict"} else signature[0]
    if signature[0] in NAMED:
        return name + "{" + ", ".join(f"{key}: {_text(item)}" for key, item in signature[1]) + "}"
    opening, closing = ("(", ")") if signature[0] == "tuple" else ("[", "]")
    return name + opening + ", ".join(_text(item) for item in signature[1]) + closing


def under_autocast(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether autocast is on for the device of one of a call's tensors."""
    kinds = {tensor.device.type for tensor in tensors}
    return any(torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind) for kind in kinds)
