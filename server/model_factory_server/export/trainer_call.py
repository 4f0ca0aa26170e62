"""Records a call from a trainer without a known program for the call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from model_factory.descriptor.stock import is_stock
from model_factory.errors import FormatError, GraphExecutionError, NotPortableError
from model_factory.program.example_call import ExampleCall
from model_factory.program.forward_signature import ForwardSignature
from model_factory.program.recorded_program import FORWARD, Read, RecordedProgram, is_plain
from model_factory.program.runtime.graph_model import GraphModel
from model_factory.program.runtime.lookup import find_module, get_module
from model_factory.wording import listed
from model_factory_server.export.called_blocks import is_lazy
from model_factory_server.export.named_errors import naming
from model_factory_server.export.portable_methods import as_forward, declared_methods
from model_factory_server.export.record.recorder import record, record_modes
from model_factory_server.export.verify.verifier import verify

_NUMBERS = (bool, int, float)


def record_call(
    model: nn.Module,
    path: str,
    call: ExampleCall,
    training: Mapping[str, bool],
) -> RecordedProgram:
    """Record and verify a method of the block at ``path`` for a call on a trainer.

    Args:
        model: The model, as built on the server.
        path: Path of the block.
        call: The call.
        training: Training flags on the trainer, by path below the block.

    Raises:
        NotPortableError: the method cannot be recorded for this call.
        CallSignatureError: the method refuses the call.
        FormatError: the model has no block at ``path``, or the call has an unknown method or other arguments.

    Example:
        >>> class Double(nn.Module):
        ...     def forward(self, x):
        ...         return 2 * x
        >>> recorded = record_call(Double(), "", ExampleCall(arguments={"x": torch.ones(3)}), {"": True})
        >>> recorded.program.inputs
        ('x',)
    """
    try:
        block = get_module(model, path)
    except GraphExecutionError as error:
        raise FormatError(str(error)) from None
    if is_stock(block) or isinstance(block, GraphModel):
        raise NotPortableError(
            f"{path} is a {type(block).__name__}, and only custom modules have programs. Remedy: call the module itself"
        )
    if call.method != FORWARD and call.method not in declared_methods(block, path):
        raise FormatError(f"{path} ({type(block).__name__}) declares no method {call.method!r}")
    block = as_forward(block, call.method)
    with naming(path, block):
        arguments = call.arguments
        _check_arguments(block, arguments)
        if is_lazy(block):
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
    """Set training flags; a module without a given flag gets the flag of its owner."""
    modules = dict(block.named_modules(remove_duplicate=False))
    for path, module in modules.items():
        module.training = training.get(path, modules[path.rpartition(".")[0]].training)


def _set_attributes(block: nn.Module, reads: Sequence[Read]) -> None:
    """Set attributes of torch modules to the values on the trainer."""
    for path, name, value in reads:
        module = find_module(block, path)
        before = None if module is None else module.__dict__.get(name)
        if module is None or not is_stock(module) or not is_plain(before) or not _is_alike(before, value):
            raise FormatError(
                f"{path}.{name} cannot be set to {value!r}: not an attribute of a torch module, or of another type"
            )
        module.__dict__[name] = value


def _is_alike(before: Any, value: Any) -> bool:
    """Whether a value may replace another: the same type and length, two numbers, or ``None``."""
    if before is None or value is None:
        return True
    if isinstance(before, tuple | list):
        return type(value) is type(before) and len(value) == len(before) and all(map(_is_alike, before, value))
    return isinstance(value, type(before)) or (isinstance(value, _NUMBERS) and isinstance(before, _NUMBERS))


def _check_arguments(block: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Refuse a call without exactly the arguments of the forward: a trainer binds arguments by the signature."""
    wanted = [item.name for item in ForwardSignature.of(block.forward).parameters]
    if sorted(arguments) != sorted(wanted):
        raise FormatError(f"the call has the arguments {listed(arguments)}; the forward takes {listed(wanted)}")


def _materialise(block: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Run a block once, to give shapes to lazy parameters."""
    with torch.no_grad():
        ForwardSignature.of(block.forward).call(block, arguments)
