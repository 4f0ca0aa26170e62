"""Call forms: which way of calling a module a recorded program stands for.

A form says for each argument of the forward whether it is a tensor, ``None`` or another plain constant, or a list,
tuple or dict of these. Of a tensor it has the rank, the dtype unless that is a floating one, and the axes of size 0. It
is nested plain tuples, so that comparing two is cheap and ``torch.compile`` can trace the comparison::

    ("tensor", 3, "", ())   ("const", "NoneType", None)   ("list", (form, ...))   ("dict", ((key, form), ...))
    ("nan",)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from model_factory.errors import CallFormError
from model_factory.graph.constants import torch_name
from model_factory.graph.program import Dim, Expr, Program, Ref

Form: TypeAlias = tuple[Any, ...]

Read: TypeAlias = tuple[str, str, Any]
"""A plain attribute of a torch module that a forward read: module path, name, value."""

FORWARD = "forward"

CHILDREN = "_modules"
"""Where a module has its children, by name."""

CONSTANT_TYPES = (type(None), bool, int, float, str)

_DTYPES: Mapping[torch.dtype, str] = {
    dtype: "" if dtype.is_floating_point else torch_name(dtype)
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
}
"""As they stand in forms. Forwards often decide by kinds of numbers (a mask's, an image's), and seldom by precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A program and every condition under which it stands for the module's forward."""

    form: tuple[tuple[str, Form], ...]
    """Argument name and form, in the order of the forward's signature."""
    program: Program
    """Its inputs are the form's tensors, named by :func:`leaf_names`, in order."""
    training: tuple[tuple[str, bool], ...] = ()
    """Training flags by module path (``""`` is the module itself) that it holds for; empty: it holds for all."""
    dtypes: tuple[tuple[str, str], ...] = ()
    """Dtypes by tensor name that it is limited to, because the forward decides something by dtype."""
    guards: tuple[Expr | Dim | Ref | int | float, ...] = ()
    """Conditions on sizes that the recording relied on; all must hold."""
    reads: tuple[Read, ...] = ()
    """What the forward read of torch's own modules. :data:`CHILDREN` as the name stands for the names of children."""
    absent: tuple[str, ...] = ()
    """Paths of parameters, buffers and children that the forward found to be None."""
    method: str = FORWARD
    """Of the module's methods the one that was recorded."""


def is_plain(value: Any) -> bool:
    """Whether a value is a constant, or a tuple or list of constants."""
    if type(value) in {tuple, list}:
        return all(map(is_plain, value))
    return type(value) in CONSTANT_TYPES


def call_form(arguments: Mapping[str, Any]) -> tuple[tuple[tuple[str, Form], ...], list[torch.Tensor]]:
    """Split bound arguments into their form and their tensors, in order.

    Raises:
        CallFormError: an argument is of a type that no program can take.
    """
    leaves: list[torch.Tensor] = []
    return tuple([(name, _form(value, name, leaves)) for name, value in arguments.items()]), leaves


def _form(value: Any, where: str, leaves: list[torch.Tensor]) -> Form:
    if isinstance(value, torch.Tensor):
        leaves.append(value)
        return ("tensor", value.dim(), _DTYPES[value.dtype], _empty_axes(value))
    if value is None or type(value) in CONSTANT_TYPES:
        return constant_form(value)
    if type(value) is list or type(value) is tuple:
        items = tuple([_form(item, f"{where}.{index}", leaves) for index, item in enumerate(value)])
        return ("list" if type(value) is list else "tuple", items)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise CallFormError(
                    f"argument {where!r} is a mapping with a {type(key).__name__} key; keys are strings"
                )
        return ("dict", tuple([(key, _form(item, f"{where}.{key}", leaves)) for key, item in value.items()]))
    raise CallFormError(
        f"argument {where!r} is a {type(value).__name__}; a remotely built module takes tensors, None, bool, int, "
        "float, str and lists, tuples and dicts of them"
    )


def constant_form(value: bool | float | str | None) -> Form:
    """The form of a constant; NaN has one of its own, as it equals nothing."""
    return ("const", type(value).__name__, value) if value == value else ("nan",)  # noqa: PLR0124


def _empty_axes(tensor: torch.Tensor) -> tuple[int, ...]:
    return () if tensor.numel() else tuple([axis for axis, size in enumerate(tensor.shape) if size == 0])


def rebuild(form: tuple[tuple[str, Form], ...], leaves: Iterable[torch.Tensor]) -> dict[str, Any]:
    """The inverse of :func:`call_form`: arguments by name, with ``leaves`` as their tensors."""
    remaining = iter(leaves)
    return {name: _rebuild(item, remaining) for name, item in form}


def _rebuild(form: Form, leaves: Iterator[torch.Tensor]) -> Any:
    match form[0]:
        case "tensor":
            return next(leaves)
        case "const":
            return form[2]
        case "nan":
            return math.nan
        case "dict":
            return {key: _rebuild(item, leaves) for key, item in form[1]}
        case kind:
            items = [_rebuild(item, leaves) for item in form[1]]
            return items if kind == "list" else tuple(items)


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


def form_text(form: tuple[tuple[str, Form], ...]) -> str:
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
        case "dict":
            return "{" + ", ".join(f"{key}: {_text(item)}" for key, item in form[1]) + "}"
        case kind:
            opening, closing = ("[", "]") if kind == "list" else ("(", ")")
            return opening + ", ".join(_text(item) for item in form[1]) + closing


def under_autocast(leaves: Iterable[torch.Tensor]) -> bool:
    """Whether autocast is on for the device of one of a call's tensors."""
    kinds = {leaf.device.type for leaf in leaves}
    return any(torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind) for kind in kinds)
