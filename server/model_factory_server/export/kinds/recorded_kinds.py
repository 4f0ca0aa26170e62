"""Kinds of blocks in a model: each kind is recorded and verified once; other blocks of the kind are compared once."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from model_factory.describe.assignments import attributes_restored_after
from model_factory.descriptor.codec import Programs
from model_factory.descriptor.stock import is_stock
from model_factory.errors import CallSignatureError, NotPortableError
from model_factory.program.call_signature import CallSignature, call_signature
from model_factory.program.ir import ModuleCall, Outcome
from model_factory.program.recorded_program import RecordedProgram
from model_factory.program.runtime.lookup import find_module
from model_factory_server.export.conditions.inner_blocks import InnerBlocks, InnerCall, constants_in
from model_factory_server.export.conditions.result_forms import ResultForm
from model_factory_server.export.kinds.inlining import Inlining
from model_factory_server.export.kinds.inner_calls import (
    ExampleCalls,
    ExampleOfBlock,
    called_programs,
    caller_of,
    changed_state,
    inner_examples,
    programs_below,
    sizes_of,
)
from model_factory_server.export.kinds.kind import Flags, Kind, RecordedCall, flags_of, flags_of_modes, has_same_steps
from model_factory_server.export.kinds.known_kinds import KnownKinds, dtypes_of
from model_factory_server.export.kinds.other_branches import other_branches
from model_factory_server.export.record.assigned import Assigned
from model_factory_server.export.record.recorder import record_as_is, record_modes
from model_factory_server.export.record.recording import Kinds, Recording
from model_factory_server.export.trace.decisions import UndecidedError
from model_factory_server.export.verify.verifier import reproduces, verify

_Attempt = Callable[[Kinds], list[RecordedProgram]]
"""Records and verifies a block."""


class RecordedKinds:
    """The kinds of the blocks of a model, and their programs.

    Example:
        >>> class Double(nn.Module):
        ...     def forward(self, x):
        ...         return 2 * x
        >>> class Twice(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.first, self.second = Double(), Double()
        ...     def forward(self, x):
        ...         return self.second(self.first(x))
        >>> model = Twice()
        >>> kinds = RecordedKinds(model)
        >>> programs = kinds.record(model, {"x": torch.ones(3)})
        >>> [path for path, _ in kinds.inner_programs((("", programs[0]),))]
        ['first', 'second']
    """

    fixes_sizes = False

    def __init__(self, model: nn.Module, assigned: Assigned | None = None) -> None:
        """Begin without programs; without ``assigned``, a forward may not assign attributes."""
        self.assigned = assigned
        self._model = model
        self._paths = {module: path for path, module in model.named_modules()}
        self._known = KnownKinds()
        self._programs: dict[nn.Module, list[RecordedProgram]] = {}
        self._examples = ExampleCalls()
        self._learning = 0  # number of inner blocks that are being recorded, one inside another; 0: a called block
        self._asked: WeakKeyDictionary[Recording, Counter[Any]] = WeakKeyDictionary()  # unknown calls, how often
        self._steps = 0  # calls of inner blocks that became steps
        self._inlining: dict[nn.Module, Inlining] = {}  # of blocks that cannot be recorded with steps for inner blocks
        self._compared: set[tuple[nn.Module, int]] = set()  # blocks, and ids of what was recorded of their kind

    def record(self, block: nn.Module, arguments: Mapping[str, Any]) -> list[RecordedProgram]:
        """Record and verify a block in both modes; inner blocks get programs of their own where possible.

        Raises:
            NotPortableError: the forward cannot be recorded.
            CallSignatureError: the forward refuses the call.
        """

        def attempt(kinds: Kinds) -> list[RecordedProgram]:
            recordings = record_modes(block, arguments, kinds)
            for item in recordings:
                self._verify(block, item, arguments)
            return recordings

        with attributes_restored_after(block):
            block.eval()  # the mode of the first recording
            self._learn_inner(block, arguments)
        return self._record(block, arguments, attempt)

    def record_with_sizes(self, block: nn.Module, arguments: Mapping[str, Any]) -> list[RecordedProgram]:
        """Record as :meth:`record`; if the forward does not accept symbols for sizes, record for these sizes only.

        A block of a recorded kind is not recorded, but compared with the programs of the kind in both modes.

        Raises:
            NotPortableError: the forward cannot be recorded.
            CallSignatureError: the forward refuses the call.
        """
        if known := self._known_programs(block, arguments):
            return known
        try:
            return self._keep(block, call_signature(arguments)[0], self.record(block, arguments))
        except (NotPortableError, CallSignatureError) as error:
            inlining = Inlining("the caller is recorded for single sizes", assigned=self.assigned, fixes_sizes=True)
            # The next call of other sizes may depend on what the forward keeps; of attributes, see ``Assigned``.
            if changed_state(block, block, arguments, attributes=self.assigned is None):
                raise
            try:
                found = record_modes(block, arguments, inlining)
                for item in found:
                    verify(block, item, arguments)
            except (NotPortableError, CallSignatureError):
                raise error from error.__cause__
            self._inlining[block] = inlining
            return found

    def record_as_is(
        self, block: nn.Module, arguments: Mapping[str, Any], outcomes: Sequence[Outcome] = ()
    ) -> list[RecordedProgram]:
        """Record and verify a block with the present training flags, and with outcomes of the first decisions.

        Raises:
            NotPortableError: the forward cannot be recorded.
            CallSignatureError: the forward refuses the call.
        """

        def attempt(kinds: Kinds) -> list[RecordedProgram]:
            found = record_as_is(block, arguments, outcomes, kinds)
            self._verify(block, found[0], arguments)
            return found

        self._learn_inner(block, arguments)
        return self._record(block, arguments, attempt)

    def _record(self, block: nn.Module, arguments: Mapping[str, Any], attempt: _Attempt) -> list[RecordedProgram]:
        """Record with steps for inner blocks; if that fails, with the inside of all inner blocks."""
        steps = self._steps
        try:
            found = attempt(self)
        except (NotPortableError, CallSignatureError) as error:
            if steps == self._steps:
                raise
            reason = str(error).partition(". Remedy: ")[0]
            text = f"the caller cannot be recorded with programs of inner blocks: {reason}"
            inlining = Inlining(text, assigned=self.assigned)
        else:
            return found
        finally:
            self._examples.forget(arguments)
        found = attempt(inlining)
        self._inlining[block] = inlining
        return found

    def _verify(self, block: nn.Module, recorded: RecordedProgram, arguments: Mapping[str, Any]) -> None:
        """Verify an inner block with stand-ins for its own inner blocks; other blocks together with all programs."""
        if self._learning:
            verify(block, recorded, arguments, forms=self._known)
        else:
            verify(block, recorded, arguments, inner=programs_below(block, self._programs))

    def _known_programs(self, block: nn.Module, arguments: Mapping[str, Any]) -> list[RecordedProgram]:
        """Return the programs of a recorded block of the same kind, if they do as the block does in both modes."""
        if block not in self._paths:  # a method of a block
            return []
        self._known.note(block)
        given, leaves = call_signature(arguments)
        call = ExampleOfBlock(block=block, signature=given, tensors=tuple(leaves))
        for kind in self._known.kinds_of(block):
            for signature, programs in kind.called:
                if kind.block is not block and signature == given and self._do_as(kind, block, programs, call):
                    return programs
        return []

    def _do_as(self, kind: Kind, block: nn.Module, programs: list[RecordedProgram], call: ExampleOfBlock) -> bool:
        """Whether the programs of a kind do as another block does in both modes."""
        with attributes_restored_after(block):
            for mode in (False, True):
                block.train(mode)  # an own train() may return nothing
                if not self._adopt(kind.block, block, programs, [call], inner_examples(block, call.arguments)):
                    return False
                if not reproduces(block, programs, call.arguments, inner=programs_below(block, self._programs)):
                    return False
        return True

    def _keep(
        self, block: nn.Module, signature: CallSignature, programs: list[RecordedProgram]
    ) -> list[RecordedProgram]:
        """Keep the programs of a called block for other blocks of the kind, unless its forward assigns attributes."""
        assigning = {table for table, _ in self.assigned.attributes} if self.assigned is not None else set()
        if (
            block not in self._paths
            or block in self._inlining
            or not assigning.isdisjoint(map(id, map(vars, block.modules())))
        ):
            return programs  # an assigned attribute is left out of each recorded module
        self._known.kind(block).called.append((signature, programs))
        return programs

    def other_branches(
        self,
        block: nn.Module,
        first: RecordedProgram,
        arguments: Mapping[str, Any],
        known: Sequence[RecordedProgram] = (),
    ) -> Iterator[RecordedProgram]:
        """Yield verified programs for other outcomes of the decisions by truth values of ``first``."""
        yield from other_branches(block, first, arguments, known, self._inlining.get(block, self))

    def inner_programs(self, programs: Programs) -> Programs:
        """Return the programs of the inner blocks that ``programs`` call, also through other inner blocks."""
        return called_programs(self._model, self._paths, self._programs, programs)

    # What a recording needs: ``export.record.recording.Kinds``

    def find(self, call: InnerCall) -> ResultForm | str | None:
        """Return the form of a call's result, or the reason against a step, or None if nothing is known yet."""
        if call.block not in self._known:
            return "it was made after the beginning of the recording"
        found = next((form for _, _, form in self._known.found(call)), None)
        self._steps += isinstance(found, ResultForm)
        return found

    def reads(self, block: nn.Module) -> frozenset[tuple[str, str]]:
        """Return attributes of custom modules that the forward of an inner block reads: module path and name."""
        return frozenset(name for kind in self._known.kinds_of(block) for name in kind.reads)

    def reads_dtypes(self, block: nn.Module) -> bool:
        """Return whether the forward of an inner block reads dtypes."""
        return any(kind.reads_dtypes for kind in self._known.kinds_of(block))

    def learn(self, recording: Recording, call: InnerCall) -> None:
        """Record an inner block for a call without a known form; otherwise note the reason against a recording."""
        asked = self._asked.setdefault(recording, Counter())
        key = (call.block, call.signature, dtypes_of(call), tuple(map(sizes_of, call.tensors)))
        asked[key] += 1
        if asked[key] == 1:
            self._learn_call(recording.module, recording.arguments, call)
        elif asked[key] == 2:
            reason = "it is called in another training mode than its caller"
            self._known.refuse(call, {flags_of(call.block), *flags_of_modes(call.block)}, reason)
        else:
            raise NotPortableError(f"the forward sets modes inside {call.path!r}. Remedy: set modes in the trainer")

    def _learn_inner(self, block: nn.Module, arguments: Mapping[str, Any]) -> None:
        """Record what a block calls before the block itself: an unknown call begins the block's recording anew."""
        self._known.note(block)
        inner = InnerBlocks(self, arguments)
        for example in self._examples.of(block, arguments):
            given, caller = example.arguments, caller_of(self._model, self._paths.get(example.block, ""))
            if caller is not block or any(kind is not str for kind, _ in constants_in(given)):
                continue  # a number may depend on sizes
            call = inner.call(example.block, "", given, None)
            if not isinstance(call, str) and next(self._known.found(call), None) is None:
                self._learn_call(block, arguments, call)

    def _learn_call(self, owner: nn.Module, arguments: Mapping[str, Any], call: InnerCall) -> None:
        example, flags = self._examples.like(owner, arguments, call), flags_of(call.block)
        if example is None:
            return self._known.refuse(call, {flags}, "its arguments are known only inside the caller")
        try:
            return self._learn(owner, arguments, call, example, flags)
        except (NotPortableError, CallSignatureError) as error:
            return self._known.refuse(call, {flags}, str(error).partition(". Remedy: ")[0])

    def learn_dtype(self, recording: Recording, calls: Sequence[InnerCall]) -> None:
        """Note the forms of results in another dtype for calls of recorded blocks, before a recording needs them."""
        for call in calls:
            example = self._examples.like(recording.module, recording.arguments, call)
            if example is not None and next(self._known.found(call), None) is None:
                with suppress(NotPortableError, CallSignatureError, UndecidedError):  # the call may have another dtype
                    self._learn_other_dtype(call, example)

    def _learn_other_dtype(self, call: InnerCall, example: ExampleOfBlock) -> bool:
        for kind, recorded in self._known.recorded(call):
            if any(form.holds(call.shapes) for form in recorded.forms.values() if isinstance(form, ResultForm)):
                self._learn_dtype(kind, recorded, call, example)
                return True
        return False

    def _learn(
        self,
        owner: nn.Module,
        arguments_of_owner: Mapping[str, Any],
        call: InnerCall,
        example: ExampleOfBlock,
        flags: Flags,
    ) -> None:
        if self._learn_other_dtype(call, example):
            return
        if example.reason:
            raise NotPortableError(example.reason)
        block, arguments = call.block, example.arguments
        self._examples.share(arguments_of_owner, example, arguments)
        kind = self._known.kind(block)
        kind.noted.clear()
        if reason := changed_state(owner, block, arguments, known=self._known):
            raise NotPortableError(reason)
        modes = flags_of_modes(block)
        self._learning += 1
        try:
            programs = self.record(block, arguments) if flags in modes else self.record_as_is(block, arguments)
        finally:
            self._learning -= 1
        for first in tuple(programs):
            if any(type(outcome) is not bool for outcome in first.program.outcomes()):
                raise NotPortableError("it decides by a number from values")
            programs += self.other_branches(block, first, arguments, programs)
        both = flags in modes and all(item.training == () for item in programs)
        for group in [set(modes)] if both else [{item} for item in {*modes, flags}]:
            forms = [item for (given, at), item in kind.noted.items() if given == call.signature and at in group]
            merged = {key: form for item in forms for key, form in item.items()}
            own = next((form for (dtype, _), form in merged.items() if dtype is None), None)
            if isinstance(own, str):
                raise NotPortableError(own)
            kind.recorded.append(RecordedCall(signature=call.signature, flags=group, programs=programs, forms=merged))
        self._add(block, programs)

    def _learn_dtype(self, kind: Kind, recorded: RecordedCall, call: InnerCall, example: ExampleOfBlock) -> None:
        """Note the form of a result in another dtype."""
        key, noted = dtypes_of(call), (call.signature, flags_of(kind.block))
        outcomes = recorded.programs[0].program.outcomes()
        kind.noted.clear()
        recording = Recording(kind.block, example.arguments, call.dtype, outcomes, kinds=self)
        recording.input_dtypes = [tensor.dtype for tensor in call.tensors]  # of the caller, not all in ``call.dtype``
        program = recording.run()
        if not any(has_same_steps(program, item.program) for item in recorded.programs):
            recorded.forms[key] = "it decides by the dtypes of its arguments"
            return
        found = kind.noted.get(noted, {}) if noted[1] in recorded.flags else {}
        recorded.forms |= found
        recorded.forms.setdefault(key, "its dtypes differ from the dtypes of its own recording")

    def are_alike(self, recording: Recording) -> bool:
        """Whether every inner block in use does as the recorded block of the same kind does."""
        alike = True
        for call in recording.tape.inner_blocks.used if recording.tape.inner_blocks is not None else ():
            for kind, recorded, _ in itertools.islice(self._known.found(call), 1):
                key = (call.block, id(recorded))
                if kind.block is call.block or key in self._compared:
                    continue
                example = self._examples.like(recording.module, recording.arguments, call)
                examples = self._examples.of(recording.module, recording.arguments)
                if example is not None and self._adopt(kind.block, call.block, recorded.programs, [example], examples):
                    self._compared.add(key)
                else:
                    kind.unlike.add(call.block)
                    alike = False
        return alike

    def _adopt(
        self,
        like: nn.Module,
        block: nn.Module,
        programs: Sequence[RecordedProgram],
        calls: Sequence[ExampleOfBlock],
        examples: Sequence[ExampleOfBlock],
    ) -> bool:
        """Give a block the programs of ``like``, a block of the same kind; return False if the block differs."""
        if not calls or not all(reproduces(block, programs, item.arguments, forms=self._known) for item in calls):
            return False
        for path in {step.path for item in programs for step in item.program.steps if isinstance(step, ModuleCall)}:
            one, other = find_module(like, path), find_module(block, path)
            if one is None or other is None or is_stock(one) or one is other:
                continue
            of_other = [item for item in examples if item.block is other]
            if not self._adopt(one, other, self._programs.get(one, []), of_other, examples):
                return False
        self._add(block, programs)
        return True

    def note(self, recording: Recording, form: ResultForm | str) -> None:
        """Note the form of a recorded block's result, or the reason against a form."""
        block = recording.module
        if block not in self._known:
            return  # a method of a block
        kind = self._known.kind(block)
        kind.reads.update(recording.tape.reads.custom)
        kind.reads_dtypes = kind.reads_dtypes or recording.tape.dtypes.any
        key = (recording.dtype, tuple(tensor.dtype for tensor in recording.inputs))
        forms = kind.noted.setdefault((recording.call_signature, flags_of(block)), {})
        before = forms.setdefault(key, form)
        if isinstance(before, ResultForm) and isinstance(form, ResultForm) and before.form != form.form:
            forms[key] = "its result has another form for other values"

    def _add(self, block: nn.Module, programs: Sequence[RecordedProgram]) -> None:
        known = self._programs.setdefault(block, [])
        known += [item for item in programs if item not in known]
