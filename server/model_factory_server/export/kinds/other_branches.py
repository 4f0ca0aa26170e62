"""Records the branches of decisions by truth values that nobody has called yet.

A trainer sends no outcomes of decisions unless the trainer shares values. Programs for other outcomes are therefore
recorded with the first program.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeAlias

from torch import nn

from model_factory.describe.assignments import attributes_restored_after
from model_factory.errors import CallSignatureError, NotPortableError
from model_factory.program.call_signature import call_signature, match_call_signature
from model_factory.program.ir import Outcome
from model_factory.program.recorded_program import RecordedProgram
from model_factory.program.runtime.lookup import get_module
from model_factory_server.export.record.recorder import record
from model_factory_server.export.record.recording import Kinds
from model_factory_server.export.record.sample_inputs import sample_inputs, takes_branch
from model_factory_server.export.verify.verifier import verify

Flags: TypeAlias = tuple[tuple[str, bool], ...]
"""Training flags by module path."""

MAX_TRIALS = 16
"""Maximum number of outcomes to try for a call: each trial is a recording and a verification."""

_MAX_SAMPLES = 40


def other_branches(
    block: nn.Module,
    first: RecordedProgram,
    arguments: Mapping[str, Any],
    known: Iterable[RecordedProgram] = (),
    kinds: Kinds | None = None,
) -> Iterator[RecordedProgram]:
    """Yield verified programs for other outcomes of the decisions by truth values of ``first``.

    Outcomes that the forward refuses, and outcomes that no sample inputs reach, are left out. So are outcomes of a
    program in ``known``. With ``kinds``, inner blocks get programs of their own.

    Example:
        >>> import torch
        >>> class Halves(nn.Module):
        ...     def forward(self, x):
        ...         return x / 2 if x.sum() > 4 else x
        >>> arguments = {"x": torch.ones(3)}
        >>> first = record(Halves(), arguments)
        >>> [item.program.outcomes() for item in (first, *other_branches(Halves(), first, arguments))]
        [(False,), (True,)]
    """
    tried = {(item.training, outcomes) for item in (first, *known) for outcomes in _beginnings(item)}
    pending, trials = [first], 0
    while pending:
        program = pending.pop(0)
        for outcomes in _other_outcomes(program):
            if (program.training, outcomes) in tried or trials == MAX_TRIALS:
                continue
            tried.add((program.training, outcomes))
            trials += 1
            for recorded in _record_branch(block, program.training, arguments, outcomes, kinds):
                tried.update((recorded.training, beginning) for beginning in _beginnings(recorded))
                pending.append(recorded)
                yield recorded


def _beginnings(recorded: RecordedProgram) -> list[tuple[Outcome, ...]]:
    outcomes = recorded.program.outcomes()
    return [outcomes[:end] for end in range(1, len(outcomes) + 1)]


def _other_outcomes(recorded: RecordedProgram) -> Iterator[tuple[Outcome, ...]]:
    outcomes = recorded.program.outcomes()
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, bool):
            yield (*outcomes[:index], not outcome)


def _record_branch(
    block: nn.Module, training: Flags, arguments: Mapping[str, Any], outcomes: tuple[Outcome, ...], kinds: Kinds | None
) -> list[RecordedProgram]:
    """Record and verify a branch with the given training flags; without flags, in eval and in train mode."""
    found: list[RecordedProgram] = []
    with attributes_restored_after(block):
        for mode in (None,) if training else (False, True):
            # The outcomes in eval mode first: outcomes on random inputs can differ from run to run.
            for wanted in (*[item.program.outcomes() for item in found], outcomes):
                with suppress(CallSignatureError, NotPortableError):
                    _set_flags(block, training, mode)
                    found.append(record(block, arguments, wanted, kinds))
                    break
        alike = [replace(item, training=()) for item in found]
        if not training and alike and alike == alike[:1] * 2:
            found = alike[:1]
        return [item for item in found if _is_verified(block, item, arguments)]


def _set_flags(block: nn.Module, training: Flags, mode: bool | None) -> None:
    if mode is not None:
        block.train(mode)
    for path, flag in training:
        get_module(block, path).training = flag


def _is_verified(block: nn.Module, recorded: RecordedProgram, arguments: Mapping[str, Any]) -> bool:
    with suppress(CallSignatureError, NotPortableError):
        if _is_reached(block, recorded, arguments):  # much less work than a verification without success
            verify(block, recorded, arguments)
            return True
    return False


def _is_reached(block: nn.Module, recorded: RecordedProgram, arguments: Mapping[str, Any]) -> bool:
    given, leaves = call_signature(arguments)
    taken = [leaves[index] for index in match_call_signature(recorded.call_signature, given) or ()]
    samples = itertools.islice(sample_inputs(taken, [leaf.shape for leaf in taken]), _MAX_SAMPLES)
    return any(takes_branch(block, recorded.program, sample) for sample in samples)
