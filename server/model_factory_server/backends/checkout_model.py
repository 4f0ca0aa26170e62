"""From the model that a policy_constructor checkout builds to ours: the same modules, the steps as a program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from model_factory.errors import BuildError, FormatError
from model_factory.graph.modules import GRAPH_MODULES, GraphModel
from model_factory.graph.ops import OPS
from model_factory.graph.program import Argument, Out, Program, Ref, Step
from model_factory_server.constructor.build import PluginOp

_PARTS = ("inputs", GRAPH_MODULES, "_steps", "_outputs", "_return_policy", "_ops")
_STEP_PARTS = ("call_kind", "call_name", "args", "kwargs", "out")
_IDENTITY = "identity"  # the one op of the language that torch has no function for
_REMEDY = f"Remedy: mount a version of the checkout whose models have {', '.join(_PARTS)}"


def convert_model(built: Any) -> GraphModel:
    """Return a checkout's model as a ``GraphModel`` with the same child modules.

    Raises:
        BuildError: it has not the shape that is known; the message says where.
    """
    missing = [name for name in _PARTS if not hasattr(built, name)]
    if missing or not isinstance(built, nn.Module):
        raise _unknown(
            "build_model", f"returns a {type(built).__name__} without {', '.join(missing) or 'nn.Module below it'}"
        )
    inputs, children, steps, outputs, policy, ops = (getattr(built, name) for name in _PARTS)
    if not isinstance(children, nn.ModuleDict) or not all(key.startswith(f"{GRAPH_MODULES}.") for key in _state(built)):
        raise _unknown("the model", f"has modules or tensors outside {GRAPH_MODULES}, an nn.ModuleDict")
    if not isinstance(steps, list | tuple) or not isinstance(ops, Mapping):
        raise _unknown("the model", "has _steps that are no list or _ops that are no mapping")
    modules = dict(children.items())
    program = Program(
        inputs=tuple(_names(inputs, "inputs")),
        steps=tuple(_step(step, index, ops, modules) for index, step in enumerate(steps)),
        result=_result(outputs, policy),
    )
    try:
        model = GraphModel(program, modules)
    except FormatError as error:
        raise BuildError(f"the checkout's steps do not make a program: {error}. {_REMEDY}") from error
    model.training = built.training
    return model


def _state(built: nn.Module) -> list[str]:
    """The paths of everything below a model but its child ``graph_modules`` itself."""
    tensors = [*dict(built.named_parameters()), *dict(built.named_buffers())]
    return [path for path in [*dict(built.named_modules()), *tensors] if path not in {"", GRAPH_MODULES}]


def _step(step: Any, index: int, ops: Mapping[str, Any], modules: dict[str, nn.Module]) -> Step:
    where = f"step {index}"
    missing = [name for name in _STEP_PARTS if not hasattr(step, name)]
    if missing:
        raise _unknown(where, f"is a {type(step).__name__} without {', '.join(missing)}")
    where = f"{where} ({step.call_kind}:{step.call_name})"
    if step.call_kind == "module" and step.call_name in modules:
        call = f"module:{GRAPH_MODULES}.{step.call_name}"
    elif step.call_kind == "op" and callable(ops.get(step.call_name)):
        call = _op_call(step.call_name, ops[step.call_name], modules)
    else:
        raise _unknown(where, "calls neither one of its modules nor one of its ops")
    if not isinstance(step.args, list | tuple) or not isinstance(step.kwargs, Mapping):
        raise _unknown(where, "has args that are no list or kwargs that are no mapping")
    return Step(
        call=call,
        args=tuple(_argument(value, where) for value in step.args),
        kwargs={str(name): _argument(value, where) for name, value in step.kwargs.items()},
        out=_out(step.out, where),
    )


def _op_call(name: str, function: Any, modules: dict[str, nn.Module]) -> str:
    """Return how a program calls an op: from the closed table if it is that very function, else as a module."""
    for canonical, known in OPS.items():
        if known is function:
            return f"op:{canonical}"
    if name == _IDENTITY:
        return f"op:{_IDENTITY}"
    child = f"op:{name.replace('.', ':')}"
    modules.setdefault(child, PluginOp(function))
    return f"module:{GRAPH_MODULES}.{child}"


def _argument(value: Any, where: str) -> Argument:
    if type(value).__name__ == "Ref" and isinstance(getattr(value, "name", None), str):
        return Ref(value.name)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_argument(item, where) for item in value]
    if isinstance(value, tuple):
        return tuple(_argument(item, where) for item in value)
    if isinstance(value, Mapping):
        return {str(key): _argument(item, where) for key, item in value.items()}
    raise _unknown(where, f"has an argument of type {type(value).__name__}")


def _out(out: Any, where: str) -> Out:
    if isinstance(out, str):
        return out
    if isinstance(out, Mapping):
        return dict(zip(map(str, out), _names(list(out.values()), f"the results of {where}"), strict=True))
    return tuple(_names(out, f"the results of {where}"))


def _result(outputs: Any, policy: Any) -> Argument:
    if isinstance(outputs, Mapping) and policy == "dict":
        names = _names(list(outputs.values()), "_outputs")
        return {str(key): Ref(name) for key, name in zip(outputs, names, strict=True)}
    names = _names(outputs, "_outputs")
    if policy == "single" and len(names) == 1:
        return Ref(names[0])
    if policy == "tuple":
        return tuple(Ref(name) for name in names)
    if policy == "dict":
        return {name: Ref(name) for name in names}
    raise _unknown("the model", f"returns {len(names)} outputs as {policy!r}")


def _names(value: Any, what: str) -> list[str]:
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return list(value)
    raise _unknown(what, "are no list of names")


def _unknown(what: str, found: str) -> BuildError:
    return BuildError(f"the checkout has a shape that this backend does not know: {what} {found}. {_REMEDY}")
