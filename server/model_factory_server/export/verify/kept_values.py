"""Values that one call keeps for another: allowed if they are caches, which change no later call."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from model_factory.describe.declared_methods import declared_methods
from model_factory.descriptor.stock import is_stock
from model_factory.errors import NotPortableError
from model_factory.program.call_signature import call_signature, rebuild_arguments
from model_factory.program.forward_signature import ForwardSignature
from model_factory.program.runtime.lookup import get_module
from model_factory_server.export.portable_methods import as_forward
from model_factory_server.export.record.sample_inputs import VERIFY_SEED, sample_inputs
from model_factory_server.export.restored_after import seed_torch, written_parameters
from model_factory_server.export.trace.results import portable_output
from model_factory_server.export.verify.runs import Call, compare_runs, run_once

MethodCall: TypeAlias = tuple[str, str, Mapping[str, Any]]
"""Path of a block, name of a method, and arguments of an example call."""


def are_caches(model: nn.Module, calls: Sequence[MethodCall]) -> bool:
    """Whether no example call changes the results of another, or of itself, by what it keeps on the modules.

    Each pair of calls runs in each combination of modes, the first call on other values, with and without gradients.
    Buffers and parameters get their values back between the two calls, since a program keeps these, too. A model with a
    declared method without an example has no caches: nobody knows what such a method reads.

    Example:
        >>> class Table(nn.Module):
        ...     def forward(self, x):
        ...         if getattr(self, "table", None) is None or len(self.table) != len(x):
        ...             self.table = torch.arange(len(x)).float()
        ...         return x * self.table
        >>> are_caches(Table(), [("", "forward", {"x": torch.ones(3)})])
        True
    """
    known = {(path, method) for path, method, _ in calls}
    for path, block in model.named_modules():
        if not is_stock(block) and any((path, name) not in known for name in declared_methods(block, path)):
            return False
    runs = list(itertools.product(calls, (True, False)))
    return all(
        _is_unchanged(model, first, second, keeps_graph)
        for first, second in itertools.product(runs, runs)
        for keeps_graph in (True, False)
    )


def _is_unchanged(
    model: nn.Module, first: tuple[MethodCall, bool], second: tuple[MethodCall, bool], keeps_graph: bool
) -> bool:
    """Whether the second call, in its mode, has the same results after the first call and alone."""
    before, leaves_before = _call(model, *first)
    call, leaves = _call(model, *second)
    saved = [*model.buffers(), *written_parameters(model).values()]

    def both(given: list[torch.Tensor]) -> Any:
        values = [(item, item.detach().clone()) for item in saved]
        with torch.set_grad_enabled(keeps_graph):
            before(next(sample_inputs(leaves_before, [list(leaf.shape) for leaf in leaves_before], VERIFY_SEED + 1)))
        with torch.no_grad():
            for item, value in values:
                item.copy_(value)
        seed_torch(VERIFY_SEED)
        return call(given)

    try:
        compare_runs(
            run_once(call, model, leaves), run_once(both, model, leaves), [list(leaf.shape) for leaf in leaves]
        )
    except NotPortableError:
        return False
    return True


def _call(model: nn.Module, call: MethodCall, mode: bool) -> tuple[Call, list[torch.Tensor]]:
    path, method, arguments = call
    block = as_forward(get_module(model, path), method)
    signature, leaves = call_signature(arguments)

    def run(given: list[torch.Tensor]) -> Any:
        model.train(mode)  # an own train() may return nothing
        return portable_output(
            ForwardSignature.of(block.forward).call(block, rebuild_arguments(signature, given, arguments))
        )

    return run, leaves
