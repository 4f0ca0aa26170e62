"""A block that turns out to need source code at a call of a trainer: its classes, bundle and descriptor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from model_factory.describe.describe import describe
from model_factory.descriptor.codec import Programs
from model_factory.descriptor.tree import Descriptor
from model_factory.errors import NotPortableError
from model_factory.program.example_call import ExampleCall
from model_factory.program.recorded_program import FORWARD, RecordedProgram
from model_factory_server.export.called_blocks import called_blocks, calls_inside
from model_factory_server.export.record.annotated_classes import with_annotated_classes
from model_factory_server.export.source.bundling import Root
from model_factory_server.export.source.source_modules import (
    SourceModules,
    bundle_sources,
    source_classes,
    verify_sources,
)
from model_factory_server.export.trainer_call import record_programs


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOfBlock:
    """A block as source code."""

    descriptor: Descriptor
    """The block and all below, with the bundle."""
    sources: SourceModules
    """Classes and bundle."""
    programs: Programs
    """Programs of blocks inside that stay programs, by path below the block."""


def source_of_block(
    block: nn.Module, call: ExampleCall, refusal: NotPortableError, roots: Sequence[Root]
) -> SourceOfBlock | None:
    """Return a block as source code, verified with a call; ``None`` if the code of the block may not be sent.

    Args:
        block: The block.
        call: The call of the trainer, which cannot be recorded.
        refusal: The reason.
        roots: Folders with code allowed to be sent.

    Raises:
        NotPortableError: the block cannot be sent as source code either.
    """
    if call.outcomes:  # the trainer is inside of a call
        return None
    reason = refusal.reason.partition("): ")[2] or refusal.reason  # without path and class
    classes = source_classes(block, {"": reason}, roots)
    sources = bundle_sources(classes, roots) if block in classes else None
    if sources is None:
        return None
    try:
        descriptor = describe(block, classes, sources.ref)
        found: list[tuple[str, RecordedProgram]] = []
        calls = []
        for arguments in _forwards(block, call):
            found += _inner_programs(block, classes, arguments)
            calls.append(("", dict(arguments)))
        programs = tuple(item for index, item in enumerate(found) if item not in found[:index])
        verify_sources(block, sources, descriptor, programs, calls)
    except NotPortableError as error:
        raise NotPortableError(f"{refusal.reason}; and the block cannot be sent as source code: {error}") from error
    return SourceOfBlock(descriptor=descriptor, sources=sources, programs=programs)


def _forwards(block: nn.Module, call: ExampleCall) -> Iterator[Mapping[str, Any]]:
    """Yield the arguments of a call of the forward; a call without values has arguments for each truth value."""
    if call.method == FORWARD:
        for arguments in (call.arguments, *call.others):
            yield with_annotated_classes(block.forward, arguments)


def _inner_programs(block: nn.Module, classes: Mapping[nn.Module, Any], arguments: Mapping[str, Any]) -> Programs:
    """Record the calls of blocks inside that stay programs, in both modes.

    Raises:
        NotPortableError: a call cannot be recorded.
    """
    inner = {path: item for path, item in called_blocks(block, classes) if item not in classes}
    return tuple(
        program
        for path, given in calls_inside("", block, arguments, inner, source=True)
        for training in (False, True)
        for program in record_programs(block, path, ExampleCall(arguments=given), {"": training})
    )
