"""Compiles the steps of a program: each step becomes a small function of an environment.

The functions look modules up by path on every call, so that a replaced child (SyncBatchNorm conversion, a LoRA wrapper)
takes effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch

from model_factory.errors import CallSignatureError, FormatError, GraphExecutionError
from model_factory.program.checked_ops import CHECKED_OPS, with_out
from model_factory.program.codec.constants import constant_tensor
from model_factory.program.expressions import Env, Evaluate, compile_expression, expression_text, shape_key
from model_factory.program.ir import (
    FLOAT_LIMITS,
    Argument,
    AttributeRead,
    BufferAssignment,
    Constant,
    Device,
    DtypeOf,
    Fields,
    GeneratorOf,
    Guard,
    LimitOf,
    ModuleCall,
    OpCall,
    Out,
    Outcome,
    OwnBackward,
    Program,
    Ref,
    Require,
    Size,
    Step,
    TorchConst,
    out_names,
)
from model_factory.program.ops import AUTOCAST_KINDS, OPS, SET_AUTOCAST_ENABLED, SET_GRAD_ENABLED
from model_factory.program.runtime.lookup import assign_buffer, get_module, get_tensor
from model_factory.program.runtime.named_results import Record, RecordObject, RecordTuple
from model_factory.program.runtime.own_backward import Run, own_function
from model_factory.program.torch_names import lacking, remedy, torch_const
from model_factory.program.torch_private import assert_async, outside_of_jit_trace, set_grad_enabled

# Keys of an environment for the module of the run, the device, and the caller's modes. Tuples, since a program could
# use any text as a name.
SELF = ("self",)
DEVICE = ("device",)
GENERATORS = ("generators",)
CALLER_MODES = ("caller modes",)

_LISTS = (list, tuple)
_OTHER_DEVICES = frozenset(
    "fpga hip hpu ideep ipu lazy maia meta mkldnn mps mtia opencl opengl privateuseone ve vulkan xla xpu".split()
)
_PLAIN = (bool, int, float, str)

Action = Callable[[Env], Any]


class BranchMissError(Exception):
    """The steps after a guard are for another outcome."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(f"the program has no steps for the outcome {outcome!r}")
        self.outcome = outcome
        """The outcome of the guard."""


class CallerModes:
    """Grad and autocast modes of a program's caller."""

    def __init__(self) -> None:
        self._grad = torch.is_grad_enabled()
        self._autocast = {kind: torch.is_autocast_enabled(kind) for kind in AUTOCAST_KINDS}

    def restore_grad(self) -> None:
        """Restore the caller's grad mode."""
        set_grad_enabled(self._grad)

    def restore_autocast(self) -> None:
        """Restore the caller's autocast modes."""
        for kind, enabled in self._autocast.items():
            torch.set_autocast_enabled(kind, enabled)


_RESTORES: Mapping[str, Callable[[CallerModes], None]] = {
    SET_GRAD_ENABLED: CallerModes.restore_grad,
    SET_AUTOCAST_ENABLED: CallerModes.restore_autocast,
}
"""Effect of an op that sets modes, in a call without an argument."""


def sets_modes(step: Step) -> bool:
    """Whether a step sets the grad mode or the autocast modes."""
    return isinstance(step, OpCall) and step.name in _RESTORES


def compile_step(step: Step, compile_program: Callable[[Program], Run] | None = None) -> Action:
    """Return a function to run a step, with the step's result as value.

    ``compile_program`` compiles the program of a backward; the steps of a config have no backward.

    Raises:
        FormatError: an op or an argument of the step is unknown.
    """
    match step:
        case ModuleCall():
            return _compile_module_call(step)
        case OpCall():
            return _compile_op_call(step)
        case AttributeRead(path=path):
            return lambda env: _present(get_tensor(env[SELF], path), path)
        case BufferAssignment(path=path, value=value):
            tensor = compile_argument(value)
            return lambda env: assign_buffer(env[SELF], path, tensor(env))
        case Constant():
            constant = constant_tensor(step)
            return lambda _env: constant.clone()  # a later step may write to the tensor
        case Guard():
            decide = _compile_guard(compile_argument(step.value), step.outcome)
            return _compile_assert(compile_argument(step.value), decide) if step.asserts else decide
        case Require(condition=condition):
            return _compile_requirement(compile_argument(condition), expression_text(condition.expr))
        case OwnBackward():
            assert compile_program is not None
            return _compile_own_backward(step, compile_program)


def _compile_module_call(step: ModuleCall) -> Action:
    path, args, kwargs = step.path, [*map(compile_argument, step.args)], _compile_kwargs(step.kwargs)
    return lambda env: get_module(env[SELF], path)(
        *[arg(env) for arg in args], **{name: arg(env) for name, arg in kwargs.items()}
    )


def _compile_op_call(step: OpCall) -> Action:
    _check_texts((step.args, step.kwargs))
    args, kwargs = [*map(compile_argument, step.args)], _compile_kwargs(step.kwargs)
    function = CHECKED_OPS.get(step.name) or OPS.get(step.name)
    if function is None:
        raise FormatError(f"a program calls the unknown op {step.name!r}{remedy(step.name)}")
    if (name := lacking(step.name, step.kwargs)) is not None:
        raise FormatError(f"a program calls {name}, an argument that this torch lacks{remedy(name)}")
    if "names" in kwargs:
        raise FormatError(f"a program names axes in a call of {step.name}; tensors of programs have no named axes")
    if step.name == SET_AUTOCAST_ENABLED and (kwargs or tuple(step.args) not in ((), (False,))):
        raise FormatError(f"a program calls {step.name} to turn autocast on; a program may only turn autocast off")
    function = with_out(function, kwargs)
    if step.name in _RESTORES and not args:
        restore = _RESTORES[step.name]
        return lambda env: restore(env[CALLER_MODES])
    return lambda env: function(*[arg(env) for arg in args], **{name: arg(env) for name, arg in kwargs.items()})


def _check_texts(argument: Argument) -> None:
    """Refuse names of devices, except of CPU and GPU. A kernel would read a tensor that has no memory.

    Raises:
        FormatError: an argument of an op names another device.
    """
    if isinstance(argument, str):
        if argument.partition(":")[0] in _OTHER_DEVICES:
            raise FormatError(f"a program names the device {argument!r}; allowed: {', '.join(AUTOCAST_KINDS)}")
    elif isinstance(argument, _LISTS):
        for item in argument:
            _check_texts(item)
    elif isinstance(argument, Mapping):
        for item in argument.values():
            _check_texts(item)


def _compile_kwargs(kwargs: Mapping[str, Argument]) -> dict[str, Evaluate]:
    return {name: compile_argument(arg) for name, arg in kwargs.items()}


def _present(tensor: torch.Tensor | None, path: str) -> torch.Tensor:
    if tensor is None:
        raise CallSignatureError(f"the recorded forward uses the parameter or buffer {path!r}, which is now None")
    return tensor


def _compile_guard(value: Evaluate, wanted: Outcome) -> Action:
    kind = type(wanted)

    def check(env: Env) -> None:
        outcome = kind(value(env))
        if outcome != wanted:
            raise BranchMissError(outcome)

    return check


def _compile_assert(value: Evaluate, decide: Action) -> Action:
    def check(env: Env) -> None:
        condition = value(env)
        if torch.compiler.is_compiling() and isinstance(condition, torch.Tensor):
            assert_async(condition, "a condition that the forward asserts is false")
        else:
            decide(env)

    return check


def _compile_requirement(holds: Evaluate, text: str) -> Action:
    def check(env: Env) -> None:
        try:
            is_true = outside_of_jit_trace(lambda: bool(holds(env)))
        except FormatError:  # another rank
            is_true = False
        if not is_true:
            raise CallSignatureError(
                f"the recorded forward relies on the sizes {text}, and a replaced layer or parameter has other sizes. "
                "Remedy: build the model from a config with the new layer"
            )

    return check


def _compile_own_backward(step: OwnBackward, compile_program: Callable[[Program], Run]) -> Action:
    function = own_function(step, compile_program)
    given = [compile_argument(argument) for argument in (*step.inputs, *step.results)]
    kept = [compile_argument(argument) for argument in step.kept]
    return lambda env: function([value(env) for value in given], [value(env) for value in kept])


def compile_argument(argument: Argument) -> Evaluate:  # noqa: C901, PLR0912  one arm per kind of argument
    """Return a function for an argument's value.

    Raises:
        FormatError: the kind of the argument is unknown.
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
    if isinstance(argument, GeneratorOf):
        return partial(_generator, name=argument.name)
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
        if argument.kind == "named_tuple":
            return lambda env: RecordTuple(names, values(env))
        make = Record if argument.kind == "record" else RecordObject
        return lambda env: make(zip(names, values(env), strict=True))
    if isinstance(argument, Mapping):
        entries = {key: compile_argument(item) for key, item in argument.items()}
        return lambda env: {key: item(env) for key, item in entries.items()}
    if argument is None or argument is Ellipsis or isinstance(argument, _PLAIN):
        return lambda _env: argument
    raise FormatError(f"a program holds an argument of unknown type {type(argument).__name__}")


def _generator(env: Env, name: str) -> torch.Generator:
    found = env.get(GENERATORS, {}).get(name)
    if not isinstance(found, torch.Generator):
        raise GraphExecutionError(f"a program uses the generator {name!r}, which is no argument of the call")
    return found


def shape_of(env: Env, name: str) -> torch.Size:
    """Return the shape of a value.

    Raises:
        GraphExecutionError: the value is not a tensor.
    """
    value = env[name]
    if not isinstance(value, torch.Tensor):
        raise GraphExecutionError(f"the forward reads the size of {name!r}, which is a {type(value).__name__}")
    return value.shape


def compile_store(step: Step, measured: Iterable[str]) -> Callable[[Env, Any], None]:
    """Return a function to put a step's result into an environment, with the shapes for later steps."""
    if isinstance(step, Guard | Require | BufferAssignment):
        return _discard
    store = _compile_plain_store(step.out)
    shapes = [(name, shape_key(name)) for name in out_names(step) if name in measured]
    if not shapes:
        return store

    def store_with_shapes(env: Env, value: Any) -> None:
        store(env, value)
        for name, key in shapes:
            env[key] = shape_of(env, name)

    return store_with_shapes


def _discard(_env: Env, _value: Any) -> None:
    """Store nothing: the step makes no value."""


def _compile_plain_store(out: Out) -> Callable[[Env, Any], None]:
    if isinstance(out, str):
        name = out

        def store(env: Env, value: Any) -> None:
            env[name] = value

        return store
    if isinstance(out, tuple):
        names = out

        def store_items(env: Env, value: Any) -> None:
            if not isinstance(value, (tuple, list)) or len(value) != len(names):
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
        f"a {type(value).__name__} of {len(value)}" if isinstance(value, (tuple, list)) else f"a {type(value).__name__}"
    )
