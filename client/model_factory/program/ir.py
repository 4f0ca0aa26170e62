"""A program: a forward as a list of steps.

A program is plain data without loops and without name look-ups at run time. A program can therefore be sent, and be
checked before a run. The steps of a config's graph and a recorded forward are both programs.

Arguments are ``None``, ``bool``, ``int``, ``float``, ``str``, ``list``, ``tuple`` and ``dict`` of arguments, ``slice``
of arguments, ``Ellipsis`` and the classes below.

Example, ``relu(layer(x))``::

    Program(
        inputs=("x",),
        steps=(
            ModuleCall(path="layer", args=(Ref("x"),), out="h"),
            OpCall(name="torch.relu", args=(Ref("h"),), out="y"),
        ),
        result=Ref("y"),
    )
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Argument: TypeAlias = Any
"""Argument of a step; see the module's docstring."""

OWN = "attr:"
"""Prefix of a parameter's or buffer's path where a size or a condition names the tensor: ``attr:layer.weight``."""

FLOAT_LIMITS = ("min", "max", "eps", "tiny", "resolution")
"""Attributes of ``torch.finfo``."""

GuardKind: TypeAlias = Literal["bool", "int"]
"""Type of a guard's outcome: the truth of a value, or an integer."""

FieldsKind: TypeAlias = Literal["record", "named_tuple", "object"]
"""Kind of an object with named fields: a mapping with attributes, a named tuple, or attributes alone."""

Outcome: TypeAlias = bool | int
"""Outcome of a guard."""

Out: TypeAlias = "str | tuple[str, ...] | Mapping[str, str]"
"""Names for a step's result: one name; one name per element of a tuple or list; or ``{key: name}`` for a dict."""


@dataclass(frozen=True, slots=True)
class Ref:
    """A value: the result of an earlier step, or an input."""

    name: str


@dataclass(frozen=True, slots=True)
class Dim:
    """Size of a tensor along one axis: of an input, an earlier step's value, or a parameter (``attr:PATH``)."""

    name: str
    axis: int


@dataclass(frozen=True, slots=True)
class Rank:
    """Number of axes of a tensor, named as in :class:`Dim`."""

    name: str


@dataclass(frozen=True, slots=True)
class Expr:
    """Integer, float or truth arithmetic over sizes, ``Ref`` (a number) and constants; ``op`` names the operation."""

    op: str
    args: tuple[Expression, ...]


Expression: TypeAlias = Expr | Dim | Rank | Ref | int | float
"""Arithmetic on sizes; see :mod:`model_factory.program.expressions`."""


@dataclass(frozen=True, slots=True)
class Size:
    """A number computed from the sizes of the inputs."""

    expr: Expression


@dataclass(frozen=True, slots=True)
class TorchConst:
    """A dtype, memory format or layout, by torch's name: ``float32``, ``channels_last``."""

    name: str


@dataclass(frozen=True, slots=True)
class DtypeOf:
    """Dtype of a value at run time."""

    name: str


@dataclass(frozen=True, slots=True)
class LimitOf:
    """Limit of a value's floating dtype at run time, from ``torch.finfo``."""

    name: str
    """Name of the value."""
    limit: str
    """Member of ``FLOAT_LIMITS``."""


@dataclass(frozen=True, slots=True)
class Device:
    """Device of the run."""


@dataclass(frozen=True, slots=True)
class GeneratorOf:
    """A ``torch.Generator`` among the arguments of the call."""

    name: str
    """Name of the argument, as in :func:`model_factory.program.arguments.generators.generators_of`."""


@dataclass(frozen=True, slots=True)
class Fields:
    """An object with named fields, without the object's class; see ``program/runtime/named_results.py``."""

    names: tuple[str, ...]
    """Names of the fields, in order."""
    values: tuple[Argument, ...]
    """Values of the fields, in order."""
    kind: FieldsKind = "record"
    """Kind of the object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleCall:
    """Step: call a descendant of the module that the program belongs to."""

    path: str
    """Dotted path of the descendant; in a config, the name of a module."""
    args: tuple[Argument, ...] = ()
    kwargs: Mapping[str, Argument] = field(default_factory=dict)
    out: Out = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpCall:
    """Step: call an op of the closed table."""

    name: str
    """Canonical name in ``OPS``; in a config, any name that ``resolve_op`` accepts."""
    args: tuple[Argument, ...] = ()
    kwargs: Mapping[str, Argument] = field(default_factory=dict)
    out: Out = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeRead:
    """Step: read a parameter or buffer."""

    path: str
    """Dotted path of the tensor."""
    out: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferAssignment:
    """Step: put a tensor in the place of a buffer that no state dict has, as a forward does that keeps a table."""

    path: str
    """Dotted path of the buffer."""
    value: Ref
    """The tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """Step: make a tensor of fixed values on the CPU, for a table in a plain list, a closure or a module's globals."""

    dtype: str
    """Torch's name of the dtype."""
    shape: tuple[int, ...]
    """Sizes."""
    data: bytes
    """Values in memory order, little-endian."""
    out: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Step: continue only on the recorded branch of a decision by values.

    The steps after a guard were recorded for one outcome of ``bool(value)`` or ``int(value)``. On another outcome,
    another program continues the run.
    """

    value: Argument
    """The value that the forward decided by."""
    outcome: Outcome
    """The recorded outcome."""
    asserts: bool = False
    """Whether the forward raises an error on the other outcome: compiled code then checks without a decision."""

    @property
    def kind(self) -> GuardKind:
        """Type of the outcome."""
        return "bool" if isinstance(self.outcome, bool) else "int"


@dataclass(frozen=True, slots=True, kw_only=True)
class Require:
    """Step: refuse to continue unless a condition on sizes holds. The steps after rely on the condition."""

    condition: Size
    """A truth value of sizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnBackward:
    """Step: give results a backward of their own, as a ``torch.autograd.Function`` does.

    The steps before have computed the results without gradients.
    """

    inputs: tuple[Argument, ...]
    """Tensors that receive gradients."""
    results: tuple[Argument, ...]
    """The results, as computed."""
    kept: tuple[Argument, ...]
    """Values for the backward, besides the gradients of the results."""
    backward: Program
    """Inputs: a gradient for each result, and the kept values. Result: a tuple with a gradient for each input."""
    constant: tuple[int, ...] = ()
    """Positions of results without gradients."""
    once: bool = False
    """Whether the backward itself has no gradients: a second differentiation is an error."""
    out: Out = ()


Step: TypeAlias = ModuleCall | OpCall | AttributeRead | BufferAssignment | Constant | Guard | Require | OwnBackward
"""One step of a program."""


def step_text(step: Step) -> str:
    """Name a step without its arguments, as in JSON documents and messages.

    Example:
        >>> step_text(OpCall(name="torch.cat", args=([Ref("x"), Ref("y")],), out="z"))
        'op:torch.cat'
        >>> step_text(Guard(value=Ref("z"), outcome=True))
        'guard:bool'
    """
    match step:
        case ModuleCall(path=path):
            return f"module:{path}"
        case OpCall(name=name):
            return f"op:{name}"
        case AttributeRead(path=path):
            return f"{OWN}{path}"
        case BufferAssignment(path=path):
            return f"assign:{path}"
        case Constant(dtype=dtype):
            return f"constant:{dtype}"
        case Guard(kind=kind, asserts=asserts):
            return "guard:assert" if asserts else f"guard:{kind}"
        case Require():
            return "require"
        case OwnBackward(once=once):
            return "backward:once" if once else "backward"


def step_arguments(step: Step) -> Argument:
    """Return every argument of a step, as one nested argument."""
    match step:
        case ModuleCall() | OpCall():
            return (step.args, step.kwargs)
        case AttributeRead() | Constant():
            return ()
        case BufferAssignment():
            return step.value
        case Guard():
            return (step.value, step.outcome)
        case Require():
            return step.condition
        case OwnBackward():  # the backward has the kept values only
            return (step.inputs, step.results, step.kept)


def out_names(step: Step) -> tuple[str, ...]:
    """Names of the values that a step makes.

    Example:
        >>> out_names(ModuleCall(path="lstm", args=(Ref("x"),), out=("y", "state")))
        ('y', 'state')
    """
    if isinstance(step, Guard | Require | BufferAssignment):
        return ()
    if isinstance(step.out, str):
        return (step.out,)
    return step.out if isinstance(step.out, tuple) else tuple(step.out.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Named inputs, the steps in order, and the result built from their values."""

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    result: Argument

    def outcomes(self, end: int | None = None) -> tuple[Outcome, ...]:
        """Outcomes that the guards were recorded for; only of guards before step ``end``, if given."""
        return tuple(step.outcome for step in self.steps[:end] if isinstance(step, Guard))
