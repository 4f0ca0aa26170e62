"""Records a call from a trainer without a known program for the call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from model_factory.describe.declared_methods import declared_methods
from model_factory.descriptor.codec import Programs
from model_factory.descriptor.stock import is_stock
from model_factory.descriptor.stock_checks import check_stock_module
from model_factory.errors import CallSignatureError, FormatError, GraphExecutionError, NotPortableError
from model_factory.program.arguments.differences import in_kinds_of
from model_factory.program.call_signature import CallSignature, call_signature, rebuild_arguments
from model_factory.program.example_call import ExampleCall, is_integral
from model_factory.program.forward_signature import ForwardSignature
from model_factory.program.recorded_program import FORWARD, Read, RecordedProgram, is_plain
from model_factory.program.runtime.graph_model import GraphModel
from model_factory.program.runtime.lookup import find_module, get_module
from model_factory.wording import listed
from model_factory_server.export.called_blocks import example_calls, is_lazy
from model_factory_server.export.error_texts import naming
from model_factory_server.export.kinds.recorded_kinds import RecordedKinds
from model_factory_server.export.portable_methods import as_forward
from model_factory_server.export.record.annotated_classes import with_annotated_classes
from model_factory_server.export.record.sample_inputs import UnreachedBranchError, repeated

_NUMBERS = (bool, int, float)


def record_call(
    model: nn.Module,
    path: str,
    call: ExampleCall,
    training: Mapping[str, bool],
) -> Programs:
    """Record and verify a method of the block at ``path`` for a call on a trainer.

    The block's own program is the first, or programs, if the method asks for a mode of the caller. Programs of the
    blocks inside follow.

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
        >>> programs = record_call(Double(), "", ExampleCall(arguments={"x": torch.ones(3)}), {"": True})
        >>> [(path, recorded.program.inputs) for path, recorded in programs]
        [('', ('x',))]
    """
    kinds = RecordedKinds(model)
    found = _first_recorded(
        lambda arguments: _record_call(model, path, replace(call, arguments=arguments), training, kinds),
        [call.arguments, *_with_examples(model, path, call)],
    )
    programs: Programs = tuple((path, item) for item in found)
    return (*programs, *_inside(path, kinds.inner_programs(programs)))


def _inside(path: str, programs: Programs) -> Programs:
    """The programs of blocks below ``path``; a shared block with a first path elsewhere is recorded later."""
    below = f"{path}." if path else ""
    return tuple((at, item) for at, item in programs if at.startswith(below))


def _record_call(
    model: nn.Module, path: str, call: ExampleCall, training: Mapping[str, bool], kinds: RecordedKinds
) -> list[RecordedProgram]:
    """Record the programs of the block itself."""
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
        arguments = with_annotated_classes(block.forward, call.arguments)
        _check_arguments(block, arguments)
        if is_lazy(block):
            _materialise(block, arguments)
        _set_flags(block, training)
        _set_attributes(block, call.reads)
        if call.outcomes or len({module.training for module in block.modules()}) > 1:
            found = kinds.record_as_is(block, arguments, call.outcomes)
        else:
            found = [
                item
                for item in kinds.record_with_sizes(block, arguments)
                if all(get_module(block, relative).training == flag for relative, flag in item.training)
            ]
        return [replace(recorded, method=call.method, call_signature=_as_given(recorded, call)) for recorded in found]


def record_programs(model: nn.Module, path: str, call: ExampleCall, training: Mapping[str, bool]) -> Programs:
    """Record and verify every program that a trainer needs for a call; more than one for a call without values.

    A call without values gets a program for each choice of truth values in the arguments, and for each branch of
    decisions by truth values; a program for a choice that the forward refuses is left out.

    Raises:
        NotPortableError: the method cannot be recorded for this call.
        CallSignatureError: the method refuses the call.
        FormatError: the model has no block at ``path``, or the call has an unknown method or other arguments.

    Example:
        >>> from model_factory.program.example_call import decode_call, encode_call_without_values
        >>> class Scale(nn.Module):
        ...     def forward(self, x, twice):
        ...         return 2 * x if twice else x
        >>> call = decode_call(encode_call_without_values({"x": torch.ones(3), "twice": True}))
        >>> [item.call_signature[1][1] for _, item in record_programs(Scale(), "", call, {"": True})]
        [('const', 'bool', False), ('const', 'bool', True)]
    """
    if not call.without_values:
        return record_call(model, path, call, training)
    kinds = RecordedKinds(model)
    found: list[RecordedProgram] = []
    errors: list[CallSignatureError | NotPortableError] = []
    for arguments in (call.arguments, *call.others):
        try:
            found += _record_with_integers(model, path, replace(call, arguments=arguments), training, kinds)
        except (CallSignatureError, NotPortableError) as error:
            errors.append(error)
    if not found:
        raise errors[0]
    programs = tuple((path, item) for index, item in enumerate(found) if item not in found[:index])
    return (*programs, *_inside(path, kinds.inner_programs(programs)))


def _record_with_integers(
    model: nn.Module, path: str, call: ExampleCall, training: Mapping[str, bool], kinds: RecordedKinds
) -> list[RecordedProgram]:
    """Record a call with integers of the block's examples; if that fails, with 0 and 1, with ones, or with zeros.

    Raises:
        NotPortableError: the method cannot be recorded for this call.
        CallSignatureError: the method refuses the call.
    """

    def record(arguments: Mapping[str, Any]) -> list[RecordedProgram]:
        found = _record_call(model, path, replace(call, arguments=arguments), training, kinds)
        block = as_forward(get_module(model, path), call.method)
        others = kinds.other_branches(block, found[0], with_annotated_classes(block.forward, arguments))
        return [*found, *(replace(item, method=call.method, call_signature=_as_given(item, call)) for item in others)]

    return _first_recorded(record, [*_with_examples(model, path, call), *_with_integers(call.arguments)])


def _first_recorded(
    record: Callable[[Mapping[str, Any]], list[RecordedProgram]], tried: Iterable[Mapping[str, Any]]
) -> list[RecordedProgram]:
    """Record with the first arguments that the forward accepts."""
    refusal: CallSignatureError | UnreachedBranchError | None = None
    for arguments in tried:
        try:
            return record(arguments)
        except (CallSignatureError, UnreachedBranchError) as error:  # samples of a call with zeros alone are zeros, too
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _with_examples(model: nn.Module, path: str, call: ExampleCall) -> Iterator[Mapping[str, Any]]:
    """Yield the arguments with integers of the block's examples of equal signature, repeated or cut."""
    block = find_module(model, path)
    signature, leaves = call_signature(call.arguments)
    if block is None or call.outcomes or not any(map(is_integral, leaves)):
        return
    for example in example_calls(path, block).get(call.method, ()):
        like, values = call_signature(example)
        if like == signature:
            pairs = zip(leaves, values, strict=True)
            filled = [repeated(value, leaf.shape) if is_integral(leaf) else leaf for leaf, value in pairs]
            yield rebuild_arguments(signature, filled, call.arguments)


def _as_given(recorded: RecordedProgram, call: ExampleCall) -> CallSignature:
    """Return the signature of a program for the trainer's records, recorded with records of the annotated classes."""
    return in_kinds_of(recorded.call_signature, call_signature(call.arguments)[0])


def _with_integers(arguments: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield arguments, then arguments with all integers 1 and with all integers 0."""
    yield arguments
    signature, leaves = call_signature(arguments)
    if any(map(is_integral, leaves)):
        for value in (1, 0):
            filled = [torch.full_like(leaf, value) if is_integral(leaf) else leaf for leaf in leaves]
            yield rebuild_arguments(signature, filled, arguments)


def _set_flags(block: nn.Module, training: Mapping[str, bool]) -> None:
    """Set training flags; a module without a given flag gets the flag of its owner."""
    modules = dict(block.named_modules(remove_duplicate=False))
    for path, module in modules.items():
        module.training = training.get(path, modules[path.rpartition(".")[0]].training)


def _set_attributes(block: nn.Module, reads: Sequence[Read]) -> None:
    """Set attributes of torch modules to the values on the trainer, as far as torch can be trusted with the values."""
    for path, name, value in reads:
        module = find_module(block, path)
        before = None if module is None else module.__dict__.get(name)
        if module is None or not is_stock(module) or not is_plain(before) or not _is_alike(before, value):
            raise FormatError(
                f"{path}.{name} cannot be set to {value!r}: not an attribute of a torch module, or of another type"
            )
        module.__dict__[name] = value
        check_stock_module(module)


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
