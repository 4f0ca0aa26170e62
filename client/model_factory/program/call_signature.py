"""Call forms: which way of calling a module a recorded program stands for.

A form says for each argument of the forward whether it is a tensor, ``None`` or another plain constant, or a list,
tuple or dict of these. Of a tensor it has the rank, the dtype unless that is a floating one, and the axes of size 0. It
is nested plain tuples, so that comparing two is cheap and ``torch.compile`` can trace the comparison::

    ("tensor", 3, "", ())   ("const", "NoneType", None)   ("list", (form, ...))   ("dict", ((key, form), ...))
    ("nan",)   ("object", "numpy.int64")   ("any", "tensor")

A call has no ``("any", KIND)``: a program has such a form where the forward reads nothing, for any value of the kind.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import torch

from model_factory.errors import CallSignatureError
from model_factory.program.ir import Expression, Program
from model_factory.program.torch_names import torch_name

Form: TypeAlias = tuple[Any, ...]

Read: TypeAlias = tuple[str, str, Any]
"""A plain attribute of a torch module that a forward read: module path, name, value."""

FORWARD = "forward"

_CHANGES = 2  # other values of a number before it is said to keep changing

TABLES = ("_modules", "_keys", "_size")
"""What a forward reads of the containers among torch's modules: names, or how many there are."""

ANY = "any"
"""How the form of an argument begins that the forward does not read; the second entry is the kind of the argument."""

CONSTANT_TYPES = (type(None), bool, int, float, str)

_DTYPES: Mapping[torch.dtype, str] = {
    dtype: "" if dtype.is_floating_point else torch_name(dtype)
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
}
"""As they stand in forms. Forwards often decide by kinds of numbers (a mask's, an image's), and seldom by precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedProgram:
    """A program and every condition under which it stands for the module's forward."""

    form: tuple[tuple[str, Form], ...]
    """Argument name and form, in the order of the forward's signature; a kind for what is not read."""
    program: Program
    """Its inputs are the form's tensors, named by :func:`leaf_names`, in order."""
    training: tuple[tuple[str, bool], ...] = ()
    """Training flags by module path (``""`` is the module itself) that it holds for; empty: it holds for all."""
    dtypes: tuple[tuple[str, str], ...] = ()
    """Dtypes by tensor name that it is limited to, because the forward decides something by dtype."""
    guards: tuple[Expression, ...] = ()
    """Conditions on sizes that the recording relied on; all must hold."""
    reads: tuple[Read, ...] = ()
    """What the forward read of torch's own modules. :data:`TABLES` as names stand for names of entries."""
    absent: tuple[str, ...] = ()
    """Paths of parameters, buffers and children that the forward found to be None, or not there."""
    shared: tuple[tuple[str, str], ...] = ()
    """Pairs of paths at which there was one module or parameter: the program uses the first for both."""
    method: str = FORWARD
    """Of the module's methods the one that was recorded."""


def is_plain(value: Any) -> bool:
    """Whether a value is a constant, or a tuple or list of constants."""
    if type(value) in {tuple, list}:
        return all(map(is_plain, value))
    return type(value) in CONSTANT_TYPES


def call_signature(arguments: Mapping[str, Any]) -> tuple[tuple[tuple[str, Form], ...], list[torch.Tensor]]:
    """Split bound arguments into their form and their tensors, in order.

    Raises:
        CallSignatureError: an argument is a function or a class.
    """
    leaves: list[torch.Tensor] = []
    return tuple([(name, _form(value, name, leaves)) for name, value in arguments.items()]), leaves


def _form(value: Any, where: str, leaves: list[torch.Tensor]) -> Form:
    if type(value) is Unreadable:  # described before
        return ("object", object.__getattribute__(value, "_type_name"))
    if isinstance(value, torch.Tensor):
        leaves.append(value)
        return ("tensor", value.dim(), _DTYPES[value.dtype], _empty_axes(value))
    if value is None or type(value) in CONSTANT_TYPES:
        return constant_form(value)
    if type(value) is list or type(value) is tuple:
        items = tuple([_form(item, f"{where}.{index}", leaves) for index, item in enumerate(value)])
        return ("list" if type(value) is list else "tuple", items)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return ("dict", tuple([(key, _form(item, f"{where}.{key}", leaves)) for key, item in value.items()]))
    if callable(value):
        raise CallSignatureError(f"argument {where!r} can be called; a remotely built module takes no functions")
    return ("object", f"{type(value).__module__}.{type(value).__qualname__}")


def constant_form(value: bool | float | str | None) -> Form:
    """The form of a constant; NaN has one of its own, as it equals nothing."""
    return ("const", type(value).__name__, value) if value == value else ("nan",)  # noqa: PLR0124


def _empty_axes(tensor: torch.Tensor) -> tuple[int, ...]:
    return () if tensor.numel() else tuple([axis for axis, size in enumerate(tensor.shape) if size == 0])


def match_call_signature(wanted: tuple[tuple[str, Form], ...], form: tuple[tuple[str, Form], ...]) -> list[int] | None:
    """Return which of a call's tensors a program takes that has the form ``wanted``; None if it is not for the call."""
    kept: list[int] = []
    end = _match(("dict", wanted), ("dict", form), 0, kept)
    return None if end is None else kept


def _match(wanted: Form, form: Form, index: int, kept: list[int]) -> int | None:
    """Match a part of a form whose first tensor has the number ``index``; return the number after the last one."""
    if wanted[0] == ANY:
        return index + _count_tensors(form) if kind_of(form) == wanted[1] else None
    if wanted[0] != form[0]:
        return None
    if form[0] not in {"list", "tuple", "dict"}:
        if wanted != form:
            return None
        kept += [index] if form[0] == "tensor" else []
        return index + int(form[0] == "tensor")
    if len(wanted[1]) != len(form[1]):
        return None
    for one, other in zip(wanted[1], form[1], strict=True):
        if form[0] == "dict" and one[0] != other[0]:
            return None
        end = _match(one[1], other[1], index, kept) if form[0] == "dict" else _match(one, other, index, kept)
        if end is None:
            return None
        index = end
    return index


def _count_tensors(form: Form) -> int:
    match form[0]:
        case "tensor":
            return 1
        case "list" | "tuple":
            return sum(map(_count_tensors, form[1]))
        case "dict":
            return sum(_count_tensors(item) for _, item in form[1])
    return 0


def changing_number(forms: Iterable[tuple[tuple[str, Form], ...]], form: tuple[tuple[str, Form], ...]) -> str | None:
    """Return the name of a number in a call form, if two of ``forms`` are the same but for other numbers there."""
    places = [place for other in forms if (place := _only_number(("dict", other), ("dict", form), ()))]
    return next((".".join(place) for place in places if places.count(place) >= _CHANGES), None)


def _only_number(one: Form, other: Form, place: tuple[str, ...]) -> tuple[str, ...] | None:
    """The place of the number in which alone two forms differ; None if they differ in anything else, or are equal."""
    if one == other or one[0] != other[0]:
        return None
    if one[0] == "const":
        return place if all(type(form[2]) in {int, float} for form in (one, other)) else None
    if one[0] not in {"list", "tuple", "dict"} or len(one[1]) != len(other[1]):
        return None
    is_dict = one[0] == "dict"
    pairs = list(zip(*(form[1] if is_dict else enumerate(form[1]) for form in (one, other)), strict=True))
    differing = [(one, other) for one, other in pairs if one[0] != other[0] or _match(one[1], other[1], 0, []) is None]
    if len(differing) != 1 or differing[0][0][0] != differing[0][1][0]:
        return None
    (key, first), (_, second) = differing[0]
    return _only_number(first, second, (*place, str(key)))


def has_any(form: tuple[tuple[str, Form], ...]) -> bool:
    """Whether a form has a part that any value fits."""
    return any(_has_any(item) for _, item in form)


def _has_any(form: Form) -> bool:
    match form[0]:
        case "list" | "tuple":
            return any(map(_has_any, form[1]))
        case "dict":
            return has_any(form[1])
    return bool(form[0] == ANY)


def kind_of(form: Form) -> str:
    """The kind of an argument, which a forward can tell without a read: ``tensor``, ``list``, ``int``, a class."""
    if form[0] in {"const", "object"}:
        return str(form[1])
    return "float" if form[0] == "nan" else str(form[0])


def any_of(form: Form) -> Form:
    """The form of all arguments of the same kind."""
    return (ANY, kind_of(form))


def rebuild(
    form: tuple[tuple[str, Form], ...], leaves: Iterable[torch.Tensor], like: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """The inverse of :func:`call_signature`: arguments by name, with ``leaves`` as their tensors.

    ``like`` has the values where the form has :data:`ANY`.
    """
    remaining = iter(leaves)
    return {name: _rebuild(item, remaining, like.get(name), name) for name, item in form}


def _rebuild(form: Form, leaves: Iterator[torch.Tensor], like: Any, where: str) -> Any:
    match form[0]:
        case "tensor":
            return next(leaves)
        case "const":
            return form[2]
        case "nan":
            return math.nan
        case "any":
            return like
        case "object":
            return Unreadable(form[1], where)
        case "dict":
            given = like or {}
            return {key: _rebuild(item, leaves, given.get(key), f"{where}.{key}") for key, item in form[1]}
        case kind:
            parts = like or (None,) * len(form[1])
            pairs = enumerate(zip(form[1], parts, strict=True))
            items = [_rebuild(item, leaves, part, f"{where}.{index}") for index, (item, part) in pairs]
            return items if kind == "list" else tuple(items)


class Unreadable:
    """In the place of an argument of a class that no program can take: a forward may pass it by, and nothing else."""

    def __init__(self, type_name: str, where: str) -> None:
        object.__setattr__(self, "_type_name", type_name)
        object.__setattr__(self, "_where", where)

    def __getattribute__(self, name: str) -> Any:
        kind, where = (object.__getattribute__(self, own) for own in ("_type_name", "_where"))
        raise CallSignatureError(
            f"argument {where!r} is a {kind.removeprefix('builtins.')}; a remotely built module reads tensors, None, "
            "bool, int, float, str and lists, tuples and dicts of them"
        )


def _refuse_use(value: Unreadable, *_args: Any) -> Any:
    return value.use


for _name in (
    "len iter getitem setitem contains bool eq ne lt le gt ge hash float int index complex format str add radd "
    "sub rsub mul rmul truediv rtruediv floordiv mod pow neg abs and or xor invert"
).split():
    setattr(Unreadable, f"__{_name}__", _refuse_use)


def leaf_names(form: tuple[tuple[str, Form], ...]) -> tuple[str, ...]:
    """Name a form's tensors in order: ``cond_proprio``, ``cond_visual.0``, ``cond_visual.1``."""
    names: list[str] = []
    for name, item in form:
        _collect_names(name, item, names)
    return tuple(names)


def _collect_names(name: str, form: Form, names: list[str]) -> None:
    match form[0]:
        case "tensor":
            names.append(name)
        case "list" | "tuple":
            for index, item in enumerate(form[1]):
                _collect_names(f"{name}.{index}", item, names)
        case "dict":
            for key, item in form[1]:
                _collect_names(f"{name}.{key}", item, names)


def call_signature_text(form: tuple[tuple[str, Form], ...]) -> str:
    """Write a form for a message: ``cond_proprio=Tensor[3], cond_semantic=None``."""
    return ", ".join(f"{name}={_text(item)}" for name, item in form)


def _text(form: Form) -> str:
    match form[0]:
        case "tensor":
            _, rank, dtype, empty = form
            about = [f"rank {rank}", *([dtype] if dtype else []), *(f"size 0 at {axis}" for axis in empty)]
            return f"Tensor[{', '.join(about)}]"
        case "const":
            return repr(form[2])
        case "nan":
            return "nan"
        case "any":
            return f"any {form[1]}"
        case "object":
            return f"{form[1]} object"
        case "dict":
            return "{" + ", ".join(f"{key}: {_text(item)}" for key, item in form[1]) + "}"
        case kind:
            opening, closing = ("[", "]") if kind == "list" else ("(", ")")
            return opening + ", ".join(_text(item) for item in form[1]) + closing


def under_autocast(leaves: Iterable[torch.Tensor]) -> bool:
    """Whether autocast is on for the device of one of a call's tensors."""
    kinds = {leaf.device.type for leaf in leaves}
    return any(torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind) for kind in kinds)
