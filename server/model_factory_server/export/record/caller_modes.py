"""Records a forward in several modes of the caller, if the forward asks for a mode.

A forward may ask whether gradients or autocast are on, whether there are several processes, or for the device of a
tensor. The answer is a condition of the program, unless the programs for both answers are equal. A device is the CPU or
a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from model_factory.errors import CallSignatureError, NotPortableError
from model_factory.program.recorded_program import Mode, RecordedProgram
from model_factory.program.runtime.caller_modes import AUTOCAST, DISTRIBUTED, GRAD, IS_CUDA, REQUIRES_GRAD

MAX_RECORDED_MODES = 16
"""Maximum number of combinations of modes to record a call in."""

_RECORDED = frozenset({GRAD, IS_CUDA, DISTRIBUTED, f"{AUTOCAST}cpu", f"{AUTOCAST}cuda"})
_ONLY_ELSEWHERE = frozenset({(IS_CUDA, True), (f"{AUTOCAST}cuda", True), (DISTRIBUTED, True)})
"""Modes that one process on a CPU cannot verify: only an equality with a verified program counts."""

Modes = Mapping[str, bool | str]


def in_modes_of_callers(record: Callable[[Modes], list[RecordedProgram]]) -> list[RecordedProgram]:
    """Return the programs of ``record({})``, and programs for other answers to the questions of the forward.

    Example, a program without a difference between the answers:
        >>> from model_factory.program.ir import Program
        >>> def record(modes):
        ...     asked = ((GRAD, modes.get(GRAD, True)),)
        ...     return [RecordedProgram(call_signature=(), program=Program(inputs=(), steps=(), result=1), modes=asked)]
        >>> [program.modes for program in in_modes_of_callers(record)]
        [()]
    """
    found = record({})
    pending = [modes for item in found for modes in _others(item.modes, {})]
    tried: list[Modes] = [{}]
    while pending and len(tried) < MAX_RECORDED_MODES:
        modes = pending.pop(0)
        if modes in tried:
            continue
        tried.append(modes)
        try:
            more = record(modes)
        except (CallSignatureError, NotPortableError):  # a trainer in these modes gets the error at the call
            continue
        found += [item for item in more if item not in found]
        pending += [others for item in more for others in _others(item.modes, modes)]
    merged = _merged(found)
    verifiable = [replace(item, modes=()) for item in merged if not is_only_elsewhere(item)]
    return [item for item in merged if not is_only_elsewhere(item) or replace(item, modes=()) in verifiable]


def is_only_elsewhere(recorded: RecordedProgram) -> bool:
    """Whether a program is for a GPU or for several processes alone, where nothing can be verified.

    Example:
        >>> from model_factory.program.ir import Program
        >>> program = Program(inputs=(), steps=(), result=1)
        >>> is_only_elsewhere(RecordedProgram(call_signature=(), program=program, modes=((IS_CUDA, True),)))
        True
    """
    return not _ONLY_ELSEWHERE.isdisjoint(recorded.modes)


def _others(modes: Iterable[Mode], assumed: Modes) -> Iterator[Modes]:
    """Modes with one other answer than usual, besides the ``assumed`` answers."""
    for name, value in modes:
        if _is_recorded(name) and name not in assumed:
            yield {**assumed, name: not value}


def _is_recorded(name: str) -> bool:
    return name in _RECORDED or name.startswith(REQUIRES_GRAD)


def _merged(programs: list[RecordedProgram]) -> list[RecordedProgram]:
    """Merge programs that differ in the answer to one question only, until no two programs do."""
    for index, one in enumerate(programs):
        for other in programs[index + 1 :]:
            name = _only_difference(one, other)
            if name is not None:
                kept = replace(one, modes=tuple(mode for mode in one.modes if mode[0] != name))
                return _merged(
                    [*programs[:index], kept, *(item for item in programs[index + 1 :] if item is not other)]
                )
    return programs


def _only_difference(one: RecordedProgram, other: RecordedProgram) -> str | None:
    """The only mode that differs between two otherwise equal programs."""
    first, second = dict(one.modes), dict(other.modes)
    names = [name for name in first if first.get(name) != second.get(name)]
    if first.keys() != second.keys() or len(names) != 1 or not _is_recorded(names[0]):
        return None
    return names[0] if replace(one, modes=()) == replace(other, modes=()) else None
