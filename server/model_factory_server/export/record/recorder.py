"""Records a module's forward as a program.

The forward runs on fake tensors with symbolic sizes, and every torch call becomes a step. Python's control flow runs,
and leaves no trace except conditions on sizes. If the forward decides by the *values* of a tensor, the program gets a
guard with the outcome on the example inputs, or on random inputs like the example inputs.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from torch import nn

from model_factory.describe.assignments import attributes_restored_after
from model_factory.descriptor.stock import is_stock
from model_factory.errors import CallSignatureError, NotPortableError
from model_factory.program.call_signature import call_signature, leaf_names
from model_factory.program.expressions import expression_names
from model_factory.program.ir import OWN, AttributeRead, BufferAssignment, ModuleCall, Outcome, Program
from model_factory.program.recorded_program import RecordedProgram
from model_factory_server.export.conditions.dtype_reads import HALVES
from model_factory_server.export.conditions.module_reads import ALL, TRAINING, shared_paths
from model_factory_server.export.conditions.unread_arguments import Place, candidates, tensor_places, without
from model_factory_server.export.record.caller_modes import Modes, in_modes_of_callers, is_only_elsewhere
from model_factory_server.export.record.merge_dtypes import DtypeDecidesError, merge_dtypes, settle_dtypes
from model_factory_server.export.record.recording import Kinds, Recording, run_if_possible
from model_factory_server.export.record.sample_inputs import outcome_on, takes_branch
from model_factory_server.export.trace.decisions import UndecidedError

_MAX_SINGLE_RUNS = 8
"""Maximum number of a call's constants to test for reads separately."""


def record(
    module: nn.Module, arguments: Mapping[str, Any], outcomes: Sequence[Outcome] = (), kinds: Kinds | None = None
) -> RecordedProgram:
    """Record ``module`` for the call signature of ``arguments`` (real tensors, bound to its forward's parameters).

    The module's training flags become a condition of the program. ``outcomes`` are the outcomes of the first decisions
    by values; other decisions turn out as on inputs like ``arguments``. With ``kinds``, inner blocks get programs of
    their own.

    Raises:
        NotPortableError: the forward cannot be recorded as a program.
        CallSignatureError: the forward refuses these arguments.

    Example:
        >>> import torch
        >>> class Double(nn.Module):
        ...     def forward(self, x):
        ...         return 2 * x
        >>> [step.name for step in record(Double(), {"x": torch.ones(3)}).program.steps]
        ['torch.Tensor.mul']
    """
    return record_as_is(module, arguments, outcomes, kinds)[0]


def record_as_is(
    module: nn.Module, arguments: Mapping[str, Any], outcomes: Sequence[Outcome] = (), kinds: Kinds | None = None
) -> list[RecordedProgram]:
    """Record as :func:`record`; the same program for a GPU may follow, if the forward asks for the device."""

    def in_modes(modes: Modes) -> list[RecordedProgram]:
        recording, program = _run_decided(module, arguments, outcomes, kinds, modes)
        return [_accept_any_at(_settled(recording, program), _unread(recording, program))]

    first, *others = in_modes_of_callers(in_modes)
    return [first, *(item for item in others if is_only_elsewhere(item) and replace(item, modes=first.modes) == first)]


def record_modes(module: nn.Module, arguments: Mapping[str, Any], kinds: Kinds | None = None) -> list[RecordedProgram]:
    """Record in eval and in train mode, and in each mode of the caller that the forward asks for.

    Modes without a difference have one program. Training flags are restored.

    Example:
        >>> import torch
        >>> class Double(nn.Module):
        ...     def forward(self, x):
        ...         return 2 * x
        >>> [recorded.training for recorded in record_modes(Double(), {"x": torch.ones(3)})]
        [()]
    """
    return in_modes_of_callers(lambda modes: _record_both(module, arguments, kinds, modes))


def _record_both(
    module: nn.Module, arguments: Mapping[str, Any], kinds: Kinds | None, modes: Modes
) -> list[RecordedProgram]:
    """Record in eval and in train mode."""
    with attributes_restored_after(module):
        module.eval()  # an own train() may return nothing
        evaluating, evaluated = _run_decided(module, arguments, (), kinds, modes)
        if _is_for_both_modes(evaluating):
            program = _settled(evaluating, evaluated)
            return [_accept_any_at(replace(program, training=()), _unread(evaluating, evaluated))]
        # Usually neither mode nor dtype matters: one more run, with another mode and another dtype, shows both.
        module.train()
        other = evaluating.again(evaluating.other_dtype)
        trained = run_if_possible(other)
        if trained is not None and (both := _for_both(evaluating, evaluated, other, trained)):
            unread = _unread(other, trained)
            module.eval()
            return [_accept_any_at(both, unread, _unread(evaluating, evaluated))]
        training, native = _run_alike(module, arguments, evaluating.tape.decisions.taken, kinds, modes)
        if training.tape.decisions.taken != evaluating.tape.decisions.taken:
            trained = None
        second = _accept_any_at(_settled(training, native, trained), _unread(training, native))
        module.eval()
        first = _accept_any_at(_settled(evaluating, evaluated), _unread(evaluating, evaluated))
    alike = replace(first, training=())
    return [alike] if alike == replace(second, training=()) else [first, second]


def _is_for_both_modes(evaluating: Recording) -> bool:
    """Whether a recording in eval mode has read no training flag. The verification runs in both modes.

    A ``train()`` of the class changes training flags only: a block with another one is refused before.
    """
    tape = evaluating.tape
    names = {name for _, name in tape.reads.custom}
    return not tape.decisions.taken and not tape.reads.flags and names.isdisjoint({TRAINING, ALL})


def _for_both(evaluating: Recording, evaluated: Program, other: Recording, trained: Program) -> RecordedProgram | None:
    """Merge a recording in eval mode and a recording in train mode and another dtype, if equal."""
    conditions = evaluating.symbols.size_conditions()
    with suppress(DtypeDecidesError):
        program = merge_dtypes(evaluated, trained, *_in_halves(evaluating, other))
        # The module is in train mode: inputs must take the program's branches in train mode, too.
        if conditions == other.symbols.size_conditions() and takes_branch(other.module, program, other.leaves):
            return RecordedProgram(
                call_signature=evaluating.call_signature,
                program=program,
                **_conditions(evaluating, other),
            )
    return None


def _unread(recording: Recording, program: Program) -> set[Place]:
    """The places of the call not read by a run with ``program`` as result, in the module's present mode."""
    tensors = {
        place for place, name in tensor_places(recording.call_signature) if name not in recording.tape.sizes.touched
    }
    defaults = {item.name: item.default for item in recording.signature.parameters if not item.required}
    wanted = set(candidates(recording.call_signature, defaults, tensors))
    found = recording.unread_among(wanted, program)
    if found is None:  # a use could not be noted, so test constants one by one
        single = sorted(wanted, key=repr)[:_MAX_SINGLE_RUNS]
        found = {place for place in single if recording.unread_among({place}, program)}
    return tensors | found


def _accept_any_at(recorded: RecordedProgram, *unread: set[Place]) -> RecordedProgram:
    """Accept any value of the kind at the places that no run read."""
    places = set.intersection(*unread)
    tensors = {".".join(map(str, place)) for place in places}
    kept = tuple(item for item in recorded.size_conditions if tensors.isdisjoint(expression_names(item)))
    dtypes = tuple((name, dtype) for name, dtype in recorded.dtypes if name not in tensors)
    signature = without(recorded.call_signature, places)
    program = replace(recorded.program, inputs=leaf_names(signature))
    return replace(recorded, call_signature=signature, size_conditions=kept, dtypes=dtypes, program=program)


def _conditions(*recordings: Recording) -> dict[str, Any]:
    """Conditions of recordings with equal conditions on sizes, as fields of a ``RecordedProgram``.

    What a buffer was before its assignment is no condition: the verification compares later calls, too.
    """
    steps = [step for recording in recordings for step in recording.tape.steps]
    assigned = {step.path for step in steps if isinstance(step, BufferAssignment)}
    own = {f"{OWN}{path}" for path in assigned}
    sizes = recordings[0].symbols.size_conditions()
    attributes = {key: value for recording in recordings for key, value in recording.tape.reads.attributes.items()}
    absent = dict.fromkeys(path for recording in recordings for path in recording.tape.reads.absent)
    used = dict.fromkeys(step.path for step in steps if isinstance(step, ModuleCall | AttributeRead))
    inlined = {path: reason for recording in recordings for path, reason in recording.tape.inlined.items()}
    modes = {name: value for recording in recordings for name, value in recording.tape.modes.noted.items()}
    return {
        "size_conditions": tuple(item for item in sizes if own.isdisjoint(expression_names(item))),
        "reads": tuple((*key, value) for key, value in attributes.items()),
        "absent": tuple(path for path in absent if path not in assigned),
        "shared": shared_paths(recordings[0].module, used),
        "inlined": tuple(inlined.items()),
        "modes": tuple(sorted(modes.items())),
    }


def _settled(first: Recording, program: Program, other: Program | None = None) -> RecordedProgram:
    """Return the program of a recording for the present training flags, merged with a recording in another dtype."""
    dtypes: tuple[tuple[str, str], ...] = ()
    if first.tape.dtypes.any:
        # If only dtype arguments follow a change of dtype, they mean "the dtype of a value". If anything else differs,
        # or the forward refuses the other dtype, the program is limited to the recorded dtypes.
        try:
            program = merge_dtypes(program, other or first.again(first.other_dtype).run(), *_in_halves(first))
        except (DtypeDecidesError, NotPortableError, CallSignatureError):
            program, dtypes = settle_dtypes(program), first.float_dtypes()
    flags = training_flags(first.module, first.tape.reads.flags)
    return RecordedProgram(
        call_signature=first.call_signature,
        program=program,
        training=flags,
        dtypes=dtypes,
        **_conditions(first),
    )


def _in_halves(*recordings: Recording) -> list[Program]:
    """Record in half precision as well, if the forward's code names dtypes.

    Raises:
        DtypeDecidesError: the forward cannot be recorded in half precision.
    """
    found = []
    for dtype in HALVES if any(recording.tape.dtypes.names_precision for recording in recordings) else ():
        try:
            found.append(recordings[0].again(dtype).run())
        except CallSignatureError:  # the program refuses this precision, too, when it runs
            continue
        except NotPortableError as error:
            raise DtypeDecidesError from error
    return found


def training_flags(module: nn.Module, read: Container[str] = ()) -> tuple[tuple[str, bool], ...]:
    """The training flags of a module and its descendants, without torch's own unless their path is in ``read``.

    Example:
        >>> training_flags(nn.Sequential(nn.Dropout()), {"0"})
        (('0', True),)
    """
    return tuple((path, item.training) for path, item in module.named_modules() if path in read or not is_stock(item))


def _run_decided(
    module: nn.Module,
    arguments: Mapping[str, Any],
    outcomes: Sequence[Outcome] = (),
    kinds: Kinds | None = None,
    modes: Modes = MappingProxyType({}),
) -> tuple[Recording, Program]:
    """Record; run once more for each decision by values without a given outcome."""
    given, refusing = len(outcomes), -1
    fixes_ones = False
    refusal: CallSignatureError | None = None  # from the branch that the call itself takes
    while True:
        recording = Recording(module, arguments, None, outcomes, fixes_ones=fixes_ones, kinds=kinds, assumed=modes)
        try:
            return recording, recording.run()
        except UndecidedError as undecided:
            outcomes = (*outcomes, outcome_on(module, undecided, call_signature(arguments)[1]))
            refusal = None
        except CallSignatureError as error:
            if not fixes_ones and any(1 in leaf.shape for leaf in recording.leaves):
                fixes_ones = True  # an op may have to know that a size is 1, to broadcast the tensor
                continue
            fixes_ones = False  # fixed sizes of 1 did not help
            # An assertion in this branch may have failed, and the values may be random ones. Try the other branch.
            refusal = refusal or error
            if len(outcomes) in {given, refusing} or not isinstance(outcomes[-1], bool):
                raise refusal from refusal.__cause__
            refusing = len(outcomes)
            outcomes = (*outcomes[:-1], not outcomes[-1])


def _run_alike(
    module: nn.Module, arguments: Mapping[str, Any], outcomes: Sequence[Outcome], kinds: Kinds | None, modes: Modes
) -> tuple[Recording, Program]:
    """As :func:`_run_decided`, with the outcomes of another mode if the arguments lead to them in this mode, too."""
    recording = Recording(module, arguments, None, outcomes, kinds=kinds, assumed=modes)
    program = run_if_possible(recording) if outcomes else None
    if program is not None and takes_branch(module, settle_dtypes(program), recording.leaves):
        return recording, program
    return _run_decided(module, arguments, (), kinds, modes)
