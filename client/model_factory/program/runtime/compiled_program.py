"""A recorded program with compiled steps and conditions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from model_factory.errors import CallSignatureError, FormatError
from model_factory.program.arguments.generators import generators_of, has_generators
from model_factory.program.call_signature import (
    CallSignature,
    has_any,
    leaf_names,
    match_call_signature,
)
from model_factory.program.expressions import Env, compile_expression, expression_names, shape_key
from model_factory.program.ir import OWN, Outcome, step_text
from model_factory.program.recorded_program import RecordedProgram
from model_factory.program.runtime.caller_modes import check_mode, mode_value
from model_factory.program.runtime.interpreter import Runner, device_of
from model_factory.program.runtime.lookup import (
    find_module,
    get_module,
    get_tensor,
    has_read,
    inlined_change,
    is_absent,
    is_shared,
    own_shape,
)
from model_factory.program.torch_names import torch_dtype


class Call(NamedTuple):
    """A call of a module's method."""

    method: str
    signature: CallSignature
    tensors: list[torch.Tensor]
    """Tensors among the arguments, in the order of the signature."""
    arguments: dict[str, Any]
    """Arguments by name."""


class BranchPoint(NamedTuple):
    """A guard whose outcome continues in another program."""

    compiled: CompiledProgram
    """Program of the run so far."""
    step: int
    """Number of the guard."""
    outcome: Outcome
    """Outcome of the guard."""

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """Outcomes of all guards of the run so far."""
        return (*self.compiled.recorded.program.outcomes(self.step), self.outcome)


class CompiledProgram:
    """A recorded program, compiled. Immutable: copies of a module share the object."""

    def __init__(self, recorded: RecordedProgram) -> None:
        """Compile a program.

        Raises:
            FormatError: the program has an unknown op or value, or a condition on an unknown tensor.
        """
        self.recorded = recorded
        self.runner = Runner(recorded.program)
        self.decides = bool(recorded.program.outcomes())
        """Whether the program has guards."""
        self.dtypes = [(name, torch_dtype(dtype)) for name, dtype in recorded.dtypes]
        """Required dtypes, by tensor name."""
        for name, value in recorded.modes:
            check_mode(name, value)
        self._names = leaf_names(recorded.call_signature)
        self._size_conditions = [compile_expression(condition) for condition in recorded.size_conditions]
        sized = {name for condition in recorded.size_conditions for name in expression_names(condition)}
        self._own = {name for name in sized if name.startswith(OWN)}
        self._has_any = has_any(recorded.call_signature)
        self._has_generators = has_generators(recorded.call_signature)
        self.step_texts = [(step_text(step), getattr(step, "out", "")) for step in recorded.program.steps]
        """Call and result names of each step."""
        conditions = sized | {name for name, _ in recorded.dtypes}
        unknown = {name for name in conditions if not name.startswith(OWN)} - set(self._names)
        if unknown:
            raise FormatError(
                f"a recorded program has a condition on {min(unknown)!r}, and no tensor of the call has this name"
            )

    def __deepcopy__(self, _memo: dict[int, Any]) -> CompiledProgram:
        return self

    def __reduce__(self) -> tuple[type[CompiledProgram], tuple[RecordedProgram]]:
        return (CompiledProgram, (self.recorded,))

    def continues(self, point: BranchPoint) -> bool:
        """Whether the program can finish a run that another program started."""
        other, end = point.compiled, point.step + 1
        if other.recorded.method != self.recorded.method or len(self.step_texts) < end:
            return False
        if self.recorded.program.outcomes(end) != point.outcomes:
            return False
        return self.step_texts[:end] == other.step_texts[:end]

    def tensors_of(self, call: Call) -> list[torch.Tensor] | None:
        """Return the tensors of a call that the program takes, in order; None if the program is for other calls."""
        if call.method != self.recorded.method:
            return None
        if not self._has_any:
            return call.tensors if call.signature == self.recorded.call_signature else None
        kept = match_call_signature(self.recorded.call_signature, call.signature)
        return None if kept is None else [call.tensors[index] for index in kept]

    def generators_of(self, call: Call) -> Mapping[str, torch.Generator]:
        """Return the generators of random numbers that the program takes from the arguments of a call, by name."""
        return generators_of(self.recorded.call_signature, call.arguments) if self._has_generators else {}

    def check_inlined(self, module: nn.Module, where: str) -> None:
        """Check that nothing was put on a block whose inside is a part of the program, since it would have no effect.

        Raises:
            CallSignatureError: a block was replaced or wrapped, or has hooks.
        """
        for path, reason in self.recorded.inlined:
            change = inlined_change(find_module(module, path))
            if change:
                raise CallSignatureError(
                    f"{where}: the block {path!r} {change}, without effect: the inside of the block is a part of its "
                    f"caller's program, since {reason}. Remedy: use the caller or the layers inside the block instead"
                )

    def other_modes(self, module: nn.Module, given: list[torch.Tensor]) -> tuple[str, ...]:
        """Return the caller's modes that differ from the program's, for tensors as in :meth:`tensors_of`."""
        if not self.recorded.modes:
            return ()
        device = device_of(module, given)
        inputs = dict(zip(self._names, given, strict=True))
        return tuple(name for name, value in self.recorded.modes if mode_value(name, device, inputs) != value)

    def accepts(self, module: nn.Module, call: Call) -> bool:
        """Whether the program may replace the forward of ``module`` for a call: every condition holds."""
        given = self.tensors_of(call)
        if given is None:
            return False
        if self.other_modes(module, given):
            return False
        for path, training in self.recorded.training:
            if get_module(module, path).training != training:
                return False
        tensors = dict(zip(self._names, given, strict=True))
        for name, dtype in self.dtypes:
            tensor = get_tensor(module, name.removeprefix(OWN)) if name.startswith(OWN) else tensors[name]
            if tensor is None or tensor.dtype != dtype:
                return False
        if not all(has_read(module, *read) for read in self.recorded.reads):
            return False
        if not all(is_absent(module, path) for path in self.recorded.absent):
            return False
        if not all(is_shared(module, path, other) for path, other in self.recorded.shared):
            return False
        env: Env = {shape_key(name): tensor.shape for name, tensor in tensors.items()}
        env.update((shape_key(name), own_shape(module, name)) for name in self._own)
        return all(guard(env) for guard in self._size_conditions)
