"""Replaced forwards of inner blocks in the verification of a caller: stand-ins, or the programs of the blocks.

The inside of an inner block with a program of its own is verified once for its kind. A caller's verification needs
results of the right form only, which follow from the arguments. So the time of a caller's verification does not depend
on the size of the inner blocks. At last the programs of all blocks run together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn

from model_factory.descriptor.stock import is_stock
from model_factory.errors import CallSignatureError
from model_factory.program.call_signature import CallSignature, call_signature
from model_factory.program.forward_signature import ForwardSignature
from model_factory.program.ir import AttributeRead, ModuleCall, Program
from model_factory.program.recorded_program import FORWARD, RecordedProgram
from model_factory.program.runtime.compiled_program import Call, CompiledProgram
from model_factory.program.runtime.lookup import find_module
from model_factory_server.export.conditions.result_forms import Form, ResultForm, TensorForm, fake_tensor

Forward: TypeAlias = Callable[..., Any]
CompiledBlocks: TypeAlias = Mapping[nn.Module, Sequence[CompiledProgram]]
"""Compiled programs of blocks."""


class KnownForms(Protocol):
    """What is known of the results of inner blocks."""

    def form_of(self, block: nn.Module, signature: CallSignature, tensors: Sequence[torch.Tensor]) -> ResultForm | None:
        """Return the form of a call's result, if a program of the block is verified for the call."""
        ...


@contextmanager
def forwards_replaced(blocks: Iterable[nn.Module], replacement: Callable[[nn.Module], Forward]) -> Iterator[None]:
    """Replace the forwards of custom blocks by ``replacement(block)``.

    Example:
        >>> block = type("Double", (nn.Module,), {"forward": lambda self, x: 2 * x})()
        >>> with forwards_replaced([block], lambda block: lambda x: 3 * x):
        ...     block(1)
        3
    """
    replaced = dict.fromkeys(item for item in blocks if not is_stock(item) and "forward" not in vars(item))
    for block in replaced:
        block.forward = replacement(block)
    try:
        yield
    finally:
        for block in replaced:
            del block.forward


def stand_ins(blocks: Iterable[nn.Module], forms: KnownForms | None) -> AbstractContextManager[None]:
    """Put stand-ins in the place of the forwards of custom blocks; without ``forms``, replace nothing.

    A call without a known form, or with another result than floating tensors, still runs the block's own forward.

    Example:
        >>> with stand_ins([nn.Linear(1, 1)], None):
        ...     pass
    """
    if forms is None:
        return nullcontext()
    return forwards_replaced(blocks, lambda block: partial(_stand_in_result, block, block.forward, forms))


def compiled_blocks(programs: Mapping[nn.Module, Sequence[RecordedProgram]]) -> CompiledBlocks:
    """Compile the programs of blocks, except blocks that decide by values."""
    return {
        block: [CompiledProgram(item) for item in found]
        for block, found in programs.items()
        if not any(item.program.outcomes() for item in found)
    }


def programs_run(compiled: CompiledBlocks) -> AbstractContextManager[None]:
    """Run programs in the place of the forwards of blocks; a call without a program still runs the forward."""
    return forwards_replaced(compiled, lambda block: _by_programs(block, compiled[block]))


def _by_programs(block: nn.Module, compiled: Sequence[CompiledProgram]) -> Forward:
    forward = block.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        arguments = ForwardSignature.of(forward).bind(args, kwargs)
        call = Call(FORWARD, *call_signature(arguments), dict(arguments))
        chosen = next((item for item in compiled if item.accepts(block, call)), None)
        tensors = None if chosen is None else chosen.tensors_of(call)
        return forward(*args, **kwargs) if chosen is None or tensors is None else chosen.runner.run(block, tensors)

    return run


@contextmanager
def shallow_stacks(module: nn.Module, recorded: RecordedProgram, replaced: Sequence[nn.Module]) -> Iterator[None]:
    """Cut stacks of layers, if the program calls the stack as a whole, to one layer; not inside replaced blocks.

    The inside of torch's own modules needs no verification, and would take minutes for a large model.
    """
    inside = {item for block in replaced for item in block.modules()}
    calls = [step.path for step in recorded.program.steps if isinstance(step, ModuleCall)]
    stacks = [
        item
        for path, item in module.named_modules()
        if isinstance(item, nn.TransformerEncoder | nn.TransformerDecoder)
        and item not in inside
        and not any(call.startswith(f"{path}.") for call in calls)
    ]
    layers = [stack.layers for stack in stacks]
    try:
        for stack in stacks:
            stack.layers = stack.layers[:1]
        yield
    finally:
        for stack, full in zip(stacks, layers, strict=True):
            stack.layers = full


def replaceable(module: nn.Module, program: Program) -> list[nn.Module]:
    """The custom blocks that a program calls, without blocks with tensors that the program reads after a call."""
    read = [step.path for step in program.steps if isinstance(step, AttributeRead)]
    called = {step.path for step in program.steps if isinstance(step, ModuleCall)}
    paths = [path for path in called if not any(name.startswith(f"{path}.") for name in read)]
    blocks = (find_module(module, path) for path in paths)
    return [item for item in blocks if item is not None and not is_stock(item)]


def _stand_in_result(block: nn.Module, forward: Forward, forms: KnownForms, /, *args: Any, **kwargs: Any) -> Any:
    """A result that depends on every element of the arguments, on a parameter, and on a random number.

    The numbers are between 0 and 1, where most functions of torch are defined: a caller with NaN shows no difference.
    """
    try:
        signature, tensors = call_signature(ForwardSignature.of(forward).bind(args, kwargs))
    except (TypeError, CallSignatureError):
        return forward(*args, **kwargs)
    form = forms.form_of(block, signature, tensors)
    if form is None or not all(item is None or item.dtype.is_floating_point for item in _leaves(form.form)):
        return forward(*args, **kwargs)
    smallest = min((item for item in block.parameters() if item.requires_grad), key=torch.Tensor.numel, default=None)
    parameter = [] if smallest is None else [smallest.flatten()[:1]]
    scale = torch.sigmoid(torch.rand(()) + sum(map(_summary, [*tensors, *parameter], range(1, len(tensors) + 2))))

    def make(tensor: TensorForm, sizes: list[int]) -> torch.Tensor:
        result = fake_tensor(tensor, sizes)
        generator = torch.Generator(result.device).manual_seed(result.numel())
        return result.copy_(torch.rand(sizes, generator=generator, device=result.device) * scale)

    return form.sized([item.shape for item in tensors], make)


def _leaves(form: Form) -> Iterator[TensorForm | None]:
    if isinstance(form, dict):
        form = tuple(form.values())
    if isinstance(form, Iterable):
        for item in form:
            yield from _leaves(item)
    else:
        yield form


def _summary(tensor: torch.Tensor, place: int) -> torch.Tensor:
    """A number that also depends on the order of the elements, and on the place of the argument."""
    flat = torch.view_as_real(tensor).flatten() if tensor.is_complex() else tensor.flatten()
    weights = torch.arange(flat.numel(), device=flat.device, dtype=torch.float64).add_(place).cos_()
    return (flat.double() * weights).sum() / max(1, flat.numel())
