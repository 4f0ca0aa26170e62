"""The two modules that run programs: ``GraphModel`` (steps from a config) and ``ProgramModule`` (recorded)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType, MethodType
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import nn

from model_factory.errors import CallSignatureError, FormatError, GraphExecutionError
from model_factory.limits import MAX_BRANCHES
from model_factory.program.call_signature import (
    FORWARD,
    Read,
    RecordedProgram,
    call_signature,
    call_signature_text,
    changing_number,
    has_any,
    leaf_names,
    match_call_signature,
    under_autocast,
)
from model_factory.program.expressions import Env, compile_expression, expression_names, shape_key
from model_factory.program.ir import OWN, ModuleCall, OpCall, Outcome, Program, Step, step_text
from model_factory.program.ops import short_op
from model_factory.program.runtime.interpreter import Runner
from model_factory.program.runtime.lookup import (
    changed_reads,
    find_module,
    get_module,
    get_tensor,
    has_read,
    is_absent,
    is_shared,
    own_shape,
)
from model_factory.program.signature import Signature
from model_factory.program.torch_names import torch_dtype
from model_factory.wording import nearest, quoted

GRAPH_MODULES = "graph_modules"
_OP = "op:"
_DOT = ":"  # in the name of a child, where a dot would be a step down

_REFUSALS = (GraphExecutionError, CallSignatureError)


class _Call(NamedTuple):
    """A call of a method of a module."""

    method: str
    form: tuple[Any, ...]
    leaves: list[torch.Tensor]
    """Its tensors, in the order of the form."""
    arguments: dict[str, Any]
    """By name."""


class GraphModel(nn.Module):
    """A model whose forward is the steps of a config.

    ``inputs`` is the list of input names; ``graph_modules`` an ``nn.ModuleDict`` of the config's modules by name.
    The forward takes the inputs by position or by name, in any mix.
    """

    def __init__(self, program: Program, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.inputs: list[str] = list(program.inputs)
        self.graph_modules = nn.ModuleDict()
        self.graph_modules._modules.update(modules)  # noqa: SLF001  the method refuses keys, type and other good names
        self.runner = Runner(program)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the steps.

        An exception raised in a step passes through as the same object, with a note of the step's number and call.

        Raises:
            GraphExecutionError: an input is missing, unknown or given twice, or a step's result does not fit its
                ``out``; in the latter case the message has the step's number and call.
        """
        return self.runner.run(self, self._bind(args, kwargs), on_error=self._step_failed)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        if len(args) > len(self.inputs):
            known = ", ".join(self.inputs)
            raise GraphExecutionError(
                f"too many positional inputs: the model takes {len(self.inputs)} ({known}), got {len(args)}"
            )
        values = dict(zip(self.inputs, args, strict=False))
        for name, value in kwargs.items():
            if name not in self.inputs:
                known = f"the model takes {', '.join(self.inputs)}{nearest(name, self.inputs)}"
                raise GraphExecutionError(f"unknown input {quoted(name)}: {known}")
            if name in values:
                raise GraphExecutionError(f"input {name!r} is given by position and by name")
            values[name] = value
        missing = [name for name in self.inputs if name not in values]
        if missing:
            raise GraphExecutionError(f"missing input{'s' * (len(missing) > 1)}: {', '.join(missing)}")
        return [values[name] for name in self.inputs]

    def _step_failed(self, index: int, error: BaseException) -> None:
        where = f"step {index} ({_written(self.runner.program.steps[index])})"
        if type(error) in _REFUSALS:
            raise type(error)(f"{where}: {error}") from error
        _note(error, f"in {where} of a graph")


def plugin_op_child(name: str) -> str:
    """Return the name of the child of ``graph_modules`` that a plug-in's op is."""
    return f"{_OP}{name.replace('.', _DOT)}"


def _note(error: BaseException, note: str) -> None:
    """Add a note to an exception, once: a hook may raise the same object again and again."""
    if note in getattr(error, "__notes__", ()):
        return
    with suppress(Exception):  # of a class that lets no attribute be set
        error.add_note(note)


def _written(step: Step) -> str:
    """Name the call of a graph's step as a config writes it."""
    if isinstance(step, OpCall):
        return f"{_OP}{short_op(step.name)}"
    if isinstance(step, ModuleCall):
        name = step.path.removeprefix(f"{GRAPH_MODULES}.")
        return _OP + name.removeprefix(_OP).replace(_DOT, ".") if name.startswith(_OP) else f"module:{name}"
    return step_text(step)


class ProgramRecorder(Protocol):
    """Where a module asks for the program of a call form it has none for."""

    def known(self, path: str) -> Sequence[RecordedProgram]:
        """Return the programs for the module at ``path`` that were recorded before and are at hand."""
        ...

    def record(
        self,
        path: str,
        arguments: Mapping[str, Any],
        training: tuple[tuple[str, bool], ...],
        dtype: torch.dtype | None,
        outcomes: tuple[Outcome, ...] = (),
        method: str = FORWARD,
        reads: Sequence[Read] = (),
    ) -> RecordedProgram:
        """Return a program for a method of the module at ``path`` that covers a call with these arguments.

        ``training`` has the training flag of the module (``""``) and of each program module below it; ``dtype`` is the
        dtype of all its floating parameters, or None where they have several or there are none; ``outcomes`` are those
        of its first guards on values; ``reads`` are attributes of torch modules below it, as they are now.

        Raises:
            CallSignatureError: there is no such program and none can be made.
        """
        ...


class CompiledProgram:
    """A recorded program, compiled: immutable, so copies of a module share it."""

    def __init__(self, recorded: RecordedProgram) -> None:
        self.recorded = recorded
        self.runner = Runner(recorded.program)
        self.decides = bool(recorded.program.outcomes())
        self.names = leaf_names(recorded.form)
        self.guards = [compile_expression(guard) for guard in recorded.guards]
        self.own = {name for guard in recorded.guards for name in expression_names(guard) if name.startswith(OWN)}
        self.dtypes = [(name, torch_dtype(dtype)) for name, dtype in recorded.dtypes]
        self._calls = [(step_text(step), getattr(step, "out", "")) for step in recorded.program.steps]
        self._has_any = has_any(recorded.form)
        self._check_names()

    def __deepcopy__(self, _memo: dict[int, Any]) -> CompiledProgram:
        return self

    def __reduce__(self) -> tuple[type[CompiledProgram], tuple[RecordedProgram]]:
        return (CompiledProgram, (self.recorded,))

    def _check_names(self) -> None:
        """Check that its conditions are on tensors of the call, or on the module's own."""
        asked = {name for guard in self.recorded.guards for name in expression_names(guard)}
        asked |= {name for name, _ in self.dtypes}
        unknown = {name for name in asked if not name.startswith(OWN)} - set(self.names)
        if unknown:
            raise FormatError(f"a recorded program has a condition on {min(unknown)!r}, which no tensor of its call is")

    def goes_on(self, other: CompiledProgram, step: int, outcome: Outcome) -> bool:
        """Whether this program can finish a run of ``other`` whose guard at ``step`` has another outcome."""
        ours, theirs = self.recorded.program, other.recorded.program
        if other.recorded.method != self.recorded.method or len(ours.steps) <= step:
            return False
        if ours.outcomes(step + 1) != (*theirs.outcomes(step), outcome):
            return False
        return self._calls[: step + 1] == other._calls[: step + 1]

    def leaves_of(self, call: _Call) -> list[torch.Tensor] | None:
        """The tensors of a call that this program takes, in order; None if it is for another way of calling."""
        if call.method != self.recorded.method:
            return None
        if not self._has_any:
            return call.leaves if call.form == self.recorded.form else None
        kept = match_call_signature(self.recorded.form, call.form)
        return None if kept is None else [call.leaves[index] for index in kept]

    def accepts(self, module: nn.Module, call: _Call) -> bool:
        """Whether this program stands for a call of ``module``."""
        leaves_of_call = self.leaves_of(call)
        if leaves_of_call is None:
            return False
        for path, training in self.recorded.training:
            if get_module(module, path).training != training:
                return False
        leaves = dict(zip(self.names, leaves_of_call, strict=True))
        for name, dtype in self.dtypes:
            tensor = get_tensor(module, name.removeprefix(OWN)) if name.startswith(OWN) else leaves[name]
            if tensor is None or tensor.dtype != dtype:
                return False
        if not all(has_read(module, *read) for read in self.recorded.reads):
            return False
        if not all(is_absent(module, path) for path in self.recorded.absent):
            return False
        if not all(is_shared(module, path, other) for path, other in self.recorded.shared):
            return False
        env: Env = {shape_key(name): leaf.shape for name, leaf in leaves.items()}
        env.update((shape_key(name), own_shape(module, name)) for name in self.own)
        return all(guard(env) for guard in self.guards)


class _Declared:
    """The function behind a declared method: what the bound method of a module calls."""

    def __init__(self, name: str, signature: Signature) -> None:
        self.__name__ = name
        self.signature = signature

    def __call__(self, module: ProgramModule, *args: Any, **kwargs: Any) -> Any:
        return module.run_method(self.__name__, self.signature, args, kwargs)


class ProgramModule(nn.Module):
    """A module whose class stayed on the server: real children and parameters, and recorded programs as its forward.

    Methods that its class declares as portable are there too. A call of a form that no program stands for is sent to
    ``recorder``, which records one.
    """

    def __init__(
        self,
        type_name: str,
        signature: Signature,
        path: str,
        recorder: ProgramRecorder | None,
        programs: Sequence[RecordedProgram],
    ) -> None:
        super().__init__()
        self._initialise(type_name, signature, path, recorder, [CompiledProgram(recorded) for recorded in programs])

    def _initialise(
        self,
        type_name: str,
        signature: Signature,
        path: str,
        recorder: ProgramRecorder | None,
        programs: Sequence[CompiledProgram],
        frozen: tuple[str, ...] = (),
        methods: Mapping[str, Signature] = MappingProxyType({}),
    ) -> None:
        """Take on the forward of a described module; for a bare instance, in place of the constructor.

        ``frozen`` are paths below it (``""`` is itself) that :meth:`train` leaves in eval mode, with all below them;
        ``methods`` are its declared ones.

        Raises:
            FormatError: a method would hide one of ``nn.Module``.
        """
        for name in methods:
            if not name.isidentifier() or hasattr(ProgramModule, name):
                raise FormatError(f"a {type_name} cannot have a method {name!r} of its own")
        self._methods = {name: _Declared(name, item) for name, item in methods.items()}
        self._type_name = type_name
        self._signature = signature
        self._path = path
        self._recorder = recorder
        self._programs = list(programs)
        self._frozen = frozen
        self._has_warned = False

    def train(self, mode: bool = True) -> Self:
        """Set the training flags, those of frozen modules to eval mode always."""
        super().train(mode and "" not in self._frozen)
        for path in self._frozen:
            if path and (module := find_module(self, path)) is not None:
                module.eval()
        return self

    def _get_name(self) -> str:
        return self._type_name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program that stands for this way of calling.

        Raises:
            TypeError: the arguments do not fit the forward's signature.
            CallSignatureError: there is no program for this call form and none can be recorded.
        """
        return self.run_method(FORWARD, self._signature, args, kwargs)

    def run_method(self, method: str, signature: Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the program that stands for this way of calling a method; raises as :meth:`forward` does."""
        arguments = signature.bind(args, kwargs, method)
        form, leaves = call_signature(arguments)
        call = _Call(method, form, leaves, arguments)
        for ready in self._programs:
            if ready.accepts(self, call):
                break
        else:
            ready = self._learn(call)
        if ready.dtypes:
            self._warn_of_autocast(leaves)
        values = ready.leaves_of(call)
        assert values is not None
        if not ready.decides:
            return ready.runner.run(self, values)
        side = ready

        def other_branch(step: int, outcome: Outcome) -> tuple[Runner, list[Any]]:
            nonlocal side
            side = self._other_branch(side, step, outcome, call)
            return side.runner, side.leaves_of(call) or []

        return ready.runner.run(self, values, other_branch=other_branch)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            declared = self.__dict__.get("_methods", {})
            if name in declared:
                return MethodType(declared[name], self)
            raise AttributeError(
                f"{self.__dict__.get('_type_name')!r} object has no attribute {name!r}: it was built remotely, and "
                f"of its class's methods only forward and those that it declares are here "
                f"({', '.join(declared) or 'it declares none'}). Remedy: name the method in the class's "
                "portable_methods on the server (docs/portability.md)"
            ) from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._methods]  # type: ignore[no-untyped-call]

    def _other_branch(self, ready: CompiledProgram, step: int, outcome: Outcome, call: _Call) -> CompiledProgram:
        """Return the program that goes on where a guard of ``ready`` has another outcome."""
        for other in self._programs:
            if other.goes_on(ready, step, outcome) and other.accepts(self, call):
                return other
        return self._learn(call, after=(ready, step, outcome))

    def _warn_of_autocast(self, leaves: Sequence[torch.Tensor]) -> None:
        """Say once that a forward that decides by dtypes does not know those that autocast makes."""
        if not torch.compiler.is_compiling() and under_autocast(leaves):
            warnings.warn(
                f"{self._path or 'the model'} ({self._type_name}) decides by dtypes, and does under autocast what it "
                "does without (docs/portability.md)",
                stacklevel=6,  # who called the module
            )

    def _warn_of_changing_numbers(self, call: _Call) -> None:
        """Say once that a number is another one at each call, and costs a program each time."""
        forms = [ready.recorded.form for ready in self._programs if ready.recorded.method == call.method]
        name = None if self._has_warned else changing_number(forms, call.form)
        if name is not None:
            self._has_warned = True
            warnings.warn(
                f"{self._path or 'the model'} ({self._type_name}) is called with another number as {name} each time; "
                "the server records a program for each. Remedy: pass the number as a tensor, torch.tensor(number)",
                stacklevel=7,  # who called the module
            )

    def _learn(self, call: _Call, *, after: tuple[CompiledProgram, int, Outcome] | None = None) -> CompiledProgram:
        """Get a program for a call, or, ``after`` a guard, the one that goes on with that outcome."""

        def fits(ready: CompiledProgram) -> bool:
            return ready.accepts(self, call) and (after is None or ready.goes_on(*after))

        where = f"{self._path or 'the model'} ({self._type_name}){'' if call.method == FORWARD else f'.{call.method}'}"
        asked = call_signature_text(call.form)
        if self._recorder is None:
            raise CallSignatureError(f"{where} has no program for the call ({asked}) and no server to record one")
        before = [ready.recorded for ready in self._programs]
        for recorded in self._recorder.known(self._path):
            if recorded not in before:
                self._programs.append(CompiledProgram(recorded))
                if fits(self._programs[-1]):
                    return self._programs[-1]
        self._warn_of_changing_numbers(call)
        outcomes = () if after is None else (*after[0].recorded.program.outcomes(after[1]), after[2])
        if sum(ready.leaves_of(call) is not None for ready in self._programs) >= MAX_BRANCHES and outcomes:
            raise CallSignatureError(
                f"{where} has decided by values in {MAX_BRANCHES} ways already for the call ({asked}), and each "
                "is a program of its own. Remedy: decide with torch.where, or by an argument of the forward"
            )
        read = [item for ready in self._programs for item in ready.recorded.reads]
        reads = changed_reads(self, read)
        flags, dtype = _flags(self), _floating_dtype(self)
        while True:
            changed = [(*key, value) for key, value in reads.items()]
            recorded = self._recorder.record(self._path, call.arguments, flags, dtype, outcomes, call.method, changed)
            ready = CompiledProgram(recorded)
            if fits(ready):
                self._programs.append(ready)
                return ready
            more = changed_reads(self, recorded.reads)
            if all(key in reads and reads[key] == value for key, value in more.items()):
                raise CallSignatureError(
                    f"{where}: the server's program is not for the call ({asked}): a layer or parameter has been "
                    "replaced by one that the recorded forward differs for. Remedy: build from a config with that layer"
                )
            reads |= more


def _flags(module: nn.Module) -> tuple[tuple[str, bool], ...]:
    """The training flags of the program modules from ``module`` down, and of others that differ from their owner."""
    modules = dict(module.named_modules(remove_duplicate=False))
    return tuple(
        (path, item.training)
        for path, item in modules.items()
        if isinstance(item, ProgramModule) or item.training != modules[path.rpartition(".")[0]].training
    )


def _floating_dtype(module: nn.Module) -> torch.dtype | None:
    """The one dtype of all floating parameters, if there is one."""
    dtypes = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None
