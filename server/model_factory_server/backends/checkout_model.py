"""Converts the model of a policy_constructor checkout to a ``GraphModel`` with the same modules and steps.

The documented interface of a checkout: a model has ``inputs``, ``graph_modules``, ``_steps``, ``_outputs``,
``_return_policy`` and ``_ops``; a step has ``call_kind``, ``call_name``, ``args``, ``kwargs`` and ``out``; a value in
arguments is a ``Ref(name)``. Any other structure is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from model_factory.errors import BuildError, FormatError
from model_factory.program.call_signature import CONSTANT_TYPES
from model_factory.program.ir import Argument, ModuleCall, OpCall, Out, Program, Ref, Step
from model_factory.program.ops import OPS
from model_factory.program.runtime.graph_model import GRAPH_MODULES, GraphModel
from model_factory_server.constructor.build import add_op

_MODEL_PARTS = ("inputs", GRAPH_MODULES, "_steps", "_outputs", "_return_policy", "_ops")
_STEP_PARTS = ("call_kind", "call_name", "args", "kwargs", "out")
_REMEDY = f"Remedy: mount a version of the checkout whose models have {', '.join(_MODEL_PARTS)} as documented"


def convert_model(built: Any) -> GraphModel:
    """Return the model of a checkout as a ``GraphModel`` over the same module objects.

    An op that is a function of the closed table becomes a step of that name. Any other function becomes a child module
    ``op:NAME``, and calls of the op are recorded like calls of a block.

    Raises:
        BuildError: the model differs from the documented interface; the message names the part.
    """
    _require_parts(built, _MODEL_PARTS, "build_model returns")
    inputs, graph_modules, written, outputs, policy, ops = (getattr(built, part) for part in _MODEL_PARTS)
    _refuse_outsiders(built, graph_modules)
    if not isinstance(written, Sequence):
        raise _unknown("the _steps of the model are not a list")
    modules = dict(graph_modules.items())
    calls = _Calls(modules, ops)
    steps = tuple(_step(index, step, calls) for index, step in enumerate(written))
    result = _result(outputs, policy)
    try:
        model = GraphModel(Program(inputs=tuple(inputs), steps=steps, result=result), modules)
    except FormatError as error:
        raise _unknown(f"the steps of the model are not a program: {error}") from None
    model.training = built.training
    return model


class _Calls:
    """Translates the calls of steps, and adds ops of the checkout to the modules."""

    def __init__(self, modules: dict[str, nn.Module], ops: Mapping[str, Callable[..., Any]]) -> None:
        self._modules = modules
        self._ops = ops
        self._table = {id(op): name for name, op in reversed(list(OPS.items()))}

    def call(self, kind: str, name: str) -> ModuleCall | OpCall | None:
        """Return a step without arguments, or ``None`` for an unknown module or op."""
        if kind == "module" and name in self._modules:
            return ModuleCall(path=f"{GRAPH_MODULES}.{name}")
        if kind != "op" or name not in self._ops:
            return None
        op = self._ops[name]
        if id(op) in self._table:  # by identity: a checkout may use the name for another function
            return OpCall(name=self._table[id(op)])
        return ModuleCall(path=add_op(self._modules, name, op))


def _step(index: int, step: Any, calls: _Calls) -> Step:
    _require_parts(step, _STEP_PARTS, f"step {index} is")
    where = f"step {index} ({step.call_kind}:{step.call_name})"
    call = calls.call(step.call_kind, step.call_name)
    if call is None:
        raise _unknown(f"{where} calls an unknown module or op")
    if not isinstance(step.args, list | tuple) or not isinstance(step.kwargs, Mapping):
        raise _unknown(f"{where} has args that are not a list, or kwargs that are not a mapping")
    return replace(
        call,
        args=tuple(_argument(item, where) for item in step.args),
        kwargs={name: _argument(item, where) for name, item in step.kwargs.items()},
        out=_names(step.out, f"the results of {where}"),
    )


def _argument(value: Any, where: str) -> Argument:
    if isinstance(value, CONSTANT_TYPES):
        return value
    if isinstance(value, list | tuple):
        return type(value)(_argument(item, where) for item in value)
    if isinstance(value, Mapping):
        return {key: _argument(item, where) for key, item in value.items()}
    if type(value).__name__ == Ref.__name__ and isinstance(getattr(value, "name", None), str):
        return Ref(value.name)
    raise _unknown(f"{where} has an argument of type {type(value).__name__}")


def _result(outputs: Any, policy: Any) -> Argument:
    names = _names(outputs, "the model's _outputs")
    if isinstance(names, Mapping):
        if policy == "dict":
            return {key: Ref(name) for key, name in names.items()}
    else:
        listed = (names,) if isinstance(names, str) else names
        if policy == "dict":
            return {name: Ref(name) for name in listed}
        if policy == "tuple":
            return tuple(Ref(name) for name in listed)
        if policy == "single" and len(listed) == 1:
            return Ref(listed[0])
    raise _unknown(f"the model returns {len(names)} outputs as {policy!r}")


def _names(value: Any, what: str) -> Out:
    """Read a name, a list of names, or a mapping of keys to names."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return tuple(value)
    if isinstance(value, Mapping) and all(isinstance(text, str) for item in value.items() for text in item):
        return dict(value)
    raise _unknown(f"{what} are not a name, a list of names or a mapping to names")


def _refuse_outsiders(built: nn.Module, graph_modules: nn.Module) -> None:
    """Refuse modules and tensors outside ``graph_modules``: a ``GraphModel`` cannot hold any."""
    own = [*built.parameters(recurse=False), *built.buffers(recurse=False)]
    if own or any(child is not graph_modules for child in built.children()):
        raise _unknown(f"the model has modules or tensors outside {GRAPH_MODULES}")


def _require_parts(value: Any, parts: Sequence[str], said: str) -> None:
    missing = [part for part in parts if not hasattr(value, part)]
    if missing:
        raise _unknown(f"{said} a {type(value).__name__} without {', '.join(missing)}")


def _unknown(what: str) -> BuildError:
    return BuildError(f"{what}. {_REMEDY}")
