"""Exports a built model: finds the blocks called by a trainer, and records the blocks or bundles their source code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from model_factory.config import ModelConfig
from model_factory.describe.describe import describe, named_tensors
from model_factory.descriptor.codec import Programs
from model_factory.descriptor.tree import Descriptor, SourceClass
from model_factory.digest import Blob
from model_factory.errors import BuildError, CallSignatureError, NotPortableError
from model_factory.program.forward_signature import ForwardSignature
from model_factory.program.recorded_program import FORWARD, RecordedProgram
from model_factory.program.runtime.lookup import get_module
from model_factory_server.export.called_blocks import called_blocks, calls_inside, example_calls, method_calls
from model_factory_server.export.error_texts import named
from model_factory_server.export.example_inputs import Call, calls_of_blocks
from model_factory_server.export.kinds.recorded_kinds import RecordedKinds
from model_factory_server.export.out_of_memory import is_out_of_memory
from model_factory_server.export.portable_methods import as_forward
from model_factory_server.export.record.assigned import Assigned
from model_factory_server.export.record.sample_inputs import REFUSED_CALL
from model_factory_server.export.restored_after import restored_after
from model_factory_server.export.source.bundling import Root
from model_factory_server.export.source.source_modules import (
    SourceModules,
    bundle_sources,
    is_shareable,
    source_classes,
    verify_sources,
)
from model_factory_server.export.verify.kept_values import are_caches


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """The portable parts of a model."""

    programs: Programs
    """The recorded and verified forwards."""
    sources: SourceModules | None
    """The modules sent as source code, if any."""
    descriptor: Descriptor
    """The module tree; recordings leave the model unchanged."""

    @property
    def classes(self) -> Mapping[nn.Module, SourceClass]:
        """Class and reason of each module sent as source code."""
        return {} if self.sources is None else self.sources.classes

    @property
    def bundle(self) -> Blob | None:
        """Digest and size of the source bundle, if any."""
        return None if self.sources is None else self.sources.ref


def record_model(model: nn.Module, config: ModelConfig | None = None) -> Programs:
    """Return the programs of a model without source code; see :func:`export_model`.

    Example:
        >>> class Double(nn.Module):
        ...     def forward(self, x):
        ...         return 2 * x
        ...     def example_inputs(self):
        ...         return [{"x": torch.ones(3)}]
        >>> [(path, len(item.program.steps)) for path, item in record_model(Double())]
        [('', 1)]
    """
    return export_model(model, config).programs


def export_model(
    model: nn.Module,
    config: ModelConfig | None = None,
    roots: Sequence[Root] = (),
    refused: dict[str, str] | None = None,
) -> ExportedModel:
    """Record and verify every block called by the trainer; choose source code for blocks without a program.

    Recorded calls are the block's ``example_inputs()``, the calls inside another block's example calls, and the calls
    when the model runs on the ``signature`` of its config.

    Args:
        model: The model.
        config: Its config.
        roots: Folders with code allowed to be sent. A block from these folders is sent as source code if its forward
            cannot be recorded. By default no code may be sent.
        refused: If given, receives the reason for each refused module, by path, and no error is raised.

    Raises:
        NotPortableError: the forward of a block cannot be recorded; the message names the block.
        ConfigError: the model does not run on the config's example inputs.

    Example:
        >>> export_model(nn.Sequential(nn.Linear(2, 2))).programs
        ()
    """
    return _Export(model, config, roots, refused).portable()


class _Export:
    """One run of :func:`export_model`."""

    def __init__(
        self, model: nn.Module, config: ModelConfig | None, roots: Sequence[Root], refused: dict[str, str] | None
    ) -> None:
        self._model = model
        self._config = config
        self._roots = roots
        self._refused = refused
        self._classes: dict[nn.Module, SourceClass] = {}
        self._programs: list[tuple[str, RecordedProgram]] = []
        self._done: set[str] = set()
        self._assigned = Assigned()
        self._kinds = RecordedKinds(model, self._assigned)
        self._decided: list[tuple[str, str, Mapping[str, Any], RecordedProgram]] = []

    def portable(self) -> ExportedModel:
        descriptor = self._describe()  # refuses modules that are not portable before the first recording
        blocks, calls = self._called()
        self._record(blocks, calls)
        if self._classes:  # modules below are now called by source code
            blocks, calls = self._called()
            self._record(blocks, calls)
            descriptor = self._describe_again()
        self._record_other_branches()
        self._refuse_kept(calls)
        if self._assigned.attributes:
            descriptor = self._describe_again()
        called = tuple(item for item in self._programs if get_module(self._model, item[0]) not in self._classes)
        inner = self._kinds.inner_programs(called)
        programs = (*called, *(item for item in inner if item not in called))
        sources = bundle_sources(self._classes, self._roots)
        if sources is not None:
            descriptor = replace(descriptor, bundle=sources.ref)
            if not self._refused:
                verify_sources(self._model, sources, descriptor, programs, calls)
        return ExportedModel(programs=programs, sources=sources, descriptor=descriptor)

    def _describe(self) -> Descriptor:
        reasons: dict[str, str] = {}
        described = describe(self._model, refused=reasons)
        self._classes = source_classes(self._model, reasons, self._roots)
        for path, text in reasons.items():
            if get_module(self._model, path) not in self._classes:
                self._refuse(path, NotPortableError(text))
        if not reasons:
            named_tensors(self._model, described)
        return described

    def _describe_again(self) -> Descriptor:
        """Describe the model with its source classes, and without attributes that forwards assign."""
        left_out = self._assigned.attributes
        found = describe(self._model, self._classes, refused=self._refused, left_out=left_out)
        named_tensors(self._model, found)
        return found

    def _refuse_kept(self, calls: Sequence[Call]) -> None:
        """Refuse attributes that one call keeps for another, except caches."""
        try:
            self._assigned.refuse_read()
        except NotPortableError as error:
            forwards = [(path, FORWARD, arguments) for path, arguments in calls]
            if not are_caches(self._model, [*forwards, *method_calls(self._model)]):
                self._refuse("", named("", self._model, error))

    def _called(self) -> tuple[dict[str, nn.Module], list[Call]]:
        blocks = dict(called_blocks(self._model, self._classes))
        calls = [
            call
            for path, block in blocks.items()
            for arguments in example_calls(path, block).get(FORWARD, ())
            for call in [(path, arguments), *calls_inside(path, block, arguments, blocks, source=bool(self._roots))]
        ]
        if self._config is not None:
            calls += calls_of_blocks(self._model, blocks, self._config, source=bool(self._roots))
        return blocks, calls

    def _record(self, blocks: Mapping[str, nn.Module], calls: Sequence[Call]) -> None:
        """Record the calls of new blocks; a refused block is sent as source code if allowed."""
        wanted = [(path, FORWARD, arguments) for path, arguments in calls if path not in self._done]
        if not self._done:
            wanted += method_calls(self._model)
        reasons: dict[str, str] = {}
        for path, method, arguments in wanted:
            block = get_module(self._model, path)
            if block in self._classes or path in reasons or path in (self._refused or ()):
                continue
            try:
                self._record_one(path, block, method, arguments)
            except NotPortableError as error:
                if self._refused is None and not is_shareable(block, self._roots):
                    raise named(path, block, error) from error
                reasons[path] = str(error)
            except CallSignatureError as error:
                if not getattr(block, "examples_are_guesses", False):  # else the trainer's first call is recorded
                    self._refuse(path, named(path, block, error))
        self._done |= blocks.keys()
        self._classes |= source_classes(self._model, reasons, self._roots)
        for path, text in reasons.items():
            if get_module(self._model, path) not in self._classes:
                self._refuse(path, NotPortableError(text))

    def _record_one(self, path: str, block: nn.Module, method: str, arguments: Mapping[str, Any]) -> None:
        view = as_forward(block, method)
        try:
            recordings = self._kinds.record_with_sizes(view, arguments)
        except CallSignatureError as error:
            if not _accepts(view, arguments):
                raise
            detail = str(error).removeprefix(REFUSED_CALL).lstrip(": ")
            raise NotPortableError(
                f"the forward runs on real tensors, but not on the symbolic sizes of a recording: {detail}"
            ) from error
        for recorded in recordings:
            self._add(path, method, recorded)
        self._decided += [(path, method, arguments, item) for item in recordings if item.program.outcomes()]

    def _add(self, path: str, method: str, recorded: RecordedProgram) -> None:
        """Add a program, unless the program was added before."""
        program = (path, replace(recorded, method=method))
        if program not in self._programs:
            self._programs.append(program)

    def _record_other_branches(self) -> None:
        """Record outcomes of decisions that no example takes: a trainer without permission sends no outcomes."""
        for path, method, arguments, first in self._decided:
            known = [
                item
                for at, item in self._programs
                if (at, item.method, item.call_signature) == (path, method, first.call_signature)
            ]
            block = get_module(self._model, path)
            if block in self._classes:
                continue
            view = as_forward(block, method)
            for recorded in self._kinds.other_branches(view, first, arguments, known):
                self._add(path, method, recorded)

    def _refuse(self, path: str, error: BuildError | CallSignatureError) -> None:
        if self._refused is None:
            raise error
        self._refused.setdefault(path, str(error))


def _accepts(block: nn.Module, arguments: Mapping[str, Any]) -> bool:
    """Whether a forward accepts a call without a recording."""
    try:
        with restored_after(block, parameters=True), torch.random.fork_rng(), torch.no_grad():
            ForwardSignature.of(block.forward).call(block, arguments)
    except Exception as error:  # the operator's code may raise any error
        if is_out_of_memory(error):
            raise
        return False
    return True
