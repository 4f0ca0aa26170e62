"""The mode that writes a forward's torch calls down as steps.

Calls of stock modules are one step each and are not entered. Questions about sizes are answered and not written down:
their answers are symbols, which arguments of later steps then hold as expressions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import sympy
import torch
from torch import nn
from torch._dispatch.python import enable_python_dispatcher
from torch.overrides import TorchFunctionMode

from model_factory.descriptor.stock import is_stock
from model_factory.errors import NotPortableError
from model_factory.graph.constants import torch_name
from model_factory.graph.ops import AUTOCAST_KINDS, OPS
from model_factory.graph.program import (
    Argument,
    Device,
    Fields,
    GuardKind,
    Outcome,
    Program,
    Ref,
    Size,
    Step,
    TorchConst,
)
from model_factory.graph.records import Record, RecordTuple
from model_factory_server.recording.dtypes import DtypeReads
from model_factory_server.recording.modes import noted_modes
from model_factory_server.recording.results import plain_key
from model_factory_server.recording.rules import result_by_rule
from model_factory_server.recording.surroundings import as_in_use
from model_factory_server.recording.symbols import DecisionShapeEnv, SymbolTable
from model_factory_server.recording.untouched import writes_to_parameter

_OP_NAMES: Mapping[Any, str] = {function: name for name, function in reversed(list(OPS.items()))}

# Answered from the fake tensor and not recorded: their answers are sizes, which stay symbols.
_SIZE_QUESTIONS = frozenset(
    ("size dim ndimension numel nelement __len__ stride storage_offset is_contiguous is_nested is_same_size").split()
)
_DTYPE_QUESTIONS = frozenset("is_floating_point is_complex is_signed element_size".split())
_SIZE_PROPERTIES = frozenset("shape ndim device layout nbytes names is_sparse is_quantized is_nested is_meta".split())
_DTYPE_PROPERTIES = frozenset("dtype itemsize".split())
# Ops whose result sizes follow from a formula: what their kernels ask of sizes besides is about speed or validity.
_KERNELS = frozenset(
    (
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear matmul bmm baddbmm "
        "addmm layer_norm group_norm batch_norm instance_norm rms_norm scaled_dot_product_attention softmax "
        "gelu silu relu"
    ).split()
)
# Torch's C++ rules for these take sizes for plain numbers, and its Python ones do not; so inside stock modules (RNNs).
_COMPOSITES = frozenset("interpolate upsample bilinear pad constant_pad_nd".split())
# Ops that return the tensor itself where it has the wanted dtype or layout already.
_MAYBE_ITSELF = frozenset("to type type_as float double half bfloat16 long int bool contiguous cpu cuda".split())
_SQUEEZES = frozenset("squeeze squeeze_".split())
# Arithmetic on sizes; its results are symbols like sizes.
_SIZE_ARITHMETIC = frozenset("sym_float sym_int sym_ite sym_max sym_min sym_not sym_sqrt sym_sum".split())
_VALUE_QUESTIONS = frozenset("__float__ __complex__ __contains__ tolist numpy".split())
# Questions about values whose answer becomes a guard of the program.
_DECISIONS: Mapping[str, GuardKind] = {"__bool__": "bool", "is_nonzero": "bool", "__int__": "int", "__index__": "int"}
_DECIDING_OPS = frozenset("equal allclose".split())

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


def foreign_tensor(module: nn.Module, where: str = "") -> str:
    """Say what is wrong with a tensor that is none of the module's."""
    hidden = ", ".join(repr(path) for path in _hidden(module, torch.Tensor))
    hint = f"; tensors are hidden in the plain attribute {hidden}" if hidden else ""
    return (
        f"its forward uses a tensor that is neither an input nor one of its parameters or buffers{where}{hint}. "
        "Remedy: register_buffer(name, tensor, persistent=False), or nn.ParameterList for several parameters"
    )


def _hidden(module: nn.Module, kind: type) -> list[str]:
    """Attributes below a module that are plain lists, tuples or dicts with something of that kind inside."""
    found = []
    for path, item in module.named_modules():
        for name, value in item.__dict__.items():
            items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            if not name.startswith("_") and any(isinstance(entry, kind) for entry in items):
                found.append(f"{path}.{name}" if path else name)
    return found


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
        self._names: dict[int, str] = {}
        self._alive: list[Any] = []  # an id is only good while its tensor lives
        self._paths: dict[nn.Module, str] = {module: path for path, module in self.root.named_modules()}
        self._paused = 0
        self._autocast = _autocast_state()

    def know(self, tensor: torch.Tensor, name: str) -> None:
        """Remember under which name a tensor is reached."""
        self._names[id(tensor)] = name
        self._alive.append(tensor)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record torch calls and calls of stock modules while this is entered."""
        call = nn.Module.__call__

        def recorded_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self._paused:
                return call(module, *args, **kwargs)
            if is_stock(module):
                return self._record_module(call, module, args, kwargs)
            return self._enter(call, module, args, kwargs)

        self.shape_env.inside_op = 0
        try:
            modes = noted_modes(self.steps, lambda: self._paused > 0)
            calls = patch.object(nn.Module, "__call__", recorded_call)
            with calls, as_in_use(self.shape_env), self.dtypes.noted_limits(), modes, self:
                yield
        finally:
            self.shape_env.inside_op = 1

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _KERNELS:
            with self.shape_env.in_kernel():
                return self._answer(func, args, kwargs)
        if name in _COMPOSITES:
            with enable_python_dispatcher():
                return self._answer(func, args, kwargs)
        return self._answer(func, args, kwargs)

    def _answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._paused:
            return func(*args, **kwargs)
        self.shape_env.inside_op += 1
        try:
            return self._meet(func, args, kwargs)
        finally:
            self.shape_env.inside_op -= 1

    def _meet(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if getattr(func, "__name__", "") == "__get__":
            return self._read_property(func, args)
        name = getattr(func, "__name__", "")
        if func is torch.Tensor.__iter__:
            return iter(torch.unbind(args[0]))
        if name in _SIZE_QUESTIONS or name in _SIZE_ARITHMETIC:
            return func(*args, **kwargs)
        if name in _DECISIONS:
            return self._decide(_DECISIONS[name], Ref(self._tensor_name(args[0])))
        if name in _DECIDING_OPS and func in _OP_NAMES:
            step = Step(
                call=f"op:{_OP_NAMES[func]}",
                args=tuple(map(self.argument, args)),
                kwargs={key: self.argument(arg) for key, arg in kwargs.items()},
                out=f"v{len(self.steps)}",
            )
            self.steps.append(step)
            return self._decide("bool", Ref(f"v{len(self.steps) - 1}"))
        if name in _VALUE_QUESTIONS:
            raise DecidesByValuesError
        if func is torch.Tensor.type and len(args) == 2 and isinstance(args[1], torch.dtype):
            return self._record_op(torch.Tensor.to, "to", args, kwargs)
        if func is torch._is_all_true:  # noqa: SLF001  which torch.distributions call
            return self._record_op(torch.all, "all", args, kwargs)
        if name in _DTYPE_QUESTIONS or (func is torch.Tensor.type and len(args) == 1 and not kwargs):
            self.dtypes.note(args[0].dtype, self._tensor_name(args[0]))
            return func(*args, **kwargs)
        return self._record_op(func, name, args, kwargs)

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
        self.steps.append(Step(call=f"guard:{kind}", args=(condition, outcome), out=f"v{len(self.steps)}"))
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
        if name in _DTYPE_PROPERTIES:
            self.dtypes.note(args[0].dtype, self._tensor_name(args[0]))
            return getter(*args)
        if name in _SIZE_PROPERTIES:
            return getter(*args)
        if f"torch.Tensor.{name}" in OPS:
            return self._store(Step(call=f"op:torch.Tensor.{name}", args=(self.argument(args[0]),)), getter(*args))
        raise NotPortableError(f"its forward reads .{name} of a tensor, which can differ where the program is run")

    def _record_op(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        op = _OP_NAMES.get(func)
        if op is None:
            raise NotPortableError(f"its forward calls {_function_text(func)}, which is not in the table of ops")
        if _autocast_state() != self._autocast:  # set without a region
            raise NotPortableError("its forward changes the autocast mode, which a program cannot carry")
        if name in _SQUEEZES:
            self._fix_squeezed(args, kwargs)
        self._check_written(name, args, kwargs)
        step_args = tuple(self.argument(arg) for arg in args)
        step_kwargs = {
            key: Device() if key == "device" and arg is not None else self.argument(arg) for key, arg in kwargs.items()
        }
        if op == "torch.Tensor.to" and len(args) > 1 and isinstance(args[1], str):
            step_args = (step_args[0], Device(), *step_args[2:])
        result = func(*args, **kwargs)
        if name in _MAYBE_ITSELF and any(result is arg for arg in args):
            result = torch.ops.aten.alias(result)  # with another dtype it would be another tensor: so have two here
        return self._store(Step(call=f"op:{op}", args=step_args, kwargs=step_kwargs), result)

    def _check_written(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse an op that writes to what is a parameter's, though ``.data`` may hide that from autograd."""
        in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace")
        out = kwargs.get("out")
        written = [args[0] if args else kwargs.get("input")] if in_place else []
        written += out if isinstance(out, tuple | list) else [out]
        memory = {item.untyped_storage()._cdata for item in written if isinstance(item, torch.Tensor)}  # noqa: SLF001
        if not memory:
            return
        for path, parameter in self.root.named_parameters(remove_duplicate=False):
            if parameter.untyped_storage()._cdata in memory:  # noqa: SLF001
                raise writes_to_parameter(path)

    def _fix_squeezed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Squeezing changes the rank by sizes being 1: make that decision a guard."""
        tensor, dim = args[0], kwargs.get("dim", args[1] if len(args) > 1 else None)
        dims = range(tensor.dim()) if dim is None else (dim if isinstance(dim, tuple | list) else (dim,))
        inside, self.shape_env.inside_op = self.shape_env.inside_op, 0
        for axis in dims:
            bool(tensor.shape[axis] == 1)
        self.shape_env.inside_op = inside

    def _record_module(self, call: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path = self._paths.get(module)
        if path is None:
            return self._enter_stranger(call, module, args, kwargs)
        step = Step(
            call=f"module:{path}",
            args=tuple(self.argument(arg) for arg in args),
            kwargs={key: self.argument(arg) for key, arg in kwargs.items()},
        )
        self._paused += 1
        self.shape_env.inside_op += 1
        try:
            result = result_by_rule(module, args, kwargs)
            if result is None:
                with enable_python_dispatcher():
                    result = call(module, *args, **kwargs)
        finally:
            self._paused -= 1
            self.shape_env.inside_op -= 1
        return self._store(step, result)

    def _enter_stranger(self, call: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Enter a stock module that is no child: without tensors of its own, it is what its forward does."""
        if any(True for _ in itertools.chain(module.parameters(), module.buffers())):
            hidden = ", ".join(repr(path) for path in _hidden(self.root, nn.Module))
            hint = f"; modules are hidden in the plain attribute {hidden}" if hidden else ""
            raise NotPortableError(
                f"its forward calls a {type(module).__name__} that is not one of its children{hint}. "
                "Remedy: make it an attribute of the module, or keep several in an nn.ModuleList or nn.ModuleDict"
            )
        return self._enter(call, module, args, kwargs)

    def _enter(self, call: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = _plain_state(module)
        result = call(module, *args, **kwargs)
        after = _plain_state(module)
        changed = sorted(
            key for key in before.keys() | after.keys() if before.get(key, None) is not after.get(key, None)
        )
        if changed:
            where = f"{type(module).__name__}.{changed[0]}"
            raise NotPortableError(
                f"its forward assigns {where}, which a program cannot do. Remedy: update a buffer in place"
            )
        return result

    def _store(self, step: Step, result: Any) -> Any:
        name = f"v{len(self.steps)}"
        if isinstance(result, tuple | list) and not isinstance(result, torch.Size):
            names = tuple(f"{name}_{index}" for index in range(len(result)))
            self.steps.append(replace(step, out=names))
            for item_name, item in zip(names, result, strict=True):
                self._name_result(item, item_name)
        else:
            self.steps.append(replace(step, out=name))
            self._name_result(result, name)
        return result

    def _name_result(self, result: Any, name: str) -> None:
        if isinstance(result, torch.Tensor):
            self.know(result, name)
            self.symbols.add_made(name, result)
        elif isinstance(result, torch.SymInt | torch.SymFloat | torch.SymBool):
            self.symbols.add_value(name, result)
        elif isinstance(result, tuple | list | dict) and not isinstance(result, torch.Size):
            for key, item in result.items() if isinstance(result, dict) else enumerate(result):
                item_name = f"{name}_{len(self.steps)}"
                self.steps.append(Step(call="op:getitem", args=(Ref(name), self.argument(key)), out=item_name))
                self._name_result(item, item_name)

    def _tensor_name(self, tensor: torch.Tensor) -> str:
        known = self._names.get(id(tensor))
        if known is not None:
            return known
        path = self.attributes.get(id(tensor))
        if path is None:
            raise NotPortableError(foreign_tensor(self.root))
        name = f"v{len(self.steps)}"
        self.steps.append(Step(call=f"attr:{path}", out=name))
        self.know(tensor, name)
        return name

    def argument(self, value: Any) -> Argument:  # noqa: C901, PLR0912  one arm per kind of argument
        """Write a run-time value as a program's argument."""
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


def _plain_state(module: nn.Module) -> dict[str, Any]:
    own = {key: value for key, value in module.__dict__.items() if not key.startswith("_")}
    return own | {f"_buffers.{key}": value for key, value in module._buffers.items()}  # noqa: SLF001


def _autocast_state() -> tuple[Any, ...]:
    return tuple((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in AUTOCAST_KINDS)


def _function_text(func: Any) -> str:
    module = getattr(func, "__module__", None) or getattr(getattr(func, "__objclass__", None), "__name__", "torch")
    return f"{module}.{getattr(func, '__name__', func)}"
