"""Runs programs.

A program is turned once into a list of small closures and then interpreted. Modules are looked up by path on every
call, never kept, so that replacing a child (SyncBatchNorm conversion, a LoRA wrapper) takes effect.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from model_factory.errors import FormatError, GraphExecutionError
from model_factory.graph.checked import CHECKED_MODULES, CHECKED_OPS, check_call
from model_factory.graph.constants import torch_const
from model_factory.graph.expressions import Env, Evaluate, compile_expression
from model_factory.graph.ops import AUTOCAST_KINDS, OPS, SET_AUTOCAST_ENABLED, SET_GRAD_ENABLED
from model_factory.graph.program import (
    FLOAT_LIMITS,
    GUARD,
    Argument,
    Device,
    Dim,
    DtypeOf,
    Expr,
    Fields,
    LimitOf,
    Out,
    Outcome,
    Program,
    Ref,
    Size,
    Step,
    TorchConst,
)
from model_factory.graph.records import Record, RecordTuple

# Keys under which a run keeps the module it runs for and its device. No names, for a program could use any.
_SELF: Any = object()
_DEVICE: Any = object()
_MODES: Any = object()

# Asked of every part of every step: a union written out would be made anew each time.
_ATOMS = (Ref, Dim, str, int)
_LISTS = (list, tuple)
_NAMED = (Ref, DtypeOf, LimitOf, Dim)
_PLAIN = (bool, int, float, str)

_Action = Callable[[Env], Any]


class OtherSideError(Exception):
    """A guard's outcome is not the one that the steps after it are for."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(f"the program has no steps for the outcome {outcome!r}")
        self.outcome = outcome
        """What it is."""


class _Modes:
    """The modes in which a program was called."""

    def __init__(self) -> None:
        self._grad = torch.is_grad_enabled()
        self._autocast = {kind: torch.is_autocast_enabled(kind) for kind in AUTOCAST_KINDS}

    def restore_grad(self) -> None:
        torch._C._set_grad_enabled(self._grad)  # noqa: SLF001  torch.set_grad_enabled without the context manager

    def restore_autocast(self) -> None:
        for kind, enabled in self._autocast.items():
            torch.set_autocast_enabled(kind, enabled)


_RESTORED: Mapping[str, Callable[[_Modes], None]] = {
    f"op:{SET_GRAD_ENABLED}": _Modes.restore_grad,
    f"op:{SET_AUTOCAST_ENABLED}": _Modes.restore_autocast,
}
"""What such a call does without an argument."""


class Runner:
    """A program, ready to run for any module that has the children and tensors it names."""

    def __init__(self, program: Program) -> None:
        """Check the program and compile it.

        Raises:
            FormatError: an op, value or constant is unknown.
        """
        self.program = program
        parts = [_parts((step.args, step.kwargs), []) for step in program.steps]
        used = [_names(some) for some in [*parts, _parts(program.result, [])]]
        _check_names(program, used)
        self._actions: list[_Action] = [_compile_step(step) for step in program.steps]
        self._stores = [_compile_store(step.out) for step in program.steps]
        self._dead: list[list[str]] = [[] for _ in program.steps]  # not needed after a step
        for name, index in _last_uses(program, used).items():
            self._dead[index].append(name)
        self._result = _compile(program.result)
        self._uses_device = any(isinstance(part, Device) for some in parts for part in some)
        self._sets_modes = any(step.call in _RESTORED for step in program.steps)
        if any(step.call.startswith(GUARD) for step in program.steps):  # another program may finish a run
            self._uses_device = self._sets_modes = True

    def __deepcopy__(self, _memo: dict[int, Any]) -> Runner:
        return self  # immutable: copies of a module share it

    def __reduce__(self) -> tuple[type[Runner], tuple[Program]]:
        return (Runner, (self.program,))

    def run(
        self,
        module: nn.Module,
        values: list[Any],
        *,
        on_error: Callable[[int, BaseException], None] | None = None,
        other_side: Callable[[int, Outcome], Runner] | None = None,
    ) -> Any:
        """Run for ``module`` with one value per program input, in order.

        ``on_error`` is called with the number of a failing step and its error, and may raise another one.
        ``other_side`` is called with the number of a guard and an outcome this program has no steps for, and returns
        the runner that goes on there: its steps before are the same, so the values made are those it needs.

        Raises:
            OtherSideError: there is such a guard, and no ``other_side``.
        """
        env: Env = dict(zip(self.program.inputs, values, strict=True))
        env[_SELF] = module
        if self._uses_device:
            env[_DEVICE] = _device(module, values)
        if not self._sets_modes:
            return self._interpret(env, on_error, other_side)
        modes = env[_MODES] = _Modes()
        try:
            return self._interpret(env, on_error, other_side)
        finally:
            modes.restore_grad()
            modes.restore_autocast()

    def _interpret(
        self,
        env: Env,
        on_error: Callable[[int, BaseException], None] | None,
        other_side: Callable[[int, Outcome], Runner] | None,
        start: int = 0,
    ) -> Any:
        for index, action in enumerate(self._actions[start:] if start else self._actions, start):
            try:
                self._stores[index](env, action(env))
            except OtherSideError as error:
                if other_side is None:
                    raise
                outcome = error.outcome
                break
            except BaseException as error:
                if on_error is not None:
                    on_error(index, error)
                raise
            for name in self._dead[index]:
                env.pop(name, None)
        else:
            return self._result(env)
        other = other_side(index, outcome)
        return other._interpret(env, on_error, other_side, index)  # noqa: SLF001  its own class


def get_module(root: nn.Module, path: str) -> nn.Module:
    """Return the descendant of ``root`` at a dotted path; ``""`` is ``root`` itself."""
    module = find_module(root, path)
    if module is None:
        raise GraphExecutionError(f"the module has no child {path!r}")
    return module


def find_module(root: nn.Module, path: str) -> nn.Module | None:
    """As :func:`get_module`, or None if there is no such descendant."""
    module: nn.Module | None = root
    for part in path.split(".") if path else ():
        module = module._modules.get(part) if module is not None else None  # noqa: SLF001  get_submodule without checks
    return module


def get_tensor(root: nn.Module, path: str) -> torch.Tensor | None:
    """Return the parameter or buffer at a dotted path."""
    owner, _, name = path.rpartition(".")
    value = getattr(get_module(root, owner), name)
    if value is not None and not isinstance(value, torch.Tensor):
        raise GraphExecutionError(f"{path!r} is a {type(value).__name__}, not a parameter or buffer")
    return value


def _device(module: nn.Module, values: list[Any]) -> torch.device:
    """The device a program runs on: of its first tensor input, else of the module's first tensor."""
    for value in values:
        if isinstance(value, torch.Tensor):
            return value.device
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        return tensor.device
    return torch.device("cpu")


def _compile_step(step: Step) -> _Action:
    kind, _, target = step.call.partition(":")
    args = [_compile(arg) for arg in step.args]
    kwargs = {name: _compile(arg) for name, arg in step.kwargs.items()}
    if kind == "attr":
        return lambda env: get_tensor(env[_SELF], target)
    if kind == "op":
        function = CHECKED_OPS.get(target) or OPS.get(target)
        if function is None:
            raise FormatError(f"a program calls the unknown op {target!r}")
        if step.call in _RESTORED and not args:
            restore = _RESTORED[step.call]
            return lambda env: restore(env[_MODES])
        return lambda env: function(*[arg(env) for arg in args], **{name: arg(env) for name, arg in kwargs.items()})
    if kind == "module":
        return lambda env: _call_module(
            get_module(env[_SELF], target), [arg(env) for arg in args], {name: arg(env) for name, arg in kwargs.items()}
        )
    if step.call in _GUARDS and len(args) == 2 and type(step.args[1]) is _GUARDS[step.call]:
        return _compile_guard(args[0], _GUARDS[step.call], step.args[1])
    raise FormatError(f"a program makes a call of unknown kind: {step.call!r}")


def _call_module(module: nn.Module, args: list[Any], kwargs: dict[str, Any]) -> Any:
    if isinstance(module, CHECKED_MODULES):
        check_call(module, args, kwargs)
    return module(*args, **kwargs)


_GUARDS: Mapping[str, type[bool] | type[int]] = {f"{GUARD}bool": bool, f"{GUARD}int": int}


def _compile_guard(value: Evaluate, kind: type[bool] | type[int], wanted: Outcome) -> _Action:
    def check(env: Env) -> None:
        outcome = kind(value(env))
        if outcome != wanted:
            raise OtherSideError(outcome)

    return check


def _compile(argument: Argument) -> Evaluate:  # noqa: C901, PLR0912  one arm per kind of argument
    if isinstance(argument, Ref):
        name = argument.name
        return lambda env: env[name]
    if isinstance(argument, Size):
        return compile_expression(argument.expr)
    if isinstance(argument, TorchConst):
        constant = torch_const(argument.name)
        return lambda _env: constant
    if isinstance(argument, DtypeOf):
        name = argument.name
        return lambda env: env[name].dtype
    if isinstance(argument, LimitOf) and argument.limit in FLOAT_LIMITS:
        name, limit = argument.name, argument.limit
        return lambda env: getattr(torch.finfo(env[name].dtype), limit)
    if isinstance(argument, Device):
        return lambda env: env[_DEVICE]
    if isinstance(argument, slice):
        bounds = [_compile(bound) for bound in (argument.start, argument.stop, argument.step)]
        return lambda env: slice(*[bound(env) for bound in bounds])
    if isinstance(argument, _LISTS):
        items = [_compile(item) for item in argument]
        if isinstance(argument, list):
            return lambda env: [item(env) for item in items]
        return lambda env: tuple([item(env) for item in items])
    if isinstance(argument, Fields):
        names, values = argument.names, _compile(argument.values)
        if argument.is_tuple:
            return lambda env: RecordTuple(names, values(env))
        return lambda env: Record(zip(names, values(env), strict=True))
    if isinstance(argument, Mapping):
        entries = {key: _compile(item) for key, item in argument.items()}
        return lambda env: {key: item(env) for key, item in entries.items()}
    if argument is None or argument is Ellipsis or isinstance(argument, _PLAIN):
        return lambda _env: argument
    raise FormatError(f"a program holds an argument of unknown type {type(argument).__name__}")


def _compile_store(out: Out) -> Callable[[Env, Any], None]:
    if isinstance(out, str):
        name = out

        def store(env: Env, value: Any) -> None:
            env[name] = value

        return store
    if isinstance(out, tuple):
        names = out

        def store_items(env: Env, value: Any) -> None:
            if not isinstance(value, tuple | list) or len(value) != len(names):
                raise GraphExecutionError(f"expected a tuple or list of {len(names)} values, got {_shape_text(value)}")
            env.update(zip(names, value, strict=True))

        return store_items
    keys = out

    def store_entries(env: Env, value: Any) -> None:
        if not isinstance(value, Mapping):
            raise GraphExecutionError(f"expected a mapping with keys {sorted(keys)}, got {_shape_text(value)}")
        for key, name in keys.items():
            if key not in value:
                raise GraphExecutionError(f"the result has no key {key!r}; it has {sorted(map(str, value))}")
            env[name] = value[key]

    return store_entries


def _shape_text(value: Any) -> str:
    return (
        f"a {type(value).__name__} of {len(value)}" if isinstance(value, tuple | list) else f"a {type(value).__name__}"
    )


def out_names(out: Out) -> tuple[str, ...]:
    """The names a step's result is stored under."""
    if isinstance(out, str):
        return (out,)
    return out if isinstance(out, tuple) else tuple(out.values())


def _parts(argument: Argument, found: list[Argument]) -> list[Argument]:
    """Add to ``found``, and return, an argument's parts that are not containers."""
    if isinstance(argument, _ATOMS):
        found.append(argument)
    elif isinstance(argument, Size):
        _parts(argument.expr, found)
    elif isinstance(argument, Expr):
        _parts(argument.args, found)
    elif isinstance(argument, slice):
        _parts((argument.start, argument.stop, argument.step), found)
    elif isinstance(argument, _LISTS):
        for item in argument:
            _parts(item, found)
    elif isinstance(argument, Mapping):
        for item in argument.values():
            _parts(item, found)
    elif isinstance(argument, Fields):
        _parts(argument.values, found)
    else:
        found.append(argument)
    return found


def _names(parts: list[Argument]) -> list[str]:
    """The values that parts refer to."""
    return [part.name for part in parts if isinstance(part, _NAMED)]


def _check_names(program: Program, used: list[list[str]]) -> None:
    """Check that what each step uses, and at last the result, is made before."""
    known = set(program.inputs)
    for index, (step, names) in enumerate(zip(program.steps, used[:-1], strict=True)):
        for name in names:
            if name not in known:
                raise FormatError(f"step {index} ({step.call}) uses {name!r} before it exists")
        known.update(out_names(step.out))
    for name in used[-1]:
        if name not in known:
            raise FormatError(f"the program's result uses {name!r}, which no step makes")


def _last_uses(program: Program, used: list[list[str]]) -> dict[str, int]:
    """For each value, the last step that needs it; values of the result are needed for ever.

    Up to its last guard a program keeps all, for another one may go on there.
    """
    last: dict[str, int] = {}
    guard = max((index for index, step in enumerate(program.steps) if step.call.startswith(GUARD)), default=0)
    for index, (step, names) in enumerate(zip(program.steps, used[:-1], strict=True)):
        for name in (*out_names(step.out), *names):
            last[name] = max(index, guard)
    for name in used[-1]:
        last.pop(name, None)
    return last
