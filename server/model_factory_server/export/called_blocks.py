"""Blocks of a model with a program of their own, and example calls of these blocks."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from model_factory.describe.declared_methods import declared_methods
from model_factory.descriptor.stock import is_stock
from model_factory.errors import BuildError
from model_factory.program.forward_signature import ForwardSignature
from model_factory.program.recorded_program import FORWARD
from model_factory.program.runtime.graph_model import GraphModel
from model_factory_server.export.example_inputs import Call, noted_calls
from model_factory_server.export.restored_after import restored_after


def called_blocks(model: nn.Module, sources: Container[nn.Module] = ()) -> Iterator[tuple[str, nn.Module]]:
    """Yield path and module of each block called by the trainer, a graph, a torch module or a module of ``sources``.

    Each of these blocks needs a program, unless the block is in ``sources``. A module called by a block is part of the
    block's program, except inside torch modules, since a program calls a torch module as a whole.

    Example:
        >>> class Double(nn.Module):
        ...     def forward(self, x):
        ...         return 2 * x
        >>> [path for path, _ in called_blocks(nn.Sequential(nn.ReLU(), Double()))]
        ['1']
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
            below = is_called  # a container such as nn.ModuleList: the owner calls its modules
        else:
            below = transparent or module in sources
            called |= {module} if is_called and not transparent else set()
        pending.extend((child, below) for child in module.children())
    yield from ((path, module) for path, module in model.named_modules() if module in called)


def _has_forward(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward or "forward" in module.__dict__


def calls_inside(
    path: str, block: nn.Module, arguments: Mapping[str, Any], blocks: Mapping[str, nn.Module], *, source: bool
) -> list[Call]:
    """Run ``block`` and return the calls of blocks inside torch modules below the block.

    ``source`` is whether a block may be sent as source code; source code may write to parameters.
    """
    prefix = f"{path}." if path else ""
    inside = {name: item for name, item in blocks.items() if name.startswith(prefix) and item is not block}
    if not inside:
        return []
    restored = restored_after(block, parameters=source)
    with noted_calls(inside) as calls, restored, torch.random.fork_rng(), torch.no_grad():
        block.eval()
        with suppress(Exception):  # the recording of the call reports the error
            ForwardSignature.of(block.forward).call(block, arguments)
    return calls


def example_calls(path: str, block: nn.Module) -> dict[str, list[dict[str, Any]]]:
    """The example calls of a block by method, as bound arguments; empty for a lazy block.

    ``example_inputs()`` returns a list of keyword arguments for the forward, or a dict of these lists by method.

    Raises:
        BuildError: ``example_inputs()`` fails, or an example does not fit the signature.
    """
    example_inputs = getattr(block, "example_inputs", None)
    if example_inputs is None or is_lazy(block):
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
            f"{path or 'the model'} ({type(block).__name__}).example_inputs() failed: {type(error).__name__}: {error}"
        ) from error


def method_calls(model: nn.Module) -> list[tuple[str, str, dict[str, Any]]]:
    """Path, method and arguments of each example call of a declared method."""
    return [
        (path, method, arguments)
        for path, block in model.named_modules()
        if not is_stock(block) and (declared := declared_methods(block, path))
        for method, examples in example_calls(path, block).items()
        if method in declared
        for arguments in examples
    ]


def is_lazy(block: nn.Module) -> bool:
    """Whether a block has parameters or buffers without a shape.

    Example:
        >>> is_lazy(nn.LazyLinear(2)), is_lazy(nn.Linear(2, 2))
        (True, False)
    """
    return any(nn.parameter.is_lazy(item) for item in [*block.parameters(), *block.buffers()])
