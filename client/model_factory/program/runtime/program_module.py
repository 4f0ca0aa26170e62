"""``ProgramModule``: a module with recorded programs as forward."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import nn

from model_factory.errors import CallSignatureError, FormatError
from model_factory.limits import MAX_BRANCHES
from model_factory.program.arguments.differences import changing_number
from model_factory.program.call_signature import call_signature, call_signature_text, under_autocast
from model_factory.program.forward_signature import ForwardSignature
from model_factory.program.ir import Outcome
from model_factory.program.recorded_program import FORWARD, Read, RecordedProgram
from model_factory.program.runtime.compiled_program import BranchPoint, Call, CompiledProgram
from model_factory.program.runtime.interpreter import Runner
from model_factory.program.runtime.lookup import changed_reads, find_module
from model_factory.program.runtime.signed_class import signed_class
from model_factory.program.torch_private import outside_of_jit_trace, outside_of_traces, uncompiled

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

_Function = TypeVar("_Function", bound=Callable[..., Any])
_untraced: Callable[[_Function], _Function] = uncompiled(
    "this call of a remotely built module has no program yet, and code compiled as one graph records none. "
    "Remedy: make the same call once before, without torch.compile, or record the call at the build with "
    "example_inputs() (docs/portability.md)"
)


class SourceForm(Protocol):
    """A module as trusted source code, for a module without a possible program."""

    def give_classes(self, module: nn.Module) -> None:
        """Give a program module, and program modules below, the classes of the source code, in place."""
        ...


class ProgramRecorder(Protocol):
    """Source of programs for calls without a program."""

    def known(self, path: str) -> Sequence[RecordedProgram]:
        """Return the programs at hand for the module at ``path``, without recording any."""
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
        defaults: Mapping[str, Any] = MappingProxyType({}),
    ) -> RecordedProgram | SourceForm:
        """Return a program for a call of the module at ``path``, or the module as source code.

        Args:
            path: Path of the module in the model.
            arguments: Arguments of the call, by name.
            training: Training flags of the module (``""``) and of each program module below.
            dtype: Dtype of all floating parameters; None for several dtypes, and for no parameters.
            outcomes: Outcomes of the first guards of the call.
            method: Method of the call.
            reads: Current attributes of torch modules below the module.
            defaults: Arguments with values that the server knows, by name: defaults, constants of the config.

        Raises:
            CallSignatureError: no program can be made.
        """
        ...


class ProgramModule(nn.Module):
    """A module without its class: real children and parameters, with recorded programs for its forward.

    Declared methods of the class have programs, too. A call without a program is sent to ``recorder``.
    """

    _runs_programs = True

    def __init__(
        self,
        type_name: str,
        signature: ForwardSignature,
        path: str,
        recorder: ProgramRecorder | None,
        programs: Sequence[RecordedProgram],
    ) -> None:
        super().__init__()
        self._initialise(type_name, signature, path, recorder, [CompiledProgram(recorded) for recorded in programs])

    def _initialise(
        self,
        type_name: str,
        signature: ForwardSignature,
        path: str,
        recorder: ProgramRecorder | None,
        programs: Sequence[CompiledProgram],
        frozen: tuple[str, ...] = (),
        declared_methods: Mapping[str, ForwardSignature] = MappingProxyType({}),
        constants: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Set the class and attributes of a bare instance; see ``ProgramNode`` for ``frozen`` and ``declared_methods``.

        ``constants`` are arguments that the config itself gives, by name: the server knows their values.

        Raises:
            FormatError: a declared method would hide a method of ``nn.Module``, or Python allows no such parameters.
        """
        for name in declared_methods:
            if not name.isidentifier() or not is_free(name):
                raise FormatError(f"a {type_name} cannot have a method {name!r} of its own")
        self.__class__ = signed_class(type(self), type_name, {FORWARD: signature, **declared_methods})
        self._declared_methods = dict(declared_methods)
        self._type_name = type_name
        self._signature = signature
        self._path = path
        self._recorder = recorder
        self._programs = list(programs)
        self._frozen = frozen
        self._constants = dict(constants)
        self._has_warned = False

    def train(self, mode: bool = True) -> Self:
        """Set the training flags; frozen modules stay in eval mode."""
        super().train(mode and "" not in self._frozen)
        for path in self._frozen:
            if path and (module := find_module(self, path)) is not None:
                module.eval()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program for the signature of the call.

        Raises:
            TypeError: the arguments do not fit the forward's signature.
            CallSignatureError: no program fits the call, and none can be recorded.
        """
        return self.run_method(FORWARD, self._signature, args, kwargs)

    def run_method(
        self, method: str, signature: ForwardSignature, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run the program for a call of a method; raises as :meth:`forward` does."""
        arguments = signature.bind(args, kwargs, method)
        call, compiled = outside_of_jit_trace(self._choose, method, arguments)
        if compiled is None:
            return getattr(self, method)(*args, **kwargs)  # of the class from source code
        if compiled.dtypes:
            self._warn_of_autocast(call)
        if compiled.recorded.inlined:
            compiled.check_inlined(self, self._where(call))
        values, generators = compiled.tensors_of(call), compiled.generators_of(call)
        assert values is not None
        if not compiled.decides:
            return compiled.runner.run(self, values, generators=generators)
        branch = compiled

        def other_branch(step: int, outcome: Outcome) -> tuple[Runner, list[Any]]:
            nonlocal branch
            branch = self._other_branch(BranchPoint(branch, step, outcome), call)
            return branch.runner, branch.tensors_of(call) or []

        return compiled.runner.run(self, values, generators=generators, other_branch=other_branch)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            declared = self.__dict__.get("_declared_methods", {})
            raise AttributeError(
                f"{self.__dict__.get('_type_name')!r} object has no attribute {name!r}: the module was built remotely, "
                f"with only the forward and the declared methods ({', '.join(declared) or 'none'}). "
                "Remedy: name the method in the config (_methods_) or in the class's portable_methods "
                "(docs/portability.md)"
            ) from None

    def _choose(self, method: str, arguments: dict[str, Any]) -> tuple[Call, CompiledProgram | None]:
        """Return a call and the program for the call; ``None`` if this module has got a class from source code."""
        signature, tensors = call_signature(arguments)
        call = Call(method, signature, tensors, arguments)
        for compiled in self._programs:
            if compiled.accepts(self, call):
                return call, compiled
        return call, self._learn(call)

    def _other_branch(self, point: BranchPoint, call: Call) -> CompiledProgram:
        """Return a program to continue a run after a guard with another outcome."""
        for other in self._programs:
            if other.continues(point) and other.accepts(self, call):
                return other
        learned = self._learn(call, point)
        if learned is None:
            raise CallSignatureError(f"{self._where(call)}: a call in progress cannot go on as source code")
        return learned

    @_untraced
    def _learn(self, call: Call, point: BranchPoint | None = None) -> CompiledProgram | None:
        """Get a program for a call; after a guard, a program to continue the run. See :meth:`_choose` for ``None``."""
        with outside_of_traces():
            return self._known_or_recorded(call, point)

    def _known_or_recorded(self, call: Call, point: BranchPoint | None) -> CompiledProgram | None:
        if self._recorder is None:
            raise CallSignatureError(
                f"{self._where(call)} has no program for the call ({call_signature_text(call.signature)}) and no "
                "server to record one. Remedy: make this call on the built model before the model is saved, or record "
                "the call at the build with example_inputs() (docs/portability.md)"
            )
        known = [compiled.recorded for compiled in self._programs]
        for recorded in self._recorder.known(self._path):
            if recorded not in known:
                self._programs.append(CompiledProgram(recorded))
                if self._fits(self._programs[-1], call, point):
                    return self._programs[-1]
        self._warn_of_changing_numbers(call)
        compiled = self._record(self._recorder, call, point)
        if compiled is not None:
            self._programs.append(compiled)
        return compiled

    def _fits(self, compiled: CompiledProgram, call: Call, point: BranchPoint | None) -> bool:
        return compiled.accepts(self, call) and (point is None or compiled.continues(point))

    def _record(self, recorder: ProgramRecorder, call: Call, point: BranchPoint | None) -> CompiledProgram | None:
        """Have a program recorded; again with more attributes, if the program reads changed attributes."""
        outcomes = () if point is None else point.outcomes
        given = call_signature_text(call.signature)
        if outcomes and sum(item.tensors_of(call) is not None for item in self._programs) >= MAX_BRANCHES:
            raise CallSignatureError(
                f"{self._where(call)} already has {MAX_BRANCHES} branches for the call ({given}), "
                "and each branch is a program. Remedy: decide with torch.where, or by an argument of the forward"
            )
        reads = changed_reads(self, [read for item in self._programs for read in item.recorded.reads])
        flags, dtype = _training_flags(self), _floating_dtype(self)
        is_forward = call.method == FORWARD
        signature = self._signature if is_forward else self._declared_methods[call.method]
        defaults = signature.defaults | self._constants if is_forward else signature.defaults
        while True:
            changed = [(*key, value) for key, value in reads.items()]
            recorded = recorder.record(
                *(self._path, call.arguments, flags, dtype, outcomes, call.method, changed), defaults=defaults
            )
            if not isinstance(recorded, RecordedProgram):
                recorded.give_classes(self)
                return None
            compiled = CompiledProgram(recorded)
            if self._fits(compiled, call, point):
                return compiled
            others = map(CompiledProgram, recorder.known(self._path) if recorded.modes else ())
            other = next((item for item in others if self._fits(item, call, point)), None)
            if other is not None:  # recorded for another mode of the caller
                return other
            more = changed_reads(self, recorded.reads)
            if all(key in reads and reads[key] == value for key, value in more.items()):
                tensors = compiled.tensors_of(call)
                modes = () if tensors is None else compiled.other_modes(self, tensors)
                reason = (
                    f"the forward asks for {' and '.join(modes)}, and programs hold for the other answer only. Remedy: "
                    "pass the answer as an argument of the forward"
                    if modes
                    else "a layer or parameter has been replaced. Remedy: build from a config with the new layer"
                )
                raise CallSignatureError(
                    f"{self._where(call)}: the server's program does not fit the call ({given}): {reason}"
                )
            reads |= more

    def _where(self, call: Call) -> str:
        method = "" if call.method == FORWARD else f".{call.method}"
        return f"{self._path or 'the model'} ({self._type_name}){method}"

    def _warn_of_autocast(self, call: Call) -> None:
        """Warn about a forward with decisions by dtypes: the dtypes of autocast have no effect on the decisions."""
        if not torch.compiler.is_compiling() and under_autocast(call.tensors):
            warnings.warn(
                f"{self._path or 'the model'} ({self._type_name}) decides by dtypes; autocast does not change "
                "these decisions (docs/portability.md)",
                stacklevel=6,  # the call of the module
            )

    def _warn_of_changing_numbers(self, call: Call) -> None:
        """Warn once about a number with another value at each call: each call needs a program."""
        known = [item.recorded.call_signature for item in self._programs if item.recorded.method == call.method]
        name = None if self._has_warned else changing_number(known, call.signature)
        if name is not None:
            self._has_warned = True
            warnings.warn(
                f"{self._path or 'the model'} ({self._type_name}) is called with another number as {name} each time; "
                "the server records a program for each. Remedy: pass the number as a tensor, torch.tensor(number)",
                stacklevel=7,  # the call of the module
            )


def is_free(name: str) -> bool:
    """Whether a method of a class can have a name on a rebuilt module.

    Example:
        >>> is_free("encode"), is_free("train"), is_free("__len__")
        (True, False, False)
    """
    return not (hasattr(ProgramModule, name) or name.startswith("__"))


def _training_flags(module: nn.Module) -> tuple[tuple[str, bool], ...]:
    """Return the training flags of the program modules from ``module`` down, and of modules unlike their parent."""
    modules = dict(module.named_modules(remove_duplicate=False))
    return tuple(
        (path, item.training)
        for path, item in modules.items()
        if isinstance(item, ProgramModule) or item.training != modules[path.rpartition(".")[0]].training
    )


def _floating_dtype(module: nn.Module) -> torch.dtype | None:
    """Return the dtype of all floating parameters, if all have the same dtype."""
    dtypes = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None
