"""A run of a forward on fake tensors with symbolic sizes: steps and conditions."""

from __future__ import annotations

import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import nn

from model_factory.descriptor.stock import is_stock
from model_factory.errors import CallSignatureError, NotPortableError, refused_call
from model_factory.program.arguments.generators import generators_of
from model_factory.program.arguments.kinds import Parts, take_apart
from model_factory.program.call_signature import call_signature, leaf_names, rebuild_arguments
from model_factory.program.forward_signature import ForwardSignature
from model_factory.program.ir import Outcome, Program
from model_factory.program.runtime.caller_modes import GRAD, REQUIRES_GRAD, modes_entered
from model_factory.program.runtime.lookup import get_module
from model_factory.program.torch_names import torch_name
from model_factory_server.export.conditions.arrays import TracedArray
from model_factory_server.export.conditions.inner_blocks import (
    InnerBlocks,
    InnerCall,
    InnerKinds,
    UnknownInnerCallError,
)
from model_factory_server.export.conditions.result_forms import ResultForm, result_form
from model_factory_server.export.conditions.symbols import DecisionShapeEnv, SymbolTable
from model_factory_server.export.conditions.unread_arguments import Place, with_use_noting
from model_factory_server.export.error_texts import foreign_tensor
from model_factory_server.export.out_of_memory import is_out_of_memory
from model_factory_server.export.record.assigned import Assigned
from model_factory_server.export.record.fakes import OwnFakes, in_dtype
from model_factory_server.export.record.merge_dtypes import settle_dtypes
from model_factory_server.export.record.sample_inputs import REFUSED_CALL
from model_factory_server.export.restored_after import caches_cleared_after, note_written, tensors_as
from model_factory_server.export.torch_patches import patch_torch
from model_factory_server.export.torch_private import (
    ConstantSource,
    DataDependentOutputException,
    DimDynamic,
    DynamicOutputShapeException,
    GuardOnDataDependentSymNode,
    StatelessSymbolicContext,
    size_oblivious,
)
from model_factory_server.export.trace.constants import NotingFakeMode
from model_factory_server.export.trace.decisions import DecidesByValuesError, UndecidedError
from model_factory_server.export.trace.results import portable_output
from model_factory_server.export.trace.tape import Tape

_BY_VALUES = (
    *(GuardOnDataDependentSymNode, DataDependentOutputException, DynamicOutputShapeException),
    DecidesByValuesError,
)
_REMEDY = "decide with torch.where, or by an argument of the forward, so that the forward is the same for all values"


class Kinds(InnerKinds, Protocol):
    """Kinds of blocks; see ``export.kinds``."""

    fixes_sizes: bool
    """Whether all sizes are conditions of the program, and not symbols."""
    assigned: Assigned | None
    """Receives the attributes that forwards assign; with None, such a forward is refused."""

    def learn(self, recording: Recording, call: InnerCall) -> None:
        """Record an inner block for a call without a known form; otherwise note the reason against a recording."""
        ...

    def learn_dtype(self, recording: Recording, calls: Sequence[InnerCall]) -> None:
        """Note forms of results in another dtype: each unknown call of a recorded block would begin the run anew."""
        ...

    def are_alike(self, recording: Recording) -> bool:
        """Whether every inner block in use does as the recorded block of the same kind does."""
        ...

    def note(self, recording: Recording, form: ResultForm | str) -> None:
        """Note the form of a recorded block's result, or the reason against a form."""
        ...


class Recording:
    """A run of a forward on fake tensors."""

    def __init__(
        self,
        module: nn.Module,
        arguments: Mapping[str, Any],
        dtype: torch.dtype | None,
        outcomes: Sequence[Outcome] = (),
        *,
        fixes_ones: bool = False,
        noting: Collection[Place] = (),
        kinds: Kinds | None = None,
        assumed: Mapping[str, bool | str] = MappingProxyType({}),
    ) -> None:
        """Prepare a run.

        Args:
            module: The module with the forward.
            arguments: The call: real tensors, bound to the forward's parameters.
            dtype: Floating dtype of inputs and parameters; ``None`` to keep their own dtypes.
            outcomes: Given outcomes of the first decisions by values.
            fixes_ones: Make sizes of 1 conditions of the program, and not symbols.
            noting: Places of constants whose use is noted in ``used``.
            kinds: Source of programs for inner blocks; None records the inside of every custom block.
            assumed: Modes of the caller, besides the usual modes.
        """
        self.module = module
        self.signature = ForwardSignature.of(module.forward)
        self.call_signature, self.leaves = call_signature(arguments)
        self.names = leaf_names(self.call_signature)
        self.input_dtypes: Sequence[torch.dtype | None] = [dtype] * len(self.leaves)
        """Dtypes of floating inputs, in order; ``None``: an input's own dtype."""
        self.dtype = dtype
        """Floating dtype of inputs and parameters; ``None``: their own dtypes."""
        self.arguments = arguments
        """The call."""
        self.assumed = assumed
        self.used: set[Place] = set()
        """Places of ``noting`` with a use."""
        self._outcomes = outcomes
        self._noting = noting
        self._kinds = kinds
        self._fixes_sizes = kinds is not None and kinds.fixes_sizes
        self._fixed_sizes = {0, 1} if fixes_ones else {0}  # the call signature contains sizes of 0
        self._prepare()

    def _prepare(self) -> None:
        self.shape_env = DecisionShapeEnv()
        self.symbols = SymbolTable(self.shape_env, fixes_sizes=self._fixes_sizes)
        inner = None if self._kinds is None else InnerBlocks(self._kinds, self.arguments)
        self._fake_mode = NotingFakeMode(shape_env=self.shape_env, allow_non_fake_inputs=False)
        self._fake_mode.cache_enabled = False  # entries have symbols as keys, and every recording has new symbols
        self.tape = Tape(
            *(self.shape_env, self.symbols, self.module, self.names, self._outcomes, inner, self.dtype),
            make_fake=partial(self._fake_mode.from_tensor, static_shapes=True),
        )
        generators = generators_of(self.call_signature, self.arguments)
        self.tape.generators.update({id(item): name for name, item in generators.items()})
        self.tape.modes.assumed = self.assumed
        self.tape.module_calls.may_assign = self._kinds is not None and self._kinds.assigned is not None
        self._fake_mode.tape = self.tape
        self.used.clear()
        self.inputs: list[torch.Tensor] = []
        """Fake tensors of the arguments, in order."""
        self._fakes: dict[int, torch.Tensor] = {}
        self._own_fakes = OwnFakes(self.module, self._fake_mode, self.dtype)

    @property
    def other_dtype(self) -> torch.dtype:
        """A floating dtype other than the dtypes of inputs and parameters."""
        tensors = [*self.leaves, *self.module.parameters()]
        return torch.float32 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float64

    def float_dtypes(self) -> tuple[tuple[str, str], ...]:
        """The dtypes, by name, of floating inputs and of the module's first floating parameter."""
        entries = [(name, leaf) for name, leaf in zip(self.names, self.leaves, strict=True) if leaf.is_floating_point()]
        parameters = (
            (f"attr:{name}", item) for name, item in self.module.named_parameters() if item.is_floating_point()
        )
        entries += [first] if (first := next(parameters, None)) else []
        return tuple((name, torch_name(tensor.dtype)) for name, tensor in entries)

    def again(self, dtype: torch.dtype | None, noting: Collection[Place] = ()) -> Recording:
        """Prepare another run of the same call with the same decisions."""
        other = Recording(
            *(self.module, self.arguments, dtype, self.tape.decisions.taken),
            fixes_ones=1 in self._fixed_sizes,
            noting=noting,
            kinds=self._kinds,
            assumed=self.assumed,
        )
        if self._kinds is not None and self.tape.inner_blocks is not None and dtype not in {None, self.dtype}:
            self._kinds.learn_dtype(other, [call.in_dtype(dtype) for call in self.tape.inner_blocks.used])
        return other

    def unread_among(self, places: set[Place], program: Program) -> set[Place] | None:
        """Return the places of ``places`` with constants unread by the run, with ``program`` as result.

        The forward runs again with use-noting objects. Returns ``None`` if the runs differ without a noted use.
        """
        while places:
            other = self.again(self.dtype, places)
            found = run_if_possible(other)
            if not other.used:
                same = found is not None and settle_dtypes(found) == settle_dtypes(program)
                return places if same and other.symbols.size_conditions() == self.symbols.size_conditions() else None
            places = places - other.used
        return places

    def run(self) -> Program:
        """Run the forward; again after an inner block has been recorded.

        Raises:
            UndecidedError: the forward has reached a decision by values without a given outcome.
            NotPortableError: the forward cannot be recorded as a program.
            CallSignatureError: the forward refuses the call.
        """
        while True:
            try:
                program = self._run()
            except UnknownInnerCallError as unknown:
                assert self._kinds is not None
                self._kinds.learn(self, unknown.call)
                self._prepare()
                continue
            if self._kinds is None or self._kinds.are_alike(self):
                return program
            self._prepare()

    def _run(self) -> Program:
        with size_oblivious():  # only the forward's own decisions distinguish size 1
            fake_arguments = self._fake_arguments()
            try:
                with _containers_unchanged(fake_arguments, self.signature):
                    result = self._run_forward(fake_arguments)
            finally:
                note_written(self.module, self.tape.written)  # before any run with real tensors
        returned = self.tape.argument(portable_output(result))  # adds a step for a returned parameter
        if self._kinds is not None:
            self._note_assigned()
            self._kinds.note(self, result_form(result, self.inputs, self.names, self.symbols))
        return Program(inputs=self.names, steps=tuple(self.tape.steps), result=returned)

    def _note_assigned(self) -> None:
        assert self._kinds is not None
        if self._kinds.assigned is not None:
            calls, read, assigned = self.tape.module_calls, self.tape.reads.read_first, self._kinds.assigned
            assigned.attributes |= calls.assigned
            assigned.read |= {name for _, name in read}
            assigned.private |= calls.private
            assigned.private_read |= {item for item in read - calls.private if item[1].startswith("_")}

    def _fake_arguments(self) -> dict[str, Any]:
        self.inputs = list(map(self._fake_input, self.names, self.leaves, self.input_dtypes))
        arguments = rebuild_arguments(self.call_signature, self.inputs, self.arguments, make_array=TracedArray)
        return with_use_noting(arguments, self._noting, self.used.add) if self._noting else arguments

    def _fake_input(self, name: str, leaf: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
        # Contiguous: an input's memory layout must not appear in the sizes of the program.
        kinds = [
            DimDynamic.STATIC if self._fixes_sizes or size in self._fixed_sizes else DimDynamic.DYNAMIC
            for size in leaf.shape
        ]
        context: Any = StatelessSymbolicContext(dynamic_sizes=kinds)
        # The source's name determines the names and order of symbols, so that every recording has the same symbols.
        source = ConstantSource(name)
        fake: torch.Tensor = self._fake_mode.from_tensor(
            in_dtype(leaf.detach().contiguous(), dtype), source=source, symbolic_context=context
        )
        self.symbols.add_input(name, fake)
        if self.assumed.get(f"{REQUIRES_GRAD}{name}"):
            with self._fake_mode:
                fake = fake.requires_grad_().clone()  # no leaf of autograd: a forward may write to an input
        self.tape.know(fake, name)
        return fake

    def _fake_own(self, path: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a fake for a tensor of the module; the same fake for the same tensor."""
        if id(tensor) not in self._fakes:
            fake = self._own_fakes.make(tensor)
            if not is_stock(get_module(self.module, path.rpartition(".")[0])):  # in torch's modules: once read
                with self._fake_mode:
                    fake = self.symbols.own(path, fake)
            self._fakes[id(tensor)] = fake
            self.tape.attributes[id(fake)] = path
        return self._fakes[id(tensor)]

    def _run_forward(self, arguments: dict[str, Any]) -> Any:
        fakes = tensors_as(self.module, self._fake_own)
        try:
            with (
                caches_cleared_after(self.module),
                modes_entered({GRAD: True, **self.assumed}.items()),
                fakes,
                self._fake_mode,
                patch_torch(self.tape),
                self.tape.recording(),
            ):
                result = self.signature.call(self.module, arguments)
        except _BY_VALUES as error:
            raise NotPortableError(
                f"the forward decides by the values of a tensor{_user_line(error)}, and a program is the same for all "
                f"values. Remedy: {_REMEDY}"
            ) from error
        except NotPortableError as error:
            self._raise_undecided()
            reason, remedy, text = str(error).partition(". Remedy: ")
            raise NotPortableError(f"{reason}{_user_line(error)}{remedy}{text}") from error
        except Exception as error:  # the operator's code may raise any error
            if is_out_of_memory(error):
                raise
            self._raise_undecided()
            if "Please convert all Tensors to FakeTensors" in str(error):
                raise NotPortableError(foreign_tensor(self.module, _user_line(error))) from error
            text = self.symbols.with_sizes(str(error))
            raise refused_call(f"{REFUSED_CALL}{_user_line(error)}: {type(error).__name__}: {text}", error) from error
        self._raise_undecided()
        if self.tape.inner_blocks is not None and self.tape.inner_blocks.unknown is not None:  # caught by a bare except
            raise self.tape.inner_blocks.unknown
        return result

    def _raise_undecided(self) -> None:
        """Raise the decision without an outcome again, even if torch or the forward has caught the error."""
        undecided = self.tape.decisions.undecided
        if undecided is not None:
            raise UndecidedError(settle_dtypes(undecided.program), undecided.kind)


def run_if_possible(recording: Recording) -> Program | None:
    """Run a recording; return ``None`` if the forward cannot be recorded or refuses the call."""
    with suppress(NotPortableError, CallSignatureError):
        return recording.run()
    return None


@contextmanager
def _containers_unchanged(arguments: Mapping[str, Any], signature: ForwardSignature) -> Iterator[None]:
    """Refuse a forward that writes to a list or dict of its caller, since programs do not."""
    own = {item.name for item in signature.parameters if item.kind in {"var_positional", "var_keyword"}}
    pending = [(name, value, name not in own) for name, value in arguments.items()]
    before: list[tuple[str, Any, Parts]] = []
    while pending:
        where, value, is_callers = pending.pop()
        parts = take_apart(value)
        if parts is not None:
            pending += [(f"{where}[{key!r}]", item, True) for key, item in parts.entries]
            if is_callers and not isinstance(value, tuple):
                before.append((where, value, parts))
    yield
    for where, value, parts in before:
        after = take_apart(value)
        old, new = parts.entries, () if after is None else after.entries
        if len(old) != len(new) or any(
            one[0] != other[0] or one[1] is not other[1] for one, other in zip(old, new, strict=True)
        ):
            raise NotPortableError(
                f"the forward writes to its caller's argument {where}, and programs write to tensors only. Remedy: "
                f"copy the {type(value).__name__} first, as in batch = dict(batch) or copy.copy(batch)"
            )


def _user_line(error: BaseException) -> str:
    """The innermost line of code outside torch and this package, for messages."""
    export = Path(__file__).parents[1]
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if export not in Path(frame.filename).parents
        and "/torch/" not in frame.filename
        and "/model_factory/" not in frame.filename
        and Path(frame.filename).name not in {"contextlib.py", "mock.py"}
    ]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line})" if frames else ""
