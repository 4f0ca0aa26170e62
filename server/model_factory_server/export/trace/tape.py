"""The mode that writes a forward's torch calls down as steps.

Calls of stock modules are one step each and are not entered. Questions about sizes are answered and not written down:
their answers are symbols, which arguments of later steps then hold as expressions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from model_factory.errors import NotPortableError
from model_factory.program.call_signature import Unreadable
from model_factory.program.ir import (
    Argument,
    AttributeRead,
    Device,
    Expr,
    Fields,
    Guard,
    GuardKind,
    ModuleCall,
    OpCall,
    Outcome,
    Program,
    Ref,
    Require,
    Size,
    Step,
    TorchConst,
)
from model_factory.program.ops import AUTOCAST_KINDS, OPS, einsum
from model_factory.program.runtime.records import Record, RecordTuple
from model_factory.program.torch_names import torch_name
from model_factory_server.export.conditions.module_reads import ModuleReads
from model_factory_server.export.conditions.symbolic_sizes import plain_axes
from model_factory_server.export.conditions.symbols import DecisionShapeEnv, SymbolTable
from model_factory_server.export.conditions.unread_arguments import UseNoting, constant_of
from model_factory_server.export.restored_after import writes_to_parameter
from model_factory_server.export.torch_internals import enable_python_dispatcher, is_all_true, memory_id
from model_factory_server.export.trace.dtypes import DtypeReads
from model_factory_server.export.trace.einsum import contraction_order
from model_factory_server.export.trace.foreign import foreign_tensor, function_text
from model_factory_server.export.trace.mode_calls import AUTOCAST_REFUSAL, ModeCalls
from model_factory_server.export.trace.module_calls import ModuleCalls
from model_factory_server.export.trace.op_kinds import (
    COMPOSITES,
    DECIDING_OPS,
    DECISIONS,
    DTYPE_PROPERTIES,
    DTYPE_QUESTIONS,
    KERNELS,
    MAYBE_ITSELF,
    SIZE_ARITHMETIC,
    SIZE_PROPERTIES,
    SIZE_QUESTIONS,
    SIZE_READS,
    SQUEEZES,
    VALUE_QUESTIONS,
)
from model_factory_server.export.trace.results import plain_key

_Given = Callable[[str, torch.Tensor], torch.Tensor]  # by the name of a step's result, the tensor to go on with
_OP_NAMES: Mapping[Any, str] = {function: name for name, function in reversed(list(OPS.items()))}

MAX_DECISIONS = 64
"""Decisions by values in one program."""


class DecidesByValuesError(Exception):
    """The forward asks for a tensor's values in a way that cannot become a guard."""


class UndecidedError(NotPortableError):
    """The forward has come to a decision by values whose outcome it was not told."""

    def __init__(self, program: Program, kind: GuardKind) -> None:
        super().__init__("its forward decides by the values of a tensor")
        self.program = program
        """What was recorded up to here; its result is what is decided by."""
        self.kind = kind
        """What of it: whether it is true, or which integer it is."""


@dataclass
class Tape(TorchFunctionMode):
    """The mode that writes down torch calls."""

    shape_env: DecisionShapeEnv
    symbols: SymbolTable
    root: nn.Module
    inputs: tuple[str, ...]
    outcomes: Sequence[Outcome] = ()
    """Of the decisions by values, in order, as far as they are known."""
    steps: list[Step] = field(default_factory=list)
    attributes: dict[int, str] = field(default_factory=dict)
    """``id`` of a parameter, buffer or plain tensor -> its path."""
    dtypes: DtypeReads = field(default_factory=DtypeReads)
    decisions: list[Outcome] = field(default_factory=list)
    """The outcomes that were taken."""
    undecided: UndecidedError | None = None
    """The first decision that there was no outcome for."""

    def __post_init__(self) -> None:
        super().__init__()
        self.shape_env.decide_by_value = self._decide_number
        self._numbers: dict[Any, Any] = {}
        self.touched: set[str] = set()  # names of the values that the forward has used or asked about
        self._names: dict[int, str] = {}
        self._sized: dict[int, torch.Tensor] = {}
        self._used_own: dict[str, torch.Tensor] = {}  # parameters and buffers, until the forward reads a size
        self._alive: list[Any] = []  # an id is only good while its tensor lives
        self.paths: dict[nn.Module, str] = {module: path for path, module in self.root.named_modules()}
        self.paused = 0
        self._autocast = _autocast_state()
        self.module_calls = ModuleCalls(self)
        self.modes = ModeCalls(self.steps, lambda: self.paused > 0)
        self.reads = ModuleReads(self.root, self._is_forward, self._sized_parameter)
        # Of results of torch modules: their rank, and the sizes that are their input's, until the forward reads one.
        self.kept: dict[str, list[Expr]] = {}
        self.units: dict[str, list[Expr]] = {}  # sizes of 1 that layers have given, until the forward reads one

    def _is_forward(self) -> bool:
        return not self.paused and self.shape_env.in_forward

    def know(self, tensor: torch.Tensor, name: str) -> None:
        """Remember under which name a tensor is reached."""
        self._names[id(tensor)] = name
        self._alive.append(tensor)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record torch calls while this is entered; ``torch_patches.patch_torch`` adds calls of modules."""
        with self.shape_env.run_by(forward=True), self:
            yield
            self.require()

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in KERNELS:
            with self.shape_env.in_kernel():
                return self._answer(func, args, kwargs)
        if name in COMPOSITES:
            with enable_python_dispatcher():
                return self._answer(func, args, kwargs)
        return self._answer(func, args, kwargs)

    def _answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.paused:
            return func(*args, **kwargs)
        with self.shape_env.run_by(forward=False):
            return self._meet(func, args, kwargs)

    def require(self) -> None:
        """Write down the new conditions on sizes that layers give, each as a step."""
        for condition in self.symbols.requirements():
            self._add_requirement(condition)

    def _add_requirement(self, condition: Any) -> None:
        self.steps.append(Require(condition=Size(condition)))

    def _read_sizes(self, tensor: torch.Tensor) -> None:
        """Note that the forward reads sizes or the rank of a tensor.

        Sizes of 1 that layers and parameters gave, which are no symbols, may be part of what is read: they are
        conditions from now on.
        """
        path, name = self.attributes.get(id(tensor)), self._names.get(id(tensor))
        if path is not None:
            self._fix_units(path, tensor)
            self.symbols.fix_own_rank(path, tensor.dim())
        elif name not in self.inputs:
            self._require_units()
        for condition in self.kept.pop(name or "", ()):
            self._add_requirement(condition)

    def _require_units(self) -> None:
        for name in [name for name in self.units if name in self.touched]:
            for unit in self.units.pop(name):
                self._add_requirement(unit)
        for own, tensor in self._used_own.items():
            self._fix_units(own, tensor)
        self._used_own.clear()

    def _fix_units(self, path: str, tensor: torch.Tensor) -> None:
        if axes := plain_axes(tensor):
            self.symbols.fix_own(path, {axis: int(tensor.shape[axis]) for axis in axes})

    def _sized_parameter(self, path: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a torch module's parameter, which the forward itself reads, with symbols for sizes."""
        if id(tensor) not in self._sized:
            with self.no_recording():
                sized = self.symbols.own(path, tensor)
            self._alive += [tensor, sized]
            self.attributes[id(sized)] = path
            self._sized[id(tensor)] = self._sized[id(sized)] = sized
        return self._sized[id(tensor)]

    @contextmanager
    def no_recording(self) -> Iterator[None]:
        """Write nothing down while this is entered: what runs is not the forward's own code."""
        self.paused += 1
        try:
            with self.shape_env.run_by(forward=False):
                yield
        finally:
            self.paused -= 1

    def _meet(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.require()
        func, kwargs = _as_recorded(func, args, kwargs)
        name = getattr(func, "__name__", "")
        self.touched.update(self._names[id(arg)] for arg in args if id(arg) in self._names)
        if name == "__get__":
            return self._read_property(func, args)
        if func is torch.Tensor.__iter__:
            return iter(torch.unbind(args[0]))
        if name in SIZE_QUESTIONS or name in SIZE_ARITHMETIC:
            if name in SIZE_READS:
                self._read_sizes(args[0])
            return func(*args, **kwargs)
        if name in DECISIONS:
            return self._decide(DECISIONS[name], Ref(self._tensor_name(args[0])))
        if name in DECIDING_OPS and func in _OP_NAMES:
            return self._decide_by_op(_OP_NAMES[func], args, kwargs)
        if name in VALUE_QUESTIONS:
            raise DecidesByValuesError
        if func is torch.Tensor.type and len(args) == 2 and isinstance(args[1], torch.dtype):
            return self._record_op(torch.Tensor.to, "to", args, kwargs)
        if name in DTYPE_QUESTIONS or (func is torch.Tensor.type and len(args) == 1 and not kwargs):
            self.dtypes.note(args[0].dtype, self._tensor_name(args[0]))
            return func(*args, **kwargs)
        return self._record_op(func, name, args, kwargs)

    def _decide_by_op(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome:
        out = f"v{len(self.steps)}"
        step_kwargs = {key: self.argument(arg) for key, arg in kwargs.items()}
        self.steps.append(OpCall(name=op, args=tuple(map(self.argument, args)), kwargs=step_kwargs, out=out))
        return self._decide("bool", Ref(out))

    def _decide(self, kind: GuardKind, condition: Argument) -> Outcome:
        """Return the outcome of a decision by values, which becomes a guard of the program."""
        if len(self.decisions) == MAX_DECISIONS:
            raise NotPortableError(f"its forward decides by values more than {MAX_DECISIONS} times in one call")
        if len(self.decisions) == len(self.outcomes):
            program = Program(inputs=self.inputs, steps=tuple(self.steps), result=condition)
            self.undecided = self.undecided or UndecidedError(program, kind)
            raise self.undecided
        outcome = self.outcomes[len(self.decisions)]
        if type(outcome) is not {"bool": bool, "int": int}[kind]:
            raise NotPortableError(f"its forward decides by a {kind} where the call says {outcome!r}")
        self.decisions.append(outcome)
        self.steps.append(Guard(value=condition, outcome=outcome))
        return outcome

    def _decide_number(self, expr: Any) -> Any:
        """As :meth:`_decide`, for an expression with numbers from tensors; as sympy's value."""
        if expr not in self._numbers:
            condition = Size(self.symbols.translate(expr))
            if isinstance(expr, sympy.logic.boolalg.Boolean):
                self._numbers[expr] = sympy.true if self._decide("bool", condition) else sympy.false
            elif expr.is_integer:
                self._numbers[expr] = sympy.Integer(self._decide("int", condition))
            else:
                raise DecidesByValuesError
        return self._numbers[expr]

    def _read_property(self, getter: Any, args: tuple[Any, ...]) -> Any:
        owner = getter.__self__
        name = getattr(owner, "fget", owner).__name__
        if name in DTYPE_PROPERTIES:
            self.dtypes.note(args[0].dtype, self._tensor_name(args[0]))
            return getter(*args)
        if name in SIZE_PROPERTIES:
            if name in SIZE_READS:
                self._read_sizes(args[0])
            return getter(*args)
        if f"torch.Tensor.{name}" in OPS:
            return self.store(OpCall(name=f"torch.Tensor.{name}", args=(self.argument(args[0]),)), getter(*args))
        raise NotPortableError(f"its forward reads .{name} of a tensor, which can differ where the program is run")

    def _record_op(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        op = _OP_NAMES.get(func)
        if op is None:
            raise NotPortableError(f"its forward calls {function_text(func)}, which is not in the table of ops")
        if _autocast_state() != self._autocast:  # set without a region
            raise NotPortableError(AUTOCAST_REFUSAL)
        if name in SQUEEZES:
            self._fix_squeezed(args, kwargs)
        self._check_written(name, args, kwargs)
        step_args = tuple(self.argument(arg) for arg in args)
        step_kwargs = {
            key: Device() if key == "device" and arg is not None else self.argument(arg) for key, arg in kwargs.items()
        }
        if op == "torch.Tensor.to" and len(args) > 1 and isinstance(args[1], str):
            step_args = (step_args[0], Device(), *step_args[2:])
        result = func(*args, **kwargs)
        if name in MAYBE_ITSELF and any(result is arg for arg in args):
            result = torch.ops.aten.alias(result)  # with another dtype it would be another tensor: so have two here
        return self.store(OpCall(name=op, args=step_args, kwargs=step_kwargs), result)

    def _check_written(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse an op that writes to what is a parameter's, though ``.data`` may hide that from autograd."""
        in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace")
        out = kwargs.get("out")
        written = [args[0] if args else kwargs.get("input")] if in_place else []
        written += out if isinstance(out, tuple | list) else [out]
        memory = {memory_id(item) for item in written if isinstance(item, torch.Tensor)}
        if not memory:
            return
        for path, parameter in self.root.named_parameters(remove_duplicate=False):
            sized = self._sized.get(id(parameter), parameter)
            if not memory.isdisjoint({memory_id(item) for item in (parameter, sized)}):
                raise writes_to_parameter(path)

    def _fix_squeezed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Squeezing changes the rank by sizes being 1: make that decision a guard."""
        tensor, dim = args[0], kwargs.get("dim", args[1] if len(args) > 1 else None)
        dims = range(tensor.dim()) if dim is None else (dim if isinstance(dim, tuple | list) else (dim,))
        self._require_units()
        with self.shape_env.run_by(forward=True):
            for axis in dims:
                bool(tensor.shape[axis] == 1)

    def store(self, step: ModuleCall | OpCall, result: Any, given: _Given = lambda _name, tensor: tensor) -> Any:
        """Add a step; return its result, each tensor as ``given`` returns it for the tensor's name."""
        name = f"v{len(self.steps)}"
        if isinstance(result, tuple | list) and not isinstance(result, torch.Size):
            names = tuple(f"{name}_{index}" for index in range(len(result)))
            self.steps.append(replace(step, out=names))
            return _like(result, [self._name_result(item, at, given) for at, item in zip(names, result, strict=True)])
        self.steps.append(replace(step, out=name))
        return self._name_result(result, name, given)

    def _name_result(self, result: Any, name: str, given: _Given) -> Any:
        if isinstance(result, torch.Tensor):
            result = given(name, result)
            self.know(result, name)
            self.symbols.add_made(name, result)
        elif isinstance(result, torch.SymInt | torch.SymFloat | torch.SymBool):
            self.symbols.add_value(name, result)
        elif isinstance(result, dict):
            return {key: self._name_item(item, name, key, given) for key, item in result.items()}
        elif isinstance(result, tuple | list) and not isinstance(result, torch.Size):
            return _like(result, [self._name_item(item, name, index, given) for index, item in enumerate(result)])
        return result

    def _name_item(self, item: Any, name: str, key: Any, given: _Given) -> Any:
        item_name = f"{name}_{len(self.steps)}"
        self.steps.append(OpCall(name="getitem", args=(Ref(name), self.argument(key)), out=item_name))
        return self._name_result(item, item_name, given)

    def _tensor_name(self, tensor: torch.Tensor) -> str:
        known = self._names.get(id(tensor))
        if known is not None:
            self.touched.add(known)
            return known
        path = self.attributes.get(id(tensor))
        if path is None:
            raise NotPortableError(foreign_tensor(self.root))
        name = f"v{len(self.steps)}"
        self.steps.append(AttributeRead(path=path, out=name))
        self.know(tensor, name)
        self._used_own[path] = tensor
        return name

    def argument(self, value: Any) -> Argument:  # noqa: C901, PLR0912  one arm per kind of argument
        """Write a run-time value as a program's argument."""
        if type(value) is Unreadable:
            _ = value.use  # raises
        if type(value) is UseNoting:
            value = constant_of(value)
        if isinstance(value, torch.Tensor):
            return Ref(self._tensor_name(value))
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            return Size(self.symbols.expression(value))
        if type(value) is float:
            return self.dtypes.number(value)
        if value is None or value is Ellipsis or type(value) in {bool, int, str}:
            return value
        if isinstance(value, torch.dtype):
            return self.dtypes.dtype(value)
        if isinstance(value, torch.memory_format | torch.layout):
            return TorchConst(torch_name(value))
        if isinstance(value, torch.device):
            return Device()
        if isinstance(value, slice):
            return slice(*(self.argument(bound) for bound in (value.start, value.stop, value.step)))
        if isinstance(value, list):
            return [self.argument(item) for item in value]
        if type(value) is tuple or isinstance(value, torch.Size):
            return tuple(self.argument(item) for item in value)
        if isinstance(value, Record):
            return Fields(tuple(value.fields()), tuple(map(self.argument, value.fields().values())))
        if isinstance(value, RecordTuple):
            return Fields(value._fields, tuple(map(self.argument, value)), is_tuple=True)
        if isinstance(value, dict):
            return {plain_key(key): self.argument(item) for key, item in value.items()}
        raise NotPortableError(
            f"its forward passes a {type(value).__module__}.{type(value).__qualname__}, which is not plain data"
        )


def _like(container: Any, items: list[Any]) -> Any:
    """Return a list or tuple of the same class with other items; the same one where nothing has changed."""
    if all(one is other for one, other in zip(container, items, strict=True)):
        return container
    return container._make(items) if hasattr(container, "_make") else type(container)(items)


def _as_recorded(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the function and the keywords that a program has in the place of a call of torch's."""
    if func is is_all_true:
        return torch.all, kwargs
    if func is torch.einsum:
        return einsum, {"path": contraction_order(*args)}
    return func, kwargs


def _autocast_state() -> tuple[Any, ...]:
    return tuple((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in AUTOCAST_KINDS)
