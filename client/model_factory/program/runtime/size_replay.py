"""Whether a call inside a server's model follows from sizes alone, found by a replay without values.

A program of an untrusted server can compute a size from values, or choose by values which block is called next. A
request to record such an inner call would tell the values. The replay calls the outermost module of the running call
again, with tensors of the meta device, which have sizes and no values: a call that depends on values is not reached, or
has other sizes. A replay knows nothing but sizes and what the server itself has described:

- no step of a replay reads or makes a tensor on another device: uninitialised memory can have values of a trainer;
- a program that requires an attribute is run only if the attribute has the described value: otherwise a request would
  tell that the trainer has set the attribute to the value that a program requires;
- a model with lazy layers is not replayed: an earlier call can have turned values into the sizes of a layer.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import FrameType, MappingProxyType
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import nn

from model_factory.program.arguments.kinds import ArraySizes, Parts, put_together, take_apart
from model_factory.program.call_signature import (
    CONSTANT_TYPES,
    NUMPY_TYPES,
    CallSignature,
    call_signature,
    match_call_signature,
    without_values,
)
from model_factory.program.forward_signature import ForwardSignature
from model_factory.program.ir import Guard, Outcome
from model_factory.program.recorded_program import FORWARD, Read, RecordedProgram
from model_factory.program.runtime.compiled_program import Call, CompiledProgram
from model_factory.program.runtime.graph_model import GraphModel
from model_factory.program.runtime.interpreter import Runner
from model_factory.program.runtime.lookup import has_read
from model_factory.program.runtime.program_module import ProgramModule, ProgramRecorder
from model_factory.program.torch_private import TorchDispatchMode, is_uncompiled_call, tree_leaves

Describe = Callable[..., bytes]
"""Describes a call without values, by its ``arguments``, ``method`` and ``defaults``."""

Described = tuple[str, bytes]
"""Path of a module, and the description of a call."""

Repeat = Callable[[Any], object]
"""Repeats a call on another module."""

_CALLS = {nn.Module._wrapped_call_impl.__code__, GraphModel.forward.__code__}  # noqa: SLF001
_METHOD_CALL = ProgramModule.run_method.__code__
_OURS = ("torch", "model_factory")


class Built(Protocol):
    """What the server has described of the model."""

    is_lazy: bool
    """Whether the first call of a layer gives a tensor its shape."""

    def has_read(self, path: str, name: str, value: Any) -> bool:
        """Whether the described attribute of the module at ``path`` has a value."""
        ...


def follows_from_sizes(described: Described, describe: Describe, built: Built) -> bool:
    """Whether the running call without a program, described as ``described``, depends on sizes alone.

    True for a call by the trainer's own code: the trainer chooses the arguments.
    """
    found = _outermost_call()
    if found is None:
        return False
    outermost, innermost, repeat = found
    if outermost is innermost:
        return True
    if built.is_lazy:
        return False
    try:
        repeat(_without_values(outermost, _Replay(describe, built), {}))
    except _ReachedError as reached:
        return reached.described == described
    except Exception:  # noqa: BLE001  a step reads values, or has no rule for sizes
        return False
    return False


def _outermost_call() -> tuple[nn.Module, ProgramModule, Repeat] | None:
    """Return the outermost module of the running call, the calling program module, and a function to repeat the call.

    The calls in between are calls by modules of torch and of a server. Returns None inside a compiled function of the
    trainer, whose calls have no frames.
    """
    innermost: ProgramModule | None = None
    found: tuple[nn.Module, Repeat] | None = None
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001
    while frame is not None and (name := frame.f_globals.get("__name__", "")).partition(".")[0] in _OURS:
        local, module = frame.f_locals, frame.f_locals.get("self")
        if frame.f_code is _METHOD_CALL:
            innermost = innermost or local["self"]
            repeat = _repeat_method(local["method"], local["signature"], local["args"], local["kwargs"])
            found = (local["self"], repeat)
        elif frame.f_code in _CALLS:
            if _is_from_a_server(module := _uncompiled(local["self"])):
                found = (module, _repeat_call(local["args"], local["kwargs"]))
        elif isinstance(module, nn.Module):
            if not isinstance(module, ProgramModule | GraphModel) and _is_from_a_server(module):
                found = None  # a forward without a module call is not repeated: the arguments may have changed
        elif name.startswith("torch._dynamo") and not is_uncompiled_call(frame.f_code):
            found = None  # calls inside a compiled function may lack frames; a module call above is known again
        frame = frame.f_back
    return None if innermost is None or found is None else (found[0], innermost, found[1])


def _repeat_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Repeat:
    return lambda twin: _run_on_meta(lambda args, kwargs: twin(*args, **kwargs), args, kwargs)


def _repeat_method(method: str, signature: ForwardSignature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Repeat:
    return lambda twin: _run_on_meta(functools.partial(twin.run_method, method, signature), args, kwargs)


def _run_on_meta(call: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    args, kwargs = _on_meta(args), _on_meta(kwargs)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device("meta"), _NoMemory():
        call(args, kwargs)


class _NoMemory(TorchDispatchMode):  # type: ignore[misc]  # torch has no types for the base
    """Refuses every step on a tensor with memory, and every tensor with memory that a step makes."""

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        _check_has_no_memory((args, kwargs))
        result = func(*args, **(kwargs or {}))
        _check_has_no_memory(result)
        return result


def _check_has_no_memory(values: Any) -> None:
    if not all(value.is_meta for value in tree_leaves(values) if isinstance(value, torch.Tensor)):
        raise ValueError("a step of a replay has values")


def _uncompiled(module: nn.Module) -> nn.Module:
    """Return the module inside the result of ``torch.compile``."""
    original = module._modules.get("_orig_mod")  # noqa: SLF001
    return module if original is None else original


def _is_from_a_server(module: nn.Module) -> bool:
    return isinstance(module, GraphModel | ProgramModule) or type(module).__module__.startswith("torch.nn.modules.")


class _ReachedError(Exception):
    """The replay has reached a call without a program."""

    def __init__(self, described: Described) -> None:
        super().__init__(described)
        self.described = described


class _Replay:
    """The recorder of a replay: ends the replay at the first call without a program."""

    def __init__(self, describe: Describe, built: Built) -> None:
        self._describe = describe
        self.built = built

    def known(self, _path: str) -> Sequence[RecordedProgram]:
        return ()

    def record(
        self,
        path: str,
        arguments: Mapping[str, Any],
        _training: tuple[tuple[str, bool], ...],
        _dtype: torch.dtype | None,
        _outcomes: tuple[Outcome, ...] = (),
        method: str = FORWARD,
        _reads: Sequence[Read] = (),
        defaults: Mapping[str, Any] = MappingProxyType({}),
    ) -> NoReturn:
        raise _ReachedError((path, self._describe(arguments, method=method, defaults=defaults)))


class _Twin(ProgramModule):
    """A program module of a replay.

    A program that was chosen by a constant of the trainer is refused. At a decision by truth values both branches are
    run, and must lead to the same sizes, or to the same call without a program.
    """

    def run_method(
        self, method: str, signature: ForwardSignature, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        arguments = signature.bind(args, kwargs, method)
        given, tensors = call_signature(arguments)
        general = without_values(given, signature.defaults | self._constants)
        self._programs = [item for item in self._programs if _is_general(item.recorded, given, general)]
        call = Call(method, given, tensors, arguments)
        for item in self._programs:
            if item.tensors_of(call) is not None:
                self._check_reads(item.recorded.reads)
        accepted = [item for item in self._programs if item.accepts(self, call)]
        if not any(item.decides for item in accepted):
            return super().run_method(method, signature, args, kwargs)
        _check_branches([item.recorded.program.outcomes() for item in accepted])
        ends = [self._run_unguarded(item, item.tensors_of(call)) for item in accepted]
        if any(_sizes(end) != _sizes(ends[0]) for end in ends):
            raise ValueError("a decision by values changes sizes")
        if isinstance(ends[0], _ReachedError):
            raise ends[0]
        return ends[0]

    def _check_reads(self, reads: Sequence[Read]) -> None:
        """Check that attributes have the described values, which the server knows.

        Raises:
            ValueError: a program requires another value, or the trainer has set another value.
        """
        recorder: Any = self._recorder
        for path, name, value in reads:
            at = ".".join(part for part in (self._path, path) if part)
            if not (recorder.built.has_read(at, name, value) and has_read(self, path, name, value)):
                raise ValueError("a program requires an attribute that differs from the build")

    def _run_unguarded(self, compiled: CompiledProgram, values: list[torch.Tensor] | None) -> Any:
        program = compiled.recorded.program
        steps = tuple(step for step in program.steps if not isinstance(step, Guard))
        try:
            return Runner(replace(program, steps=steps)).run(self, list(values or ()))
        except _ReachedError as reached:
            return reached


def _is_general(recorded: RecordedProgram, given: CallSignature, general: CallSignature) -> bool:
    """Whether a program fits a call whatever its constants are, or fits other calls only."""
    wanted = recorded.call_signature
    return match_call_signature(wanted, given) is None or match_call_signature(wanted, general) is not None


def _check_branches(branches: list[tuple[Outcome, ...]]) -> None:
    """Check that both outcomes of every decision have a program; else a request tells the outcome.

    Raises:
        ValueError: an outcome has no program.
    """
    known = {branch[:end] for branch in branches for end in range(1, len(branch) + 1)}
    for branch in known:
        if type(branch[-1]) is not bool or (*branch[:-1], not branch[-1]) not in known:
            raise ValueError("an outcome of a decision by values has no program")


def _sizes(value: Any) -> Any:
    """Return the sizes and dtypes in a result, or the call that a run has reached.

    Raises:
        ValueError: the result has an object of unknown size.
    """
    if isinstance(value, _ReachedError):
        return ("reached", value.described)
    if isinstance(value, torch.Tensor):
        return (value.shape, value.dtype)
    if isinstance(value, list | tuple):
        return (type(value), [_sizes(item) for item in value])
    if isinstance(value, Mapping):
        return [(key, _sizes(item)) for key, item in value.items()]
    if value is None or type(value) in CONSTANT_TYPES:
        return (type(value), value)
    raise ValueError("a result of unknown size")


def _without_values(module: nn.Module, recorder: _Replay, made: dict[int, Any]) -> Any:
    """Return a copy of a module without hooks, with tensors on the meta device and ``recorder`` for programs."""
    if id(module) in made:
        return made[id(module)]
    twin: Any = object.__new__(type(module))  # a parametrized module refuses a copy
    twin.__dict__.update(module.__dict__)
    made[id(module)] = twin
    attributes = twin.__dict__
    for name, value in list(attributes.items()):
        if "hooks" in name and isinstance(value, dict):
            attributes[name] = type(value)()
        elif name != "_modules":
            attributes[name] = _on_meta(value, made)
    attributes["_modules"] = {
        name: None if child is None else _without_values(child, recorder, made)
        for name, child in attributes["_modules"].items()
    }
    attributes["_compiled_call_impl"] = None
    if isinstance(module, ProgramModule):
        twin.__class__ = _Twin
        attributes.update(_recorder=recorder, _programs=_known_programs(**module.__dict__))
    return twin


def _known_programs(
    _programs: Sequence[CompiledProgram], _recorder: ProgramRecorder, _path: str, **_others: Any
) -> list[CompiledProgram]:
    """Return the programs of a module, with programs recorded for branches that no call has taken."""
    present = [item.recorded for item in _programs]
    return [*_programs, *(CompiledProgram(item) for item in _recorder.known(_path) if item not in present)]


def _on_meta(value: Any, made: dict[int, Any] | None = None) -> Any:
    """Return a value with tensors on the meta device; a shared tensor stays shared, by ``made``."""
    made = {} if made is None else made
    if isinstance(value, torch.Tensor):
        if nn.parameter.is_lazy(value):
            return value
        if id(value) not in made:
            tensor = value.detach().to("meta")
            is_parameter = isinstance(value, nn.Parameter)
            made[id(value)] = nn.Parameter(tensor, requires_grad=value.requires_grad) if is_parameter else tensor
        return made[id(value)]
    if isinstance(value, np.ndarray) and value.dtype.name in NUMPY_TYPES:
        return ArraySizes(torch.from_numpy(value).to("meta"))
    parts = take_apart(value)
    if parts is None:
        return value
    entries = [(key, _on_meta(item, made)) for key, item in parts.entries]
    return put_together(Parts(parts.kind, entries, parts.detail), value)
