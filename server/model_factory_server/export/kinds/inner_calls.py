"""Example calls of the blocks inside a block, found by a run of the block on its own example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from model_factory.descriptor.codec import Programs
from model_factory.descriptor.stock import is_stock
from model_factory.errors import CallSignatureError
from model_factory.program.call_signature import CallSignature, call_signature, rebuild_arguments
from model_factory.program.forward_signature import ForwardSignature
from model_factory.program.ir import ModuleCall
from model_factory.program.recorded_program import RecordedProgram
from model_factory.program.runtime.lookup import find_module, join_path
from model_factory_server.export.conditions.inner_blocks import InnerCall
from model_factory_server.export.conditions.result_forms import reason_against
from model_factory_server.export.restored_after import generators_seeded, restored_after
from model_factory_server.export.torch_private import recorded_size
from model_factory_server.export.verify.stand_ins import KnownForms, stand_ins
from model_factory_server.export.verify.state_diff import changed, state_of

_SEED = 11


@dataclass(slots=True, kw_only=True)
class ExampleOfBlock:
    """A call of a block inside another block."""

    block: nn.Module
    """The called block."""
    signature: CallSignature
    """Signature of the call."""
    tensors: tuple[torch.Tensor, ...]
    """Tensors of the call, in order."""
    reason: str = ""
    """Reason against a form of the result, if any."""

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Sizes of the tensors, in order."""
        return [tuple(tensor.shape) for tensor in self.tensors]

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments by name."""
        return rebuild_arguments(self.signature, [tensor.clone() for tensor in self.tensors])


class ExampleCalls:
    """Example calls of inner blocks, for the recordings in progress."""

    def __init__(self) -> None:
        # By id of the arguments of a recording, which the entry keeps alive:
        self._found: dict[int, tuple[Mapping[str, Any], list[ExampleOfBlock]]] = {}

    def of(self, block: nn.Module, arguments: Mapping[str, Any]) -> list[ExampleOfBlock]:
        """Return the calls inside a block's call; the block runs at the first request."""
        if id(arguments) not in self._found:
            self._found[id(arguments)] = (arguments, inner_examples(block, arguments))
        return self._found[id(arguments)][1]

    def like(self, block: nn.Module, arguments: Mapping[str, Any], call: InnerCall) -> ExampleOfBlock | None:
        """Return a real call like a call in the recording of a block; None if there is none and none can be made."""
        shapes = list(map(sizes_of, call.tensors))
        for example in self.of(block, arguments):
            if example.block is call.block and example.signature == call.signature and example.shapes == shapes:
                return example
        like = [torch.empty(shape, dtype=tensor.dtype) for shape, tensor in zip(shapes, call.tensors, strict=True)]
        return _made_example(call.block, call.signature, like)

    def share(self, arguments: Mapping[str, Any], example: ExampleOfBlock, of_example: Mapping[str, Any]) -> None:
        """Take what the run found that had the example, for a recording of the example with ``of_example``."""
        _, found = self._found[id(arguments)]
        if any(item is example for item in found):
            self._found[id(of_example)] = (of_example, found)

    def forget(self, arguments: Mapping[str, Any]) -> None:
        """End a recording."""
        self._found.pop(id(arguments), None)


def inner_examples(block: nn.Module, arguments: Mapping[str, Any]) -> list[ExampleOfBlock]:
    """Run a block in its present mode, and return the calls of custom blocks inside; the block is restored.

    Example:
        >>> class Double(nn.Module):
        ...     def forward(self, x):
        ...         return 2 * x
        >>> class Outer(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.inner = Double()
        ...     def forward(self, x):
        ...         return self.inner(x)
        >>> [example.shapes for example in inner_examples(Outer(), {"x": torch.ones(3)})]
        [[(3,)]]
    """
    if all(item is block or is_stock(item) for item in block.modules()):
        return []
    given, leaves = call_signature(arguments)
    own = rebuild_arguments(given, [leaf.detach().clone() for leaf in leaves], arguments)
    with (
        restored_after(block, parameters=True),
        _noted(block) as found,
        generators_seeded(_SEED),
        torch.no_grad(),
        suppress(Exception),
    ):
        ForwardSignature.of(block.forward).call(block, own)  # the recording of the call reports an error
    return found


@contextmanager
def _noted(root: nn.Module) -> Iterator[list[ExampleOfBlock]]:
    found: list[ExampleOfBlock] = []

    open_calls: list[ExampleOfBlock | None] = []  # None: a call that is no new example

    def note(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        open_calls.append(None)
        with suppress(TypeError, CallSignatureError):
            given, leaves = call_signature(ForwardSignature.of(block.forward).bind(args, kwargs))
            tensors = tuple(leaf.detach() for leaf in leaves)
            shapes = [tuple(leaf.shape) for leaf in leaves]
            if not any(item.block is block and item.signature == given and item.shapes == shapes for item in found):
                kept = tuple(tensor.clone() for tensor in tensors)
                example = open_calls[-1] = ExampleOfBlock(block=block, signature=given, tensors=kept)
                found.append(example)

    def note_result(_block: nn.Module, _args: tuple[Any, ...], result: Any) -> None:
        if (example := open_calls.pop()) is not None:
            example.reason = reason_against(result)

    blocks = [item for item in root.modules() if item is not root and not is_stock(item)]
    hooks = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
    hooks += [block.register_forward_hook(note_result, always_call=True) for block in blocks]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def sizes_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """The sizes of a tensor, with the recorded numbers for symbols."""
    return tuple(map(recorded_size, tensor.shape))


def caller_of(model: nn.Module, path: str) -> nn.Module | None:
    """Return the module around the block at a path, beyond containers that call nothing.

    Example:
        >>> model = nn.Sequential(nn.ModuleList([nn.ReLU()]))
        >>> caller_of(model, "0.0") is model
        True
    """
    owner: nn.Module | None = None
    while path and (owner is None or type(owner) in {nn.ModuleList, nn.ModuleDict}):
        path = path.rpartition(".")[0]
        owner = find_module(model, path)
    return owner


def programs_below(
    block: nn.Module, programs: Mapping[nn.Module, list[RecordedProgram]]
) -> dict[nn.Module, list[RecordedProgram]]:
    """Return the programs of the blocks inside a block."""
    inside = set(block.modules()) - {block}
    return {item: found for item, found in programs.items() if found and item in inside}


def called_programs(
    model: nn.Module,
    paths: Mapping[nn.Module, str],
    of_blocks: Mapping[nn.Module, Sequence[RecordedProgram]],
    programs: Programs,
) -> Programs:
    """Return the programs of the inner blocks that ``programs`` call, also through other inner blocks.

    ``paths`` are the paths of the modules of ``model``, ``of_blocks`` the programs of its blocks.
    """
    found: dict[str, Sequence[RecordedProgram]] = {}
    pending = list(programs)
    while pending:
        at, recorded = pending.pop()
        for step in recorded.program.steps:
            block = find_module(model, join_path(at, step.path)) if isinstance(step, ModuleCall) else None
            if block is None or is_stock(block) or (path := paths[block]) in found:
                continue
            found[path] = of_blocks.get(block, [])
            pending += [(path, item) for item in found[path]]
    return tuple((path, item) for path in sorted(found) for item in found[path])


def _made_example(block: nn.Module, signature: CallSignature, like: Sequence[torch.Tensor]) -> ExampleOfBlock | None:
    """Make an example call from dtypes and sizes; None for integers, whose range is unknown."""
    if not all(tensor.is_floating_point() for tensor in like):
        return None
    numbers = torch.Generator(device="cpu").manual_seed(_SEED)
    tensors = tuple(torch.randn(tuple(item.shape), generator=numbers).to(item.dtype) for item in like)
    return ExampleOfBlock(block=block, signature=signature, tensors=tensors)


def changed_state(
    owner: nn.Module,
    block: nn.Module,
    arguments: Mapping[str, Any],
    *,
    attributes: bool = True,
    known: KnownForms | None = None,
) -> str:
    """Return the reason against a block whose call changes Python state of the block or of the owner, if any.

    Without ``attributes``, only entries of containers count. With ``known``, verified inner blocks do not run: their
    calls were found to change nothing.
    """
    inner = [item for item in block.modules() if item is not block]
    with (
        restored_after(owner, parameters=True),
        stand_ins(inner, known),
        torch.random.fork_rng(),
        torch.no_grad(),
        suppress(Exception),
    ):
        state = state_of(owner, attributes=attributes)
        ForwardSignature.of(block.forward).call(block, arguments)
        name = next((name for name, _, _ in changed(state)), "")
        return f"it keeps a value in {name}, and programs keep values in buffers only" if name else ""
    return ""
