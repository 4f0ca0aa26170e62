"""From a built model to what travels: its descriptor and the programs of its blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from model_factory.config import ModelConfig
from model_factory.descriptor.codec import Programs
from model_factory.descriptor.describe import describe, named_tensors
from model_factory.descriptor.stock import is_stock
from model_factory.errors import BuildError, CallFormError, FormatError, GraphExecutionError, NotPortableError
from model_factory.graph.call_example import ExampleCall
from model_factory.graph.call_form import Recorded
from model_factory.graph.modules import GRAPH_MODULES, GraphModel
from model_factory.graph.runner import get_module
from model_factory.graph.signature import Signature
from model_factory_server.recording.examples import Call, calls_of_blocks, noted_calls
from model_factory_server.recording.prover import prove
from model_factory_server.recording.recorder import record, record_modes, training_flags
from model_factory_server.recording.untouched import untouched


def record_model(model: nn.Module, config: ModelConfig | None = None) -> Programs:
    """Record and prove every block that the trainer calls.

    It is recorded for the calls of its own ``example_inputs()``, for those that come up when a block around it runs on
    its own, and for those that come up when the model runs on the ``signature`` of its config.

    Raises:
        NotPortableError: a block's forward cannot be written down; the message names the block.
        ConfigError: the model does not run on the config's examples.
    """
    named_tensors(model, describe(model))  # what cannot travel is refused before anything is recorded
    programs: list[tuple[str, Recorded]] = []
    blocks = dict(called_blocks(model))
    calls = [
        call
        for path, block in blocks.items()
        for arguments in _example_calls(path, block)
        for call in [(path, arguments), *_calls_inside(path, block, arguments, blocks)]
    ]
    calls += [] if config is None else calls_of_blocks(model, blocks, config)
    for path, arguments in calls:
        block = blocks[path]
        with _naming(path, block):
            for recorded in record_modes(block, arguments):
                if (path, recorded) not in programs:
                    prove(block, recorded, arguments)
                    programs.append((path, recorded))
    return tuple(programs)


def record_call(model: nn.Module, path: str, call: ExampleCall, training: Mapping[str, bool]) -> Recorded:
    """Record and prove one block for one call that came up on a trainer.

    Raises:
        NotPortableError: its forward cannot be written down for this call.
        CallFormError: its forward refuses the call.
        FormatError: the model has no such block.
    """
    try:
        block = get_module(model, path)
    except GraphExecutionError as error:
        raise FormatError(str(error)) from None
    if is_stock(block) or isinstance(block, GraphModel):
        raise NotPortableError(f"{path} is a {type(block).__name__}, which needs no program")
    with _naming(path, block):
        arguments = call.arguments
        if _is_lazy(block):
            _materialise(block, arguments)
        for relative, module in block.named_modules():
            module.training = training.get(relative, module.training)
        if call.outcomes or len({flag for _, flag in training_flags(block)}) > 1:
            recorded = record(block, arguments, call.outcomes)
        else:
            recorded = next(
                item
                for item in record_modes(block, arguments)
                if all(get_module(block, relative).training == flag for relative, flag in item.training)
            )
        prove(block, recorded, arguments)
        return recorded


def called_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that need a program of their own: those called by the graph or by a stock module.

    What such a block calls itself is part of its program, except inside stock modules, which a program does not enter.
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
            below = transparent
            called |= {module} if is_called and not transparent else set()
        pending.extend((child, below) for child in module.children())
    yield from ((path, module) for path, module in model.named_modules() if module in called)


def _has_forward(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward or "forward" in module.__dict__


def _calls_inside(
    path: str, block: nn.Module, arguments: Mapping[str, Any], blocks: Mapping[str, nn.Module]
) -> list[Call]:
    """The calls of blocks inside stock modules that come up when ``block`` is called so."""
    prefix = f"{path}." if path else ""
    inside = {name: item for name, item in blocks.items() if name.startswith(prefix) and item is not block}
    if not inside:
        return []
    args, kwargs = Signature.of(block.forward).call(dict(arguments))
    with noted_calls(inside) as calls, untouched(block), torch.random.fork_rng(), torch.no_grad():
        block.eval()
        with suppress(Exception):  # the recording of the call itself will tell
            block(*args, **kwargs)
    return calls


def _example_calls(path: str, block: nn.Module) -> list[dict[str, Any]]:
    example_inputs = getattr(block, "example_inputs", None)
    if example_inputs is None or _is_lazy(block):
        return []
    try:
        signature = Signature.of(block.forward)
        return [signature.bind((), example) for example in example_inputs()]
    except Exception as error:
        raise BuildError(
            f"{path} ({type(block).__name__}).example_inputs() failed: {type(error).__name__}: {error}"
        ) from error


def _is_lazy(block: nn.Module) -> bool:
    return any(nn.parameter.is_lazy(item) for item in [*block.parameters(), *block.buffers()])


def _materialise(block: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Run a block with lazy parameters once, so that they get their shapes."""
    args, kwargs = Signature.of(block.forward).call(dict(arguments))
    with torch.no_grad():
        block(*args, **kwargs)


@contextmanager
def _naming(path: str, block: nn.Module) -> Iterator[None]:
    """Say in every error which block it is about."""
    try:
        yield
    except (BuildError, CallFormError) as error:
        where = path.removeprefix(f"{GRAPH_MODULES}.") or "the model"
        raise type(error)(f"{where} ({type(block).__name__}): {error}") from error
