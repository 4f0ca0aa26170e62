"""Sizes for the verification of a program, other than the recorded sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from model_factory.program.call_signature import leaf_names, rebuild_arguments
from model_factory.program.expressions import Env, compile_expression, expression_names, shape_key
from model_factory.program.forward_signature import ForwardSignature
from model_factory.program.ir import OWN, Dim, Expr
from model_factory.program.recorded_program import RecordedProgram
from model_factory.program.runtime.interpreter import Runner
from model_factory.program.runtime.lookup import own_shape
from model_factory.program.runtime.step_compiler import BranchMissError
from model_factory_server.export.out_of_memory import is_out_of_memory
from model_factory_server.export.record.sample_inputs import VERIFY_SEED, sample_inputs
from model_factory_server.export.restored_after import generators_seeded, restored_after
from model_factory_server.export.verify.runs import Shapes, run_once


def candidate_shapes(
    module: nn.Module, recorded: RecordedProgram, example: Shapes, accepts: Callable[[Shapes], bool]
) -> Iterator[Shapes]:
    """Yield sizes for a verification; the example's own sizes only if no other sizes are allowed.

    First all free sizes are increased by 1 together, then all free sizes are 1. If ``accepts`` or a guard of the
    program refuses the sizes together, sizes that are refused alone are kept; if the rest is refused together, each
    group of equal sizes is changed alone.
    """
    names = leaf_names(recorded.call_signature)
    sizes = {
        Dim(name, axis): size for name, shape in zip(names, example, strict=True) for axis, size in enumerate(shape)
    }
    guards = [compile_expression(guard) for guard in recorded.size_conditions]
    named = {name for guard in recorded.size_conditions for name in expression_names(guard) if name.startswith(OWN)}
    own: Env = {shape_key(name): own_shape(module, name) for name in named}

    def changed(groups: Sequence[list[Dim]], change: Callable[[int], int]) -> Shapes:
        chosen = sizes | {dim: change(sizes[dim]) for group in groups for dim in group}
        return [
            [chosen[Dim(name, axis)] for axis in range(len(shape))] for name, shape in zip(names, example, strict=True)
        ]

    def allowed(shapes: Shapes) -> bool:
        env = own | {shape_key(name): shape for name, shape in zip(names, shapes, strict=True)}
        return all(guard(env) for guard in guards) and accepts(shapes)

    free = _free_groups(recorded, sizes)
    if not allowed(changed(free, _larger)):
        free = [group for group in free if allowed(changed([group], _larger))]
    if not free:
        yield example
    for change in (_larger, _one):
        together = changed(free, change)
        if allowed(together):
            yield together
        else:
            yield from (shapes for group in free if allowed(shapes := changed([group], change)))


def acceptance_of(
    module: nn.Module, recorded: RecordedProgram, examples: Sequence[torch.Tensor], arguments: Mapping[str, Any]
) -> Callable[[Shapes], bool]:
    """Return a function of sizes: whether the forward accepts the sizes.

    The function runs the forward on sample inputs, which takes less time than a run on the meta device. With decisions
    by values, the function runs the program instead; a program stops at a decision for another branch.
    """
    signature = ForwardSignature.of(module.forward)

    def call(leaves: list[torch.Tensor]) -> Any:
        return signature.call(module, rebuild_arguments(recorded.call_signature, leaves, arguments))

    forward = partial(Runner(recorded.program).run, module) if recorded.program.outcomes() else call

    def accepts(shapes: Shapes) -> bool:
        leaves = next(sample_inputs(examples, shapes), [])
        try:
            with generators_seeded(VERIFY_SEED), restored_after(module), torch.no_grad():
                forward(leaves)
        except BranchMissError:
            return True
        except Exception as error:  # the operator's code may raise any error
            if is_out_of_memory(error):
                raise
            return False
        return True

    def accepts_with_gradients(shapes: Shapes) -> bool:
        run = run_once(forward, module, next(sample_inputs(examples, shapes), []))
        return not isinstance(run, Exception) or isinstance(run, BranchMissError)

    return accepts if accepts([list(example.shape) for example in examples]) else accepts_with_gradients


def _larger(size: int) -> int:
    return size + 1


def _one(_size: int) -> int:
    return 1


def _free_groups(recorded: RecordedProgram, sizes: Mapping[Dim, int]) -> list[list[Dim]]:
    """Input dimensions that may change, in groups of equal sizes."""
    group_of: dict[Dim, list[Dim]] = {dim: [dim] for dim in sizes}
    fixed = {dim for dim, size in sizes.items() if size == 0}  # another size has another call signature
    for guard in recorded.size_conditions:
        if not isinstance(guard, Expr) or guard.op != "eq":
            continue
        dims = [arg for arg in guard.args if isinstance(arg, Dim) and not arg.name.startswith(OWN)]
        if len(dims) == 2 and group_of[dims[0]] is not group_of[dims[1]]:
            merged = group_of[dims[0]] + group_of[dims[1]]
            group_of.update(dict.fromkeys(merged, merged))
        elif len(dims) == 1:
            fixed.add(dims[0])
    groups = {id(group): group for group in group_of.values()}
    return [group for group in groups.values() if not fixed.intersection(group)]
