"""Compiles a program's steps: one small function of the environment for each.

Modules are looked up by path on every call, never kept, so that replacing a child (SyncBatchNorm conversion, a LoRA
wrapper) takes effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from model_factory.errors import CallSignatureError, FormatError, GraphExecutionError
from model_factory.program.checked_ops import CHECKED_MODULES, CHECKED_OPS, check_call
from model_factory.program.expressions import Env, Evaluate, compile_expression, expression_text, shape_key
from model_factory.program.ir import (
    FLOAT_LIMITS,
    GUARD,
    REQUIRE,
    Argument,
    Device,
    DtypeOf,
    Fields,
    LimitOf,
    Out,
    Outcome,
    Ref,
    Size,
    Step,
    TorchConst,
)
from model_factory.program.ops import AUTOCAST_KINDS, OPS, SET_AUTOCAST_ENABLED, SET_GRAD_ENABLED
from model_factory.program.runtime.lookup import get_module, get_tensor
from model_factory.program.runtime.records import Record, RecordTuple
from model_factory.program.torch_names import torch_const

# Keys under which an environment has the module that a program runs for, the device, and the modes of the caller. No
# texts, for a program could name any.
SELF = ("self",)
DEVICE = ("device",)
MODES = ("modes",)

_LISTS = (list, tuple)
_PLAIN = (bool, int, float, str)

Action = Callable[[Env], Any]


class BranchMissError(Exception):
    """A guard's outcome is not the one that the steps after it are for."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(f"the program has no steps for the outcome {outcome!r}")
        self.outcome = outcome
        """What it is."""


class Modes:
    """The modes in which a program was called."""

    def __init__(self) -> None:
        self._grad = torch.is_grad_enabled()
        self._autocast = {kind: torch.is_autocast_enabled(kind) for kind in AUTOCAST_KINDS}

    def restore_grad(self) -> None:
        """Go back to the caller's grad mode."""
        torch._C._set_grad_enabled(self._grad)  # noqa: SLF001  torch.set_grad_enabled without the context manager

    def restore_autocast(self) -> None:
        """Go back to the caller's autocast modes."""
        for kind, enabled in self._autocast.items():
            torch.set_autocast_enabled(kind, enabled)


RESTORED: Mapping[str, Callable[[Modes], None]] = {
    f"op:{SET_GRAD_ENABLED}": Modes.restore_grad,
    f"op:{SET_AUTOCAST_ENABLED}": Modes.restore_autocast,
}
"""What such a call does without an argument."""


def compile_step(step: Step) -> Action:
    """Return what does a step and returns the step's result.

    Raises:
        FormatError: the step's op, or the kind of the step, is unknown.
    """
    kind, _, target = step.call.partition(":")
    args = [compile_argument(arg) for arg in step.args]
    kwargs = {name: compile_argument(arg) for name, arg in step.kwargs.items()}
    if kind == "attr":
        return lambda env: _present(get_tensor(env[SELF], target), target)
    if kind == "op":
        function = CHECKED_OPS.get(target) or OPS.get(target)
        if function is None:
            raise FormatError(f"a program calls the unknown op {target!r}")
        if step.call in RESTORED and not args:
            restore = RESTORED[step.call]
            return lambda env: restore(env[MODES])
        return lambda env: function(*[arg(env) for arg in args], **{name: arg(env) for name, arg in kwargs.items()})
    if kind == "module":
        return lambda env: _call_module(
            get_module(env[SELF], target), [arg(env) for arg in args], {name: arg(env) for name, arg in kwargs.items()}
        )
    if step.call == REQUIRE and len(args) == 1 and isinstance(step.args[0], Size):
        return _compile_requirement(args[0], expression_text(step.args[0].expr))
    if step.call in _GUARDS and len(args) == 2 and type(step.args[1]) is _GUARDS[step.call]:
        return _compile_guard(args[0], _GUARDS[step.call], step.args[1])
    raise FormatError(f"a program makes a call of unknown kind: {step.call!r}")


def _present(tensor: torch.Tensor | None, path: str) -> torch.Tensor:
    if tensor is None:
        raise CallSignatureError(f"the recorded forward uses the parameter or buffer {path!r}, which is None by now")
    return tensor


def _call_module(module: nn.Module, args: list[Any], kwargs: dict[str, Any]) -> Any:
    if isinstance(module, CHECKED_MODULES):
        check_call(module, args, kwargs)
    return module(*args, **kwargs)


_GUARDS: Mapping[str, type[bool] | type[int]] = {f"{GUARD}bool": bool, f"{GUARD}int": int}


def _compile_guard(value: Evaluate, kind: type[bool] | type[int], wanted: Outcome) -> Action:
    def check(env: Env) -> None:
        outcome = kind(value(env))
        if outcome != wanted:
            raise BranchMissError(outcome)

    return check


def _compile_requirement(holds: Evaluate, text: str) -> Action:
    def check(env: Env) -> None:
        try:
            is_true = holds(env)
        except FormatError:  # of another rank
            is_true = False
        if not is_true:
            raise CallSignatureError(
                f"the recorded forward relies on the sizes {text}, and a replaced layer or parameter has others. "
                "Remedy: build the model from a config that has the layer as it is now"
            )

    return check


def compile_argument(argument: Argument) -> Evaluate:  # noqa: C901, PLR0912  one arm per kind of argument
    """Return what makes an argument's value.

    Raises:
        FormatError: the argument is of no known kind.
    """
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
        return lambda env: env[DEVICE]
    if isinstance(argument, slice):
        bounds = [compile_argument(bound) for bound in (argument.start, argument.stop, argument.step)]
        return lambda env: slice(*[bound(env) for bound in bounds])
    if isinstance(argument, _LISTS):
        items = [compile_argument(item) for item in argument]
        if isinstance(argument, list):
            return lambda env: [item(env) for item in items]
        return lambda env: tuple([item(env) for item in items])
    if isinstance(argument, Fields):
        names, values = argument.names, compile_argument(argument.values)
        if argument.is_tuple:
            return lambda env: RecordTuple(names, values(env))
        return lambda env: Record(zip(names, values(env), strict=True))
    if isinstance(argument, Mapping):
        entries = {key: compile_argument(item) for key, item in argument.items()}
        return lambda env: {key: item(env) for key, item in entries.items()}
    if argument is None or argument is Ellipsis or isinstance(argument, _PLAIN):
        return lambda _env: argument
    raise FormatError(f"a program holds an argument of unknown type {type(argument).__name__}")


def shape_of(env: Env, name: str) -> torch.Size:
    """Return the shape of a value.

    Raises:
        GraphExecutionError: the value is no tensor.
    """
    value = env[name]
    if not isinstance(value, torch.Tensor):
        raise GraphExecutionError(f"the forward reads the size of {name!r}, which is a {type(value).__name__}")
    return value.shape


def compile_store(out: Out, measured: Iterable[str]) -> Callable[[Env, Any], None]:
    """Return what puts a step's result into an environment, with the shapes that are needed later."""
    store = _compile_plain_store(out)
    shapes = [(name, shape_key(name)) for name in out_names(out) if name in measured]
    if not shapes:
        return store

    def store_with_shapes(env: Env, value: Any) -> None:
        store(env, value)
        for name, key in shapes:
            env[key] = shape_of(env, name)

    return store_with_shapes


def _compile_plain_store(out: Out) -> Callable[[Env, Any], None]:
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
