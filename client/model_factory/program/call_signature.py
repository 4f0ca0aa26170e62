"""Call signatures: the kinds of a call's arguments, under which a recorded program is chosen.

The signature of one argument is a tensor's rank, a plain constant, or a list, tuple or dict of argument signatures. A
tensor's signature also has the dtype, unless the dtype is a floating one, and the axes of size 0. Signatures are nested
plain tuples: cheap to compare, and ``torch.compile`` can trace the comparison::

    ("tensor", 3, "", ())   ("const", "NoneType", None)   ("list", (item, ...))   ("dict", ((key, item), ...))
    ("nan",)   ("object", "numpy.int64")   ("any", "tensor")

``("any", KIND)`` accepts every value of a kind. A program has this signature for an argument that the forward never
reads; a call never has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import torch

from model_factory.errors import CallSignatureError
from model_factory.program.torch_names import torch_name

ArgumentSignature: TypeAlias = tuple[Any, ...]
"""Signature of one argument, or of one element of an argument."""

CallSignature: TypeAlias = tuple[tuple[str, ArgumentSignature], ...]
"""Name and signature of each argument, in the order of the forward's parameters."""

ANY = "any"
"""First entry of a signature that accepts every value of a kind; the second entry is the kind."""

CONSTANT_TYPES = (type(None), bool, int, float, str)

_CHANGES = 2  # other values of a number before the number counts as changing

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


def _signature(value: Any, path: str, tensors: list[torch.Tensor]) -> ArgumentSignature:
    if type(value) is Unreadable:  # described before
        return ("object", object.__getattribute__(value, "_type_name"))
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return ("tensor", value.dim(), _DTYPES[value.dtype], _empty_axes(value))
    if value is None or type(value) in CONSTANT_TYPES:
        return constant_signature(value)
    if type(value) is list or type(value) is tuple:
        items = tuple([_signature(item, f"{path}.{index}", tensors) for index, item in enumerate(value)])
        return ("list" if type(value) is list else "tuple", items)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return ("dict", tuple([(key, _signature(item, f"{path}.{key}", tensors)) for key, item in value.items()]))
    if callable(value):
        raise CallSignatureError(f"argument {path!r} can be called; a remotely built module takes no functions")
    return ("object", f"{type(value).__module__}.{type(value).__qualname__}")


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


def _match(wanted: ArgumentSignature, given: ArgumentSignature, index: int, kept: list[int]) -> int | None:
    """Match a part of a signature whose first tensor has the number ``index``; return the number after the last."""
    if wanted[0] == ANY:
        return index + _count_tensors(given) if kind_of(given) == wanted[1] else None
    if wanted[0] != given[0]:
        return None
    if given[0] not in {"list", "tuple", "dict"}:
        if wanted != given:
            return None
        kept += [index] if given[0] == "tensor" else []
        return index + int(given[0] == "tensor")
    if len(wanted[1]) != len(given[1]):
        return None
    for one, other in zip(wanted[1], given[1], strict=True):
        if given[0] == "dict" and one[0] != other[0]:
            return None
        end = _match(one[1], other[1], index, kept) if given[0] == "dict" else _match(one, other, index, kept)
        if end is None:
            return None
        index = end
    return index


def _count_tensors(signature: ArgumentSignature) -> int:
    match signature[0]:
        case "tensor":
            return 1
        case "list" | "tuple":
            return sum(map(_count_tensors, signature[1]))
        case "dict":
            return sum(_count_tensors(item) for _, item in signature[1])
    return 0


def changing_number(known: Iterable[CallSignature], given: CallSignature) -> str | None:
    """Return the path of a number in ``given``, if two signatures of ``known`` differ from ``given`` there only.

    Example:
        >>> known = [call_signature({"step": step})[0] for step in (1, 2)]
        >>> changing_number(known, call_signature({"step": 3})[0])
        'step'
    """
    paths = [path for other in known if (path := _only_number(("dict", other), ("dict", given), ()))]
    return next((".".join(path) for path in paths if paths.count(path) >= _CHANGES), None)


def _only_number(one: ArgumentSignature, other: ArgumentSignature, path: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the path of the only difference between two signatures, if the difference is a number."""
    if one == other or one[0] != other[0]:
        return None
    if one[0] == "const":
        return path if all(type(item[2]) in {int, float} for item in (one, other)) else None
    if one[0] not in {"list", "tuple", "dict"} or len(one[1]) != len(other[1]):
        return None
    is_dict = one[0] == "dict"
    pairs = list(zip(*(item[1] if is_dict else enumerate(item[1]) for item in (one, other)), strict=True))
    differing = [(one, other) for one, other in pairs if one[0] != other[0] or _match(one[1], other[1], 0, []) is None]
    if len(differing) != 1 or differing[0][0][0] != differing[0][1][0]:
        return None
    (key, first), (_, second) = differing[0]
    return _only_number(first, second, (*path, str(key)))


def has_any(signature: CallSignature) -> bool:
    """Whether a part of a signature accepts every value of a kind."""
    return any(_has_any(item) for _, item in signature)


def _has_any(signature: ArgumentSignature) -> bool:
    match signature[0]:
        case "list" | "tuple":
            return any(map(_has_any, signature[1]))
        case "dict":
            return has_any(signature[1])
    return bool(signature[0] == ANY)


def kind_of(signature: ArgumentSignature) -> str:
    """Return the kind of an argument, known to a forward without a read: ``tensor``, ``list``, ``int``, a class."""
    if signature[0] in {"const", "object"}:
        return str(signature[1])
    return "float" if signature[0] == "nan" else str(signature[0])


def any_of_kind(signature: ArgumentSignature) -> ArgumentSignature:
    """Return the signature of every argument of the same kind.

    Example:
        >>> any_of_kind(("const", "str", "left"))
        ('any', 'str')
    """
    return (ANY, kind_of(signature))


def rebuild_arguments(
    signature: CallSignature, tensors: Iterable[torch.Tensor], like: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Return arguments by name: the inverse of :func:`call_signature`.

    Args:
        signature: Signature of the call.
        tensors: Tensors of the call, in order.
        like: Arguments of another call, used for parts of the signature that accept every value of a kind.

    Example:
        >>> rebuild_arguments((("x", ("tensor", 1, "", ())), ("scale", ("const", "int", 2))), [torch.zeros(3)])
        {'x': tensor([0., 0., 0.]), 'scale': 2}
    """
    remaining = iter(tensors)
    return {name: _rebuild(item, remaining, like.get(name), name) for name, item in signature}


def _rebuild(signature: ArgumentSignature, tensors: Iterator[torch.Tensor], like: Any, path: str) -> Any:
    match signature[0]:
        case "tensor":
            return next(tensors)
        case "const":
            return signature[2]
        case "nan":
            return math.nan
        case "any":
            return like
        case "object":
            return Unreadable(signature[1], path)
        case "dict":
            given = like or {}
            return {key: _rebuild(item, tensors, given.get(key), f"{path}.{key}") for key, item in signature[1]}
        case kind:
            parts = like or (None,) * len(signature[1])
            pairs = enumerate(zip(signature[1], parts, strict=True))
            items = [_rebuild(item, tensors, part, f"{path}.{index}") for index, (item, part) in pairs]
            return items if kind == "list" else tuple(items)


class Unreadable:
    """Placeholder for an argument of a class that a program cannot take: a forward may pass the argument on only."""

    def __init__(self, type_name: str, path: str) -> None:
        object.__setattr__(self, "_type_name", type_name)
        object.__setattr__(self, "_path", path)

    def __getattribute__(self, name: str) -> Any:
        type_name, path = (object.__getattribute__(self, own) for own in ("_type_name", "_path"))
        raise CallSignatureError(
            f"argument {path!r} is a {type_name.removeprefix('builtins.')}; a remotely built module reads tensors, "
            "None, bool, int, float, str and lists, tuples and dicts of them"
        )


def _refuse_use(value: Unreadable, *_args: Any) -> Any:
    return value.use


for _name in (
    "len iter getitem setitem contains bool eq ne lt le gt ge hash float int index complex format str add radd "
    "sub rsub mul rmul truediv rtruediv floordiv mod pow neg abs and or xor invert"
).split():
    setattr(Unreadable, f"__{_name}__", _refuse_use)


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
    match signature[0]:
        case "tensor":
            names.append(name)
        case "list" | "tuple":
            for index, item in enumerate(signature[1]):
                _collect_names(f"{name}.{index}", item, names)
        case "dict":
            for key, item in signature[1]:
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
        case "tensor":
            _, rank, dtype, empty = signature
            about = [f"rank {rank}", *([dtype] if dtype else []), *(f"size 0 at {axis}" for axis in empty)]
            return f"Tensor[{', '.join(about)}]"
        case "const":
            return repr(signature[2])
        case "nan":
            return "nan"
        case "any":
            return f"any {signature[1]}"
        case "object":
            return f"{signature[1]} object"
        case "dict":
            return "{" + ", ".join(f"{key}: {_text(item)}" for key, item in signature[1]) + "}"
        case kind:
            opening, closing = ("[", "]") if kind == "list" else ("(", ")")
            return opening + ", ".join(_text(item) for item in signature[1]) + closing


def under_autocast(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether autocast is on for the device of one of a call's tensors."""
    kinds = {tensor.device.type for tensor in tensors}
    return any(torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind) for kind in kinds)
