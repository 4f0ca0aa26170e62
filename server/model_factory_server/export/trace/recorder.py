"""Records a module's forward as a program.

The forward runs once on fake tensors whose sizes are symbols, under a mode that writes down each torch call. Python
control flow simply runs; what remains is the trace, and the conditions on sizes that the run relied on. Where the
forward decides something by the *values* of a tensor, it is told how that turns out on real inputs, and the program
gets a guard there.
"""

from __future__ import annotations

import traceback
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.fx.experimental import _config as symbolic_config
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    GuardOnDataDependentSymNode,
    StatelessSymbolicContext,
)

from model_factory.descriptor.stock import is_stock
from model_factory.errors import CallSignatureError, NotPortableError, refused_call
from model_factory.program.call_signature import call_signature, leaf_names, rebuild_arguments
from model_factory.program.expressions import expression_names
from model_factory.program.forward_signature import ForwardSignature
from model_factory.program.ir import AttributeRead, ModuleCall, Outcome, Program
from model_factory.program.recorded_program import RecordedProgram
from model_factory.program.runtime.lookup import get_module
from model_factory.program.torch_names import torch_name
from model_factory_server.export.conditions.reads import shared_paths
from model_factory_server.export.conditions.symbols import DecisionShapeEnv, SymbolTable
from model_factory_server.export.conditions.unread import Place, candidates, tensor_places, with_noting, without
from model_factory_server.export.out_of_memory import is_out_of_memory
from model_factory_server.export.restored_after import attributes_kept, tensors_as
from model_factory_server.export.trace.dtypes import HALVES, DtypeDecidesError, merge_dtypes, settle_dtypes
from model_factory_server.export.trace.foreign import foreign_tensor
from model_factory_server.export.trace.results import portable_output
from model_factory_server.export.trace.sample_inputs import REFUSED_CALL, outcome_on, takes_side
from model_factory_server.export.trace.tape import DecidesByValuesError, Tape, UndecidedError

_SYMBOLIC_CONFIG: Any = symbolic_config  # a module whose type torch does not declare
_BY_VALUES = (
    *(GuardOnDataDependentSymNode, DataDependentOutputException, DynamicOutputShapeException),
    DecidesByValuesError,
)
_TRIED_ALONE = 8  # constants of a call
_REMEDY = "decide with torch.where, or by an argument of the forward, so that the forward is the same for all values"


def record(module: nn.Module, arguments: Mapping[str, Any], outcomes: Sequence[Outcome] = ()) -> RecordedProgram:
    """Record ``module`` for the call form of ``arguments`` (bound to its forward's parameters, real tensors inside).

    The module's training flags are taken as they are and become a condition of the result. ``outcomes`` are those of
    its first decisions by values; the others turn out as they do on inputs like ``arguments``.

    Raises:
        NotPortableError: the forward cannot be written down as a program.
        CallSignatureError: the forward itself refuses these arguments.
    """
    recording, program = _run_decided(module, arguments, outcomes)
    return _leave_out(_settled(recording, program), recording.unread(program))


def record_modes(module: nn.Module, arguments: Mapping[str, Any]) -> list[RecordedProgram]:
    """Record in eval and in train mode; one program where the two do not differ. Flags are restored."""
    with attributes_kept(module):
        evaluating, evaluated = _run_decided(module.eval(), arguments)
        # Usually neither mode nor dtype decides anything: two recordings that differ in both show that for both.
        module.train()
        other = evaluating.again(evaluating.other_dtype)
        trained = _run_if_possible(other)
        if trained is not None and (both := _for_both(evaluating, evaluated, other, trained)):
            unread = other.unread(trained)
            module.eval()
            return [_leave_out(both, unread, evaluating.unread(evaluated))]
        training, native = _run_alike(module, arguments, evaluating.tape.decisions)
        if training.tape.decisions != evaluating.tape.decisions:
            trained = None
        second = _leave_out(_settled(training, native, trained), training.unread(native))
        module.eval()
        first = _leave_out(_settled(evaluating, evaluated), evaluating.unread(evaluated))
    alike = replace(first, training=())
    return [alike] if alike == replace(second, training=()) else [first, second]


def _for_both(
    evaluating: _Recording, evaluated: Program, other: _Recording, trained: Program
) -> RecordedProgram | None:
    """What a recording in eval mode and one in train mode and another dtype are both, if they are."""
    guards = evaluating.symbols.guards()
    with suppress(DtypeDecidesError):
        program = merge_dtypes(evaluated, trained, *_in_halves(evaluating, other))
        if guards == other.symbols.guards() and takes_side(other.module, program, other.leaves):  # in train mode, too
            return RecordedProgram(
                call_signature=evaluating.form, program=program, guards=guards, **_conditions(evaluating, other)
            )
    return None


def _leave_out(recorded: RecordedProgram, *unread: set[Place]) -> RecordedProgram:
    """Return a recorded program whose form leaves out the places that no run has read."""
    places = set.intersection(*unread)
    tensors = {".".join(map(str, place)) for place in places}
    guards = tuple(guard for guard in recorded.guards if tensors.isdisjoint(expression_names(guard)))
    form = without(recorded.call_signature, places)
    return replace(
        recorded, call_signature=form, guards=guards, program=replace(recorded.program, inputs=leaf_names(form))
    )


def _conditions(*recordings: _Recording) -> dict[str, Any]:
    """What recordings have read of modules, for the fields of a ``Recorded``."""
    attributes = {key: value for recording in recordings for key, value in recording.tape.reads.attributes.items()}
    absent = dict.fromkeys(path for recording in recordings for path in recording.tape.reads.absent)
    used = dict.fromkeys(
        step.path
        for recording in recordings
        for step in recording.tape.steps
        if isinstance(step, ModuleCall | AttributeRead)
    )
    reads = tuple((*key, value) for key, value in attributes.items())
    return {"reads": reads, "absent": tuple(absent), "shared": shared_paths(recordings[0].module, used)}


def _settled(first: _Recording, program: Program, other: Program | None = None) -> RecordedProgram:
    """A recording with its dtypes settled by one in another dtype; of the module's training flags as they are."""
    dtypes: tuple[tuple[str, str], ...] = ()
    if first.tape.dtypes.any:
        # Where only dtype arguments follow a change of dtype, they mean "the dtype of that value". Where anything else
        # does, or the forward refuses the other dtype, the program is limited to the dtypes it was recorded with.
        try:
            program = merge_dtypes(program, other or first.again(first.other_dtype).run(), *_in_halves(first))
        except (DtypeDecidesError, NotPortableError, CallSignatureError):
            program, dtypes = settle_dtypes(program), first.float_dtypes()
    flags = training_flags(first.module, first.tape.reads.flags)
    return RecordedProgram(
        call_signature=first.form,
        program=program,
        training=flags,
        dtypes=dtypes,
        guards=first.symbols.guards(),
        **_conditions(first),
    )


def _in_halves(*recordings: _Recording) -> list[Program]:
    """More recordings in half precision, if it may be that the forward decides by that.

    Raises:
        DtypeDecidesError: it does something then that cannot be compared.
    """
    found = []
    for dtype in HALVES if any(recording.tape.dtypes.names_precision for recording in recordings) else ():
        try:
            found.append(recordings[0].again(dtype).run())
        except CallSignatureError:  # what it refuses in that precision it will refuse when it is run so
            continue
        except NotPortableError as error:
            raise DtypeDecidesError from error
    return found


def training_flags(module: nn.Module, read: Container[str] = ()) -> tuple[tuple[str, bool], ...]:
    """The training flag of a module and of each of its descendants that is not a stock one, or whose flag was read."""
    return tuple((path, item.training) for path, item in module.named_modules() if path in read or not is_stock(item))


def _run_decided(
    module: nn.Module, arguments: Mapping[str, Any], outcomes: Sequence[Outcome] = ()
) -> tuple[_Recording, Program]:
    """Record once more for each decision by values that ``outcomes`` does not tell."""
    told, refusing = len(outcomes), -1
    fixes_ones = False
    refusal: CallSignatureError | None = None  # of the side that the call itself takes
    while True:
        recording = _Recording(module, arguments, None, outcomes, fixes_ones=fixes_ones)
        try:
            return recording, recording.run()
        except UndecidedError as question:
            outcomes = (*outcomes, outcome_on(module, question, call_signature(arguments)[1]))
            refusal = None
        except CallSignatureError as error:
            if not fixes_ones and any(1 in leaf.shape for leaf in recording.leaves):
                fixes_ones = True  # an op may have to know that a size is 1, to broadcast it
                continue
            fixes_ones = False  # that was not it
            # A side that refuses, of an assertion say. The values here may be none but stand-ins: so the other side.
            refusal = refusal or error
            if len(outcomes) in {told, refusing} or outcomes[-1] not in {True, False}:
                raise refusal from refusal.__cause__
            refusing = len(outcomes)
            outcomes = (*outcomes[:-1], not outcomes[-1])


def _run_alike(
    module: nn.Module, arguments: Mapping[str, Any], outcomes: Sequence[Outcome]
) -> tuple[_Recording, Program]:
    """As :func:`_run_decided`, with the outcomes of another mode where the arguments lead to these in this one, too."""
    recording = _Recording(module, arguments, None, outcomes)
    program = _run_if_possible(recording) if outcomes else None
    if program is not None and takes_side(module, settle_dtypes(program), recording.leaves):
        return recording, program
    return _run_decided(module, arguments)


def _run_if_possible(recording: _Recording) -> Program | None:
    with suppress(NotPortableError, CallSignatureError):
        return recording.run()
    return None


class _Recording:
    """One run of a forward on fake tensors."""

    def __init__(
        self,
        module: nn.Module,
        arguments: Mapping[str, Any],
        dtype: torch.dtype | None,
        outcomes: Sequence[Outcome] = (),
        *,
        fixes_ones: bool = False,
        noting: Container[Place] = (),
    ) -> None:
        """Prepare a run.

        ``fixes_ones`` is whether sizes of 1 are no symbols, but conditions of the result; the constants at the places
        ``noting`` are other ones, which note their use in ``used``.
        """
        self.module = module
        self._arguments = arguments
        self.signature = ForwardSignature.of(module.forward)
        self.form, self.leaves = call_signature(arguments)
        self.names = leaf_names(self.form)
        self.shape_env = DecisionShapeEnv()
        self.fake_mode = FakeTensorMode(shape_env=self.shape_env, allow_non_fake_inputs=False)
        self.fake_mode.cache_enabled = False  # it keeps results by symbols, which are new in each recording
        self.symbols = SymbolTable(self.shape_env)
        self.tape = Tape(self.shape_env, self.symbols, self.module, self.names, outcomes)
        self._dtype = dtype
        self._noting = noting
        self.used: set[Place] = set()
        self._fixed = {0, 1} if fixes_ones else {0}  # those of size 0 are the form's
        self._fakes: dict[int, torch.Tensor] = {}

    @property
    def other_dtype(self) -> torch.dtype:
        """A floating dtype that neither the inputs nor the parameters have."""
        tensors = [*self.leaves, *self.module.parameters()]
        return torch.float32 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float64

    def float_dtypes(self) -> tuple[tuple[str, str], ...]:
        """The dtypes of the floating inputs, and of the module's first floating parameter, by name."""
        entries = [(name, leaf) for name, leaf in zip(self.names, self.leaves, strict=True) if leaf.is_floating_point()]
        parameters = (
            (f"attr:{name}", item) for name, item in self.module.named_parameters() if item.is_floating_point()
        )
        entries += [first] if (first := next(parameters, None)) else []
        return tuple((name, torch_name(tensor.dtype)) for name, tensor in entries)

    def again(self, dtype: torch.dtype | None, noting: Container[Place] = ()) -> _Recording:
        """A recording of the same call in another dtype, with the same decisions."""
        decisions, fixes_ones = self.tape.decisions, 1 in self._fixed
        return _Recording(self.module, self._arguments, dtype, decisions, fixes_ones=fixes_ones, noting=noting)

    def unread(self, program: Program) -> set[Place]:
        """The places of the call that this run, which gave ``program``, did not read; in the module's mode as it is."""
        tensors = {place for place, name in tensor_places(self.form) if name not in self.tape.touched}
        defaults = {item.name: item.default for item in self.signature.parameters if not item.required}
        wanted = set(candidates(self.form, defaults, tensors))
        found = self._unread_constants(program, wanted)
        if found is None:  # used where nothing could note a use: one by one, as far as that is worth the time
            alone = sorted(wanted, key=repr)[:_TRIED_ALONE]
            found = {place for place in alone if self._unread_constants(program, {place})}
        return tensors | found

    def _unread_constants(self, program: Program, unread: set[Place]) -> set[Place] | None:
        """Those of these constants that the run did not read; None where the run differs and no use was noted."""
        while unread:
            other = self.again(self._dtype, unread)
            found = _run_if_possible(other)
            if not other.used:
                same = found is not None and settle_dtypes(found) == settle_dtypes(program)
                return unread if same and other.symbols.guards() == self.symbols.guards() else None
            unread = unread - other.used
        return unread

    def run(self) -> Program:
        """Run the forward.

        Raises:
            UndecidedError: it came to a decision by values whose outcome it was not told.
            NotPortableError: it cannot be written down.
            CallSignatureError: it refuses the call.
        """
        with _SYMBOLIC_CONFIG.patch(backed_size_oblivious=True):
            # Size-oblivious: an op's broadcasting does not tell size 1 from others; only the forward's decisions do.
            fake_arguments = self._fake_arguments()
            with _unwritten(fake_arguments, self.signature):
                result = self._run_forward(fake_arguments)
        returned = self.tape.argument(portable_output(result))  # a parameter that is returned as it is has a step, too
        return Program(inputs=self.names, steps=tuple(self.tape.steps), result=returned)

    def _fake_arguments(self) -> dict[str, Any]:
        fakes = [self._fake_input(name, leaf) for name, leaf in zip(self.names, self.leaves, strict=True)]
        arguments = rebuild_arguments(self.form, fakes, self._arguments)
        return with_noting(arguments, self._noting, self.used.add) if self._noting else arguments

    def _fake_input(self, name: str, leaf: torch.Tensor) -> torch.Tensor:
        # Contiguous: an input's memory layout must not appear in the sizes of the program.
        kinds = [DimDynamic.STATIC if size in self._fixed else DimDynamic.DYNAMIC for size in leaf.shape]
        context: Any = StatelessSymbolicContext(dynamic_sizes=kinds)
        # A source of its own name: symbols are named and ordered by it, and so the same in every recording.
        source = ConstantSource(name)
        fake: torch.Tensor = self.fake_mode.from_tensor(
            leaf.detach().contiguous(), source=source, symbolic_context=context
        )
        self.symbols.add_input(name, fake)
        fake = self._in_dtype(fake)
        self.tape.know(fake, name)
        return fake

    def _fake_own(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A fake for a tensor of the module's; the same one for the same tensor."""
        if id(tensor) not in self._fakes:
            fake = self._in_dtype(self.fake_mode.from_tensor(tensor, static_shapes=True))
            if not is_stock(get_module(self.module, name.rpartition(".")[0])):  # those inside torch's modules: if read
                with self.fake_mode:
                    fake = self.symbols.own(name, fake)
            self._fakes[id(tensor)] = fake
            self.tape.attributes[id(fake)] = name
        return self._fakes[id(tensor)]

    def _in_dtype(self, fake: torch.Tensor) -> torch.Tensor:
        if self._dtype is None or not fake.is_floating_point():
            return fake
        with self.fake_mode:
            return fake.detach().to(self._dtype).requires_grad_(fake.requires_grad)

    def _run_forward(self, arguments: dict[str, Any]) -> Any:
        try:
            with torch.enable_grad(), tensors_as(self.module, self._fake_own), self.fake_mode, self.tape.recording():
                result = self.signature.call(self.module, arguments)
        except _BY_VALUES as error:
            raise NotPortableError(
                f"its forward decides by the values of a tensor{_user_line(error)}; a program is the same for all "
                f"values. Remedy: {_REMEDY}"
            ) from error
        except NotPortableError as error:
            self._raise_undecided()
            raise NotPortableError(f"{error}{_user_line(error)}") from error
        except Exception as error:  # the forward is the operator's code: whatever it raises is its refusal
            if is_out_of_memory(error):
                raise
            self._raise_undecided()
            if "Please convert all Tensors to FakeTensors" in str(error):
                raise NotPortableError(foreign_tensor(self.module, _user_line(error))) from error
            text = self.symbols.with_sizes(str(error))
            raise refused_call(f"{REFUSED_CALL}{_user_line(error)}: {type(error).__name__}: {text}", error) from error
        self._raise_undecided()
        return result

    def _raise_undecided(self) -> None:
        """Whatever torch or the forward made of the error on its way."""
        if self.tape.undecided is not None:
            question = self.tape.undecided.program
            raise UndecidedError(settle_dtypes(question), self.tape.undecided.kind)


@contextmanager
def _unwritten(arguments: Mapping[str, Any], signature: ForwardSignature) -> Iterator[None]:
    """Refuse a forward that writes to a list or dict of its caller, which a program would leave as it was."""
    own = {item.name for item in signature.parameters if item.kind in {"var_positional", "var_keyword"}}
    pending = [(name, value, name not in own) for name, value in arguments.items()]
    before: list[tuple[str, Any, Any]] = []
    while pending:
        where, value, is_callers = pending.pop()
        if type(value) in {dict, list, tuple}:
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            pending += [(f"{where}[{key!r}]", item, True) for key, item in entries]
            if is_callers and not isinstance(value, tuple):
                before.append((where, value, value.copy()))
    yield
    for where, value, copy in before:
        old, new = (list(item.items()) if isinstance(item, dict) else list(enumerate(item)) for item in (copy, value))
        if len(old) != len(new) or any(
            one[0] != other[0] or one[1] is not other[1] for one, other in zip(old, new, strict=True)
        ):
            raise NotPortableError(
                f"its forward writes to its caller's argument {where}, which a program leaves as it is. Remedy: copy "
                f"the {type(value).__name__} first, as in batch = dict(batch)"
            )


def _user_line(error: BaseException) -> str:
    """The innermost line outside torch and this package, for the reader of the message."""
    ours = Path(__file__).parent
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).parent != ours
        and "/torch/" not in frame.filename
        and "/model_factory/" not in frame.filename
        and Path(frame.filename).name not in {"contextlib.py", "mock.py"}
    ]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line})" if frames else ""
