"""The program: a forward written down as a list of steps.

A program has no loops, looks up no names at run time and holds nothing but plain data, so it can travel and
be checked before it is run. ``GraphModel``'s own steps, read from a config, and the forwards that the server
records are the same thing.

Argument values are ``None``, ``bool``, ``int``, ``float``, ``str``, ``list``, ``tuple`` and ``dict`` of
arguments, ``slice`` of arguments, ``Ellipsis`` and the classes below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Argument: TypeAlias = Any
"""A step's argument; see the module's docstring."""

GUARD = "guard:"
"""How the call of a guard begins."""

REQUIRE = "require"
"""The call of a step that refuses to go on unless its argument, a truth value of sizes, is true."""

OWN = "attr:"
"""How the name of a parameter or buffer begins in the call of a step, in sizes and in conditions."""

FLOAT_LIMITS = ("min", "max", "eps", "tiny", "resolution")
"""Of ``torch.finfo``."""

GuardKind: TypeAlias = Literal["bool", "int"]
"""Whether a guard asks if a value is true, or which integer it is."""

Outcome: TypeAlias = bool | int
"""Of a guard."""

Out: TypeAlias = "str | tuple[str, ...] | Mapping[str, str]"
"""Where a result goes: one name; one name per element of a tuple or list; or ``{key: name}`` for a dict."""


@dataclass(frozen=True, slots=True)
class Ref:
    """A value made by an earlier step, or an input."""

    name: str


RANK = -1
"""In the place of a ``Dim``'s axis: the number of axes."""


@dataclass(frozen=True, slots=True)
class Dim:
    """The size of a tensor along one axis: an input, an earlier step's value, or a parameter (``attr:PATH``)."""

    name: str
    axis: int


@dataclass(frozen=True, slots=True)
class Expr:
    """Integer, float or truth arithmetic over ``Dim``, ``Ref`` (a number) and constants; ``op`` names the operation."""

    op: str
    args: tuple[Expr | Dim | Ref | int | float, ...]


@dataclass(frozen=True, slots=True)
class Size:
    """A number computed from the sizes of the inputs."""

    expr: Expr | Dim | Ref | int | float


@dataclass(frozen=True, slots=True)
class TorchConst:
    """A dtype, memory format or layout, by the name torch gives it: ``float32``, ``channels_last``."""

    name: str


@dataclass(frozen=True, slots=True)
class DtypeOf:
    """The dtype that a value has at run time."""

    name: str


@dataclass(frozen=True, slots=True)
class LimitOf:
    """A limit of the floating dtype that a value has at run time, as ``torch.finfo`` has it."""

    name: str
    """Of the value."""
    limit: str
    """One of ``FLOAT_LIMITS``."""


@dataclass(frozen=True, slots=True)
class Device:
    """The device on which the program runs."""


@dataclass(frozen=True, slots=True)
class Fields:
    """An object with named fields, of a class that stays behind; see :mod:`model_factory.program.runtime.records`."""

    names: tuple[str, ...]
    """Of the fields, in order."""
    values: tuple[Argument, ...]
    """One per name."""
    is_tuple: bool = False
    """Whether it is a named tuple."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One call.

    ``call`` is ``module:PATH`` (a descendant of the module the program belongs to), ``op:NAME`` (the closed table),
    ``attr:PATH`` (a parameter or buffer), ``guard:KIND``, which goes on only if its first argument has the second
    for its outcome (the steps after a guard were recorded for one side of a decision by values), or ``require``, which
    goes on only if its argument is true: a size that the steps after it rely on.
    """

    call: str
    args: tuple[Argument, ...] = ()
    kwargs: Mapping[str, Argument] = field(default_factory=dict)
    out: Out = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Named inputs, the steps in order, and the result built from their values."""

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    result: Argument

    def outcomes(self, end: int | None = None) -> tuple[Outcome, ...]:
        """The outcomes that its guards (those before step ``end``) go on with."""
        return tuple(step.args[1] for step in self.steps[:end] if step.call.startswith(GUARD))
