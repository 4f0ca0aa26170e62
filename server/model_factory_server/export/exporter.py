"""From a built model to what travels: its descriptor and the programs of its blocks."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from model_factory.config import ModelConfig
from model_factory.descriptor.codec import Programs
from model_factory.descriptor.stock import is_stock
from model_factory.descriptor.tree import Descriptor, SourceClass
from model_factory.digest import Blob
from model_factory.errors import (
    BuildError,
    CallSignatureError,
    FormatError,
    GraphExecutionError,
    ModelFactoryError,
    NotPortableError,
)
from model_factory.program.example_call import ExampleCall
from model_factory.program.forward_signature import ForwardSignature
from model_factory.program.recorded_program import FORWARD, Read, RecordedProgram, is_plain
from model_factory.program.runtime.graph_model import GRAPH_MODULES, GraphModel
from model_factory.program.runtime.lookup import find_module, get_module
from model_factory.wording import listed
from model_factory_server.export.describe.declared_methods import declared_methods
from model_factory_server.export.describe.describe import describe, named_tensors
from model_factory_server.export.example_inputs import Call, calls_of_blocks, noted_calls
from model_factory_server.export.out_of_memory import is_out_of_memory
from model_factory_server.export.portable_methods import as_forward
from model_factory_server.export.restored_after import restored_after
from model_factory_server.export.source.bundling import Root
from model_factory_server.export.source.source_modules import (
    Sources,
    bundle_sources,
    prove_sources,
    shareable,
    source_classes,
)
from model_factory_server.export.trace.recorder import record, record_modes
from model_factory_server.export.trace.sample_inputs import REFUSED_CALL
from model_factory_server.export.verify.verifier import verify

_NUMBERS = (bool, int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Portable:
    """How a model travels."""

    programs: Programs
    """The recorded and proven forwards."""
    sources: Sources | None
    """What travels as source; None if nothing does."""
    descriptor: Descriptor
    """The module tree, as it was before the recording, which leaves no trace in a model."""

    @property
    def classes(self) -> Mapping[nn.Module, SourceClass]:
        """Class and reason of each source module."""
        return {} if self.sources is None else self.sources.classes

    @property
    def bundle(self) -> Blob | None:
        """Identity of the source bundle; None without source modules."""
        return None if self.sources is None else self.sources.ref


def record_model(model: nn.Module, config: ModelConfig | None = None) -> Programs:
    """Return the programs of a model that travels without source; see :func:`survey_model`."""
    return survey_model(model, config).programs


def survey_model(
    model: nn.Module,
    config: ModelConfig | None = None,
    roots: Sequence[Root] = (),
    refused: dict[str, str] | None = None,
) -> Portable:
    """Find out how each module of a model travels: record and prove every block that the trainer calls.

    It is recorded for the calls of its own ``example_inputs()``, for those that come up when a block around it runs on
    its own, and for those that come up when the model runs on the ``signature`` of its config.

    Args:
        model: The model.
        config: Its config.
        roots: Where the code is that may be handed out: a block of it whose forward cannot be written down travels as
            source. None may by default.
        refused: Where given, gets why a module cannot travel, by path; nothing is raised for it then.

    Raises:
        NotPortableError: a block's forward cannot be written down; the message names the block.
        ConfigError: the model does not run on the config's examples.
    """
    return _Survey(model, config, roots, refused).portable()


class _Survey:
    """Finds out how each module of a model travels."""

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

    def portable(self) -> Portable:
        descriptor = self._describe()  # what cannot travel is refused before anything is recorded
        blocks, calls = self._called()
        self._record(blocks, calls)
        if self._classes:  # what is below them is now called by their source
            blocks, calls = self._called()
            self._record(blocks, calls)
            descriptor = describe(self._model, self._classes, refused=self._refused)
            named_tensors(self._model, descriptor)
        programs = tuple(item for item in self._programs if get_module(self._model, item[0]) not in self._classes)
        sources = bundle_sources(self._classes, self._roots)
        if sources is not None:
            descriptor = replace(descriptor, bundle=sources.ref)
            if not self._refused:
                prove_sources(self._model, sources, descriptor, programs, calls)
        return Portable(programs=programs, sources=sources, descriptor=descriptor)

    def _describe(self) -> Descriptor:
        notes: dict[str, str] = {}
        described = describe(self._model, refused=notes)
        self._classes = source_classes(self._model, notes, self._roots)
        for path, text in notes.items():
            if get_module(self._model, path) not in self._classes:
                self._refuse(path, NotPortableError(text))
        if not notes:
            named_tensors(self._model, described)
        return described

    def _called(self) -> tuple[dict[str, nn.Module], list[Call]]:
        blocks = dict(called_blocks(self._model, self._classes))
        calls = [
            call
            for path, block in blocks.items()
            for arguments in _examples(path, block).get(FORWARD, ())
            for call in [(path, arguments), *_calls_inside(path, block, arguments, blocks, source=bool(self._roots))]
        ]
        if self._config is not None:
            calls += calls_of_blocks(self._model, blocks, self._config, source=bool(self._roots))
        return blocks, calls

    def _record(self, blocks: Mapping[str, nn.Module], calls: Sequence[Call]) -> None:
        """Record what is no source and was not recorded before; what is refused becomes source if it can."""
        wanted = [(path, FORWARD, arguments) for path, arguments in calls if path not in self._done]
        if not self._done:
            wanted += _method_calls(self._model)
        notes: dict[str, str] = {}
        for path, method, arguments in wanted:
            block = get_module(self._model, path)
            if block in self._classes or path in notes or path in (self._refused or ()):
                continue
            try:
                self._record_one(path, block, method, arguments)
            except NotPortableError as error:
                if self._refused is None and not shareable(block, self._roots):
                    raise _named(path, block, error) from error
                notes[path] = str(error)
            except CallSignatureError as error:
                if not getattr(block, "examples_are_guesses", False):  # else the trainer's first call will tell
                    self._refuse(path, _named(path, block, error))
        self._done |= blocks.keys()
        self._classes |= source_classes(self._model, notes, self._roots)
        for path, text in notes.items():
            if get_module(self._model, path) not in self._classes:
                self._refuse(path, NotPortableError(text))

    def _record_one(self, path: str, block: nn.Module, method: str, arguments: Mapping[str, Any]) -> None:
        view = as_forward(block, method)
        try:
            recordings = record_modes(view, arguments)
        except CallSignatureError as error:
            if not _runs(view, arguments):
                raise
            detail = str(error).removeprefix(REFUSED_CALL).lstrip(": ")
            raise NotPortableError(
                f"its forward runs on real tensors, but not on the symbols of a recording: {detail}"
            ) from error
        for recorded in recordings:
            if (path, named := replace(recorded, method=method)) not in self._programs:
                verify(view, recorded, arguments)
                self._programs.append((path, named))

    def _refuse(self, path: str, error: BuildError | CallSignatureError) -> None:
        if self._refused is None:
            raise error
        self._refused.setdefault(path, str(error))


def record_call(
    model: nn.Module,
    path: str,
    call: ExampleCall,
    training: Mapping[str, bool],
) -> RecordedProgram:
    """Record and prove a method of one block for one call that came up on a trainer.

    Raises:
        NotPortableError: its forward cannot be written down for this call.
        CallSignatureError: its forward refuses the call.
        FormatError: the model has no such block.
    """
    try:
        block = get_module(model, path)
    except GraphExecutionError as error:
        raise FormatError(str(error)) from None
    if is_stock(block) or isinstance(block, GraphModel):
        raise NotPortableError(f"{path} is a {type(block).__name__}, which needs no program")
    if call.method != FORWARD and call.method not in declared_methods(block, path):
        raise FormatError(f"{path} ({type(block).__name__}) declares no method {call.method!r}")
    block = as_forward(block, call.method)
    with _naming(path, block):
        arguments = call.arguments
        _check_arguments(block, arguments)
        if _is_lazy(block):
            _materialise(block, arguments)
        _set_flags(block, training)
        _set_attributes(block, call.reads)
        if call.outcomes or len({module.training for module in block.modules()}) > 1:
            recorded = record(block, arguments, call.outcomes)
        else:
            recorded = next(
                item
                for item in record_modes(block, arguments)
                if all(get_module(block, relative).training == flag for relative, flag in item.training)
            )
        verify(block, recorded, arguments)
        return replace(recorded, method=call.method)


def _set_flags(block: nn.Module, training: Mapping[str, bool]) -> None:
    """Set training flags; a module that has none given has that of its owner."""
    modules = dict(block.named_modules(remove_duplicate=False))
    for path, module in modules.items():
        module.training = training.get(path, modules[path.rpartition(".")[0]].training)


def _set_attributes(block: nn.Module, reads: Sequence[Read]) -> None:
    """Set attributes of torch modules to what the trainer has set them to."""
    for path, name, value in reads:
        module = find_module(block, path)
        before = None if module is None else module.__dict__.get(name)
        if module is None or not is_stock(module) or not is_plain(before) or not _is_alike(before, value):
            raise FormatError(f"{path}.{name} is no attribute of a torch module that can be {value!r}")
        module.__dict__[name] = value


def _is_alike(before: Any, value: Any) -> bool:
    """Whether a value may be in the place of another: numbers, texts, as many of them, or None on either side."""
    if before is None or value is None:
        return True
    if isinstance(before, tuple | list):
        return type(value) is type(before) and len(value) == len(before) and all(map(_is_alike, before, value))
    return isinstance(value, type(before)) or (isinstance(value, _NUMBERS) and isinstance(before, _NUMBERS))


def _check_arguments(block: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Refuse a call whose arguments are not all those of the forward: a trainer binds them by its signature."""
    wanted = [item.name for item in ForwardSignature.of(block.forward).parameters]
    if sorted(arguments) != sorted(wanted):
        raise FormatError(f"the call has the arguments {listed(arguments)}; the forward has {listed(wanted)}")


def called_blocks(model: nn.Module, sources: Container[nn.Module] = ()) -> Iterator[tuple[str, nn.Module]]:
    """The modules that are called by themselves: by the graph, by a stock module, or by one of ``sources``.

    Each needs a program of its own, if it is none of ``sources``. What such a block calls itself is part of its
    program, except inside stock modules, which a program does not enter.
    """
    called: set[nn.Module] = set()
    seen: set[tuple[nn.Module, bool]] = set()  # a shared module may be called at one place and not at another
    pending = [(model, True)]
    while pending:
        module, is_called = pending.pop()
        if (module, is_called) in seen:
            continue
        seen.add((module, is_called))
        transparent = isinstance(module, GraphModel) or is_stock(module)
        if not _has_forward(module):
            below = is_called  # a container such as nn.ModuleList: what it holds is called by its owner
        else:
            below = transparent or module in sources
            called |= {module} if is_called and not transparent else set()
        pending.extend((child, below) for child in module.children())
    yield from ((path, module) for path, module in model.named_modules() if module in called)


def _has_forward(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward or "forward" in module.__dict__


def _calls_inside(
    path: str, block: nn.Module, arguments: Mapping[str, Any], blocks: Mapping[str, nn.Module], *, source: bool
) -> list[Call]:
    """The calls of blocks inside stock modules that come up when ``block`` is called so.

    ``source`` is whether a block may travel as source, which may write to its parameters.
    """
    prefix = f"{path}." if path else ""
    inside = {name: item for name, item in blocks.items() if name.startswith(prefix) and item is not block}
    if not inside:
        return []
    kept = restored_after(block, parameters=source)
    with noted_calls(inside) as calls, kept, torch.random.fork_rng(), torch.no_grad():
        block.eval()
        with suppress(Exception):  # the recording of the call itself will tell
            ForwardSignature.of(block.forward).call(block, arguments)
    return calls


def _runs(block: nn.Module, arguments: Mapping[str, Any]) -> bool:
    """Whether a forward accepts a call that its recording failed for."""
    try:
        with restored_after(block, parameters=True), torch.random.fork_rng(), torch.no_grad():
            ForwardSignature.of(block.forward).call(block, arguments)
    except Exception as error:  # the forward is the operator's code; its refusal is an answer
        if is_out_of_memory(error):
            raise
        return False
    return True


def _examples(path: str, block: nn.Module) -> dict[str, list[dict[str, Any]]]:
    """The examples of a block by method, as bound arguments.

    ``example_inputs()`` gives a list of keyword arguments for the forward, or such a list for each method by its name.
    """
    example_inputs = getattr(block, "example_inputs", None)
    if example_inputs is None or _is_lazy(block):
        return {}
    try:
        given = example_inputs()
        by_method = given if isinstance(given, Mapping) else {FORWARD: given}
        return {
            method: [ForwardSignature.of(getattr(block, method)).bind((), example, method) for example in examples]
            for method, examples in by_method.items()
        }
    except Exception as error:
        raise BuildError(
            f"{path} ({type(block).__name__}).example_inputs() failed: {type(error).__name__}: {error}"
        ) from error


def _method_calls(model: nn.Module) -> list[tuple[str, str, dict[str, Any]]]:
    """Path, method and arguments of each example of a declared method."""
    return [
        (path, method, arguments)
        for path, block in model.named_modules()
        if not is_stock(block) and (declared := declared_methods(block, path))
        for method, examples in _examples(path, block).items()
        if method in declared
        for arguments in examples
    ]


def _is_lazy(block: nn.Module) -> bool:
    return any(nn.parameter.is_lazy(item) for item in [*block.parameters(), *block.buffers()])


def _materialise(block: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Run a block with lazy parameters once, so that they get their shapes."""
    with torch.no_grad():
        ForwardSignature.of(block.forward).call(block, arguments)


@contextmanager
def _naming(path: str, block: nn.Module) -> Iterator[None]:
    """Say in every error which block it is about."""
    try:
        yield
    except (BuildError, CallSignatureError) as error:
        raise _named(path, block, error) from error


_Named = TypeVar("_Named", bound=ModelFactoryError)


def _named(path: str, block: nn.Module, error: _Named) -> _Named:
    where = path.removeprefix(f"{GRAPH_MODULES}.") or "the model"
    return type(error)(f"{where} ({type(block).__name__}): {error}")
