"""Verifies a recorded program: replays the program against the original forward on random inputs of other sizes.

Outputs, gradients of parameters and inputs, buffers after the call, and random numbers must agree: bit for bit on the
CPU, within float tolerance on other devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from model_factory.describe.assignments import attributes_restored_after
from model_factory.errors import CallSignatureError, NotPortableError, refused_call
from model_factory.program.call_signature import call_signature, leaf_names, match_call_signature, rebuild_arguments
from model_factory.program.forward_signature import ForwardSignature
from model_factory.program.ir import ModuleCall
from model_factory.program.recorded_program import FORWARD, RecordedProgram
from model_factory.program.runtime.caller_modes import REQUIRES_GRAD, modes_entered
from model_factory.program.runtime.compiled_program import Call as ProgramCall
from model_factory.program.runtime.compiled_program import CompiledProgram
from model_factory.program.runtime.interpreter import Runner
from model_factory.program.runtime.lookup import get_module
from model_factory.program.runtime.step_compiler import BranchMissError
from model_factory_server.export.record.caller_modes import is_only_elsewhere
from model_factory_server.export.record.sample_inputs import (
    REFUSED_CALL,
    VERIFY_SEED,
    sample_inputs,
    unreached_branch,
)
from model_factory_server.export.restored_after import restored_after
from model_factory_server.export.trace.results import portable_output
from model_factory_server.export.verify.candidate_sizes import acceptance_of, candidate_shapes
from model_factory_server.export.verify.runs import Call, Run, Shapes, compare_runs, run_once
from model_factory_server.export.verify.stand_ins import KnownForms, programs_run, replaceable, stand_ins
from model_factory_server.export.verify.state_diff import changed, contents_of, state_of


def verify(
    module: nn.Module, recorded: RecordedProgram, arguments: Mapping[str, Any], known: KnownForms | None = None
) -> None:
    """Compare ``recorded`` with the forward of ``module``, at sizes allowed by the guards.

    With ``known``, stand-ins take the place of verified inner blocks. If original and program then differ, for example
    because the caller refuses the values of a stand-in, they are compared with the inner blocks.

    Training flags and buffers are restored. A program for a GPU alone equals another that is verified.

    Raises:
        NotPortableError: the program differs from the forward, or could not be run.
        CallSignatureError: the forward refuses ``arguments``.

    Example:
        >>> from model_factory_server.export.record.recorder import record
        >>> class Double(nn.Module):
        ...     def forward(self, x):
        ...         return 2 * x
        >>> arguments = {"x": torch.ones(3)}
        >>> verify(Double(), record(Double(), arguments), arguments)
    """
    if is_only_elsewhere(recorded):
        return
    with attributes_restored_after(module):
        if not _is_verified_with_stand_ins(module, recorded, arguments, known):
            _verify_modes(module, recorded, arguments)


def _is_verified_with_stand_ins(
    module: nn.Module, recorded: RecordedProgram, arguments: Mapping[str, Any], known: KnownForms | None
) -> bool:
    replaced = replaceable(module, recorded.program)
    if known is None or not replaced or recorded.program.outcomes():  # decisions depend on values
        return False
    with stand_ins(replaced, known), suppress(NotPortableError, CallSignatureError):
        _verify_modes(module, recorded, arguments, replaced)
        return True
    return False


def verify_together(
    module: nn.Module,
    recorded: RecordedProgram,
    arguments: Mapping[str, Any],
    programs: Mapping[nn.Module, Sequence[RecordedProgram]],
) -> None:
    """Compare a call of ``module`` with its program, where inner blocks run their ``programs``.

    A verification with stand-ins does not see state that a caller shares with an inner block, for example a number in
    an object of both.

    Raises:
        NotPortableError: the programs together differ from the forward.
    """
    if recorded.program.outcomes() or is_only_elsewhere(recorded):
        return
    original, replay = (torch.no_grad()(call) for call in _calls(module, recorded, arguments))
    examples = _examples(recorded, arguments)
    with attributes_restored_after(module):
        module.train()
        for path, flag in recorded.training:
            get_module(module, path).training = flag
        expected = run_once(original, module, examples)
        with programs_run(programs):
            actual = run_once(replay, module, examples)
        compare_runs(expected, actual, [list(leaf.shape) for leaf in examples])


def reproduces(
    module: nn.Module,
    programs: Sequence[RecordedProgram],
    arguments: Mapping[str, Any],
    known: KnownForms | None = None,
) -> bool:
    """Whether the programs of another module of the same kind do as ``module`` does, in one run on ``arguments``.

    With ``known``, stand-ins take the place of verified inner blocks; these have to be compared on their own.

    Example:
        >>> from model_factory_server.export.record.recorder import record
        >>> class Scale(nn.Module):
        ...     def __init__(self, factor):
        ...         super().__init__()
        ...         self.factor = factor
        ...     def forward(self, x):
        ...         return self.factor * x
        >>> arguments = {"x": torch.ones(3)}
        >>> programs = [record(Scale(2), arguments)]
        >>> reproduces(Scale(2), programs, arguments), reproduces(Scale(3), programs, arguments)
        (True, False)
    """
    given, leaves = call_signature(arguments)
    call = ProgramCall(FORWARD, given, leaves, dict(arguments))
    for recorded in programs:
        if not CompiledProgram(recorded).accepts(module, call):
            continue
        original, replay = _calls(module, recorded, arguments)
        examples = _examples(recorded, arguments)
        for forms in (known, None) if known is not None and not recorded.program.outcomes() else (None,):
            with stand_ins(replaceable(module, recorded.program), forms), suppress(NotPortableError):
                agreed = _agree(original, replay, module, examples, VERIFY_SEED, iter([examples]))
                if agreed or (agreed is not None and forms is None):
                    return agreed
    return False


def _calls(module: nn.Module, recorded: RecordedProgram, arguments: Mapping[str, Any]) -> tuple[Call, Call]:
    """The original forward and the program, as functions of the program's tensors."""
    signature, runner = ForwardSignature.of(module.forward), Runner(recorded.program)

    frozen = {f"{REQUIRES_GRAD}{name}": index for index, name in enumerate(leaf_names(recorded.call_signature))}

    def with_gradients(leaves: list[torch.Tensor]) -> list[torch.Tensor]:
        detached = {frozen[name] for name, value in recorded.modes if name in frozen and value is False}
        return [leaf.detach() if index in detached else leaf for index, leaf in enumerate(leaves)]

    def original(leaves: list[torch.Tensor]) -> Any:
        leaves = with_gradients(leaves)
        given = rebuild_arguments(recorded.call_signature, leaves, arguments)
        with modes_entered(recorded.modes):
            return portable_output(signature.call(module, given))

    def replay(leaves: list[torch.Tensor]) -> Any:
        with modes_entered(recorded.modes):
            return runner.run(module, with_gradients(leaves))

    return original, replay


@contextmanager
def _shallow_stacks(module: nn.Module, recorded: RecordedProgram, replaced: Sequence[nn.Module]) -> Iterator[None]:
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


def _verify_modes(
    module: nn.Module,
    recorded: RecordedProgram,
    arguments: Mapping[str, Any],
    replaced: Sequence[nn.Module] = (),
) -> None:
    with _shallow_stacks(module, recorded, replaced):
        _verify_both(module, recorded, arguments)


def _verify_both(module: nn.Module, recorded: RecordedProgram, arguments: Mapping[str, Any]) -> None:
    examples = _examples(recorded, arguments)
    module.eval()
    for path, flag in recorded.training:
        get_module(module, path).training = flag
    example_shapes = [list(leaf.shape) for leaf in examples]
    # Found once for both modes: sizes that a mode refuses are refused by original and program.
    candidates = list(
        candidate_shapes(module, recorded, example_shapes, acceptance_of(module, recorded, examples, arguments))
    )
    if recorded.training:
        _verify_mode(module, recorded, examples, candidates, [], arguments)
        return
    larger, ones = candidates[0::2], candidates[1::2]
    if recorded.program.outcomes():
        larger, ones = candidates, []
    # One program for both modes: each mode has half of the sizes. Many layers refuse sizes of 1 in train mode.
    for mode, sizes, other_sizes in ((False, ones, larger), (True, larger, ones)):
        module.train(mode)  # an own train() may return nothing
        _verify_mode(module, recorded, examples, sizes, other_sizes, arguments)


def _examples(recorded: RecordedProgram, arguments: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors of a call, as inputs of the program."""
    given, leaves = call_signature(arguments)
    positions = match_call_signature(recorded.call_signature, given)
    assert positions is not None
    return [leaves[index] for index in positions]


def _verify_mode(
    module: nn.Module,
    recorded: RecordedProgram,
    examples: Sequence[torch.Tensor],
    sizes: Sequence[Shapes],
    other_sizes: Sequence[Shapes],
    arguments: Mapping[str, Any],
) -> None:
    """Verify at ``sizes``; at ``other_sizes`` only if all of ``sizes`` are refused."""
    original, replay = _calls(module, recorded, arguments)
    example_shapes = [list(leaf.shape) for leaf in examples]
    decides = bool(recorded.program.outcomes())
    candidates = [*sizes, *other_sizes, *([example_shapes] if decides else [])]
    verified = 0
    for index, shapes in enumerate(candidates):
        if verified and not decides and index >= len(sizes):
            break
        for seed, leaves in enumerate(_inputs(examples, shapes, decides), VERIFY_SEED):
            of_others = example_shapes if shapes != example_shapes else candidates[0]
            others = sample_inputs(examples, of_others, VERIFY_SEED + 1)
            agreed = _agree(original, replay, module, leaves, seed, others)
            if agreed is not None:
                verified += agreed
                break
    if not verified:
        if decides:
            raise unreached_branch()
        # The forward may refuse all values except values like the call's own, for example probabilities.
        if not _agree(original, replay, module, examples, VERIFY_SEED, iter([examples])):
            refusal = run_once(original, module, examples, VERIFY_SEED)
            assert isinstance(refusal, Exception)
            raise refused_call(f"{REFUSED_CALL}: {type(refusal).__name__}: {refusal}", refusal) from refusal


def _inputs(examples: Sequence[torch.Tensor], shapes: Shapes, decides: bool) -> Iterator[list[torch.Tensor]]:
    """Inputs to verify with; if values decide, several, until some take the program's branch."""
    if decides and shapes == [list(leaf.shape) for leaf in examples]:
        yield list(examples)
    yield from sample_inputs(examples, shapes)


def _agree(
    original: Call,
    replay: Call,
    module: nn.Module,
    leaves: Sequence[torch.Tensor],
    seed: int,
    others: Iterator[Sequence[torch.Tensor]],
) -> bool | None:
    """Compare original and program; False if both fail, ``None`` if the values lead to another branch.

    If the call changes an attribute, a second call must agree as well, also with the first of ``others`` (other sizes).

    Raises:
        NotPortableError: original and program differ.
    """
    actual = run_once(replay, module, leaves, seed)
    if isinstance(actual, BranchMissError):
        return None
    expected = run_once(original, module, leaves, seed)
    if isinstance(expected, Exception):  # the forward may refuse inputs with gradients
        without = run_once(original, module, leaves, seed, with_input_gradients=False)
        if isinstance(without, Run):
            expected, actual = without, run_once(replay, module, leaves, seed, with_input_gradients=False)
    alike = compare_runs(expected, actual, [list(leaf.shape) for leaf in leaves])
    if isinstance(expected, Run) and expected.changed_attribute:
        _check_new_weights(expected.changed_attribute, original, replay, module, leaves)
        flipped = [leaf.flip(0) if leaf.dim() else leaf for leaf in leaves]
        for second, of_other_sizes in ((flipped, False), (next(others, leaves), True)):
            counted: list[str] = []
            twice = run_once(_twice(original, module, counted, second), module, leaves, seed)
            replayed = run_once(_twice(replay, module, [], second), module, leaves, seed)
            if isinstance(replayed, BranchMissError) or (of_other_sizes and isinstance(twice, Exception)):
                continue  # a changed attribute may fit only calls of the same sizes
            if isinstance(twice, Run) and _is_cache_until_train(original, module, leaves):
                # Gradients of two calls meet inside the cache; without gradients, the cache has no effect.
                twice = run_once(torch.no_grad()(_twice(original, module, counted, second)), module, leaves, seed)
                replayed = run_once(torch.no_grad()(_twice(replay, module, [], second)), module, leaves, seed)
            counts = bool(counted) and not of_other_sizes  # a number that changes with the size is not a counter
            _compare_second_calls(next(iter(counted), expected.changed_attribute), twice, replayed, counts=counts)
    return alike


def _check_new_weights(
    attribute: str, original: Call, replay: Call, module: nn.Module, leaves: Sequence[torch.Tensor]
) -> None:
    """Refuse a value that is kept over a step of training: the next call would have a value of the old weights."""
    evaluates = not any(item.training for item in module.modules())

    def with_new_weights(call: Call) -> Call:
        def both(given: list[torch.Tensor]) -> list[Any]:
            first = call(given)
            if evaluates:
                module.train()
            for parameter in module.parameters():
                if parameter.is_floating_point():
                    parameter.mul_(0.5)
            if evaluates:
                module.eval()
            return [first, call([leaf.clone() for leaf in leaves])]

        return torch.no_grad()(both)

    runs = [run_once(with_new_weights(call), module, leaves, writes_parameters=True) for call in (original, replay)]
    if not isinstance(runs[1], BranchMissError):
        _compare_second_calls(attribute, runs[0], runs[1], counts=False)


def _is_cache_until_train(call: Call, module: nn.Module, leaves: Sequence[torch.Tensor]) -> bool:
    """Whether a call in eval mode keeps values that a call of ``train()`` drops again."""
    if any(item.training for item in module.modules()):
        return False
    before = contents_of(module)
    with restored_after(module), torch.random.fork_rng(), torch.no_grad():
        call([leaf.detach().clone() for leaf in leaves])
        is_kept = contents_of(module) != before
        module.train()
        module.eval()
        return is_kept and contents_of(module) == before


def _twice(call: Call, module: nn.Module, counted: list[str], others: Sequence[torch.Tensor]) -> Call:
    """Return two calls in a row, the second with ``others``; ``counted`` gets attributes whose number changes again."""

    def both(leaves: list[torch.Tensor]) -> list[Any]:
        first = call(leaves)
        between = state_of(module)
        second = call([leaf.detach().clone() for leaf in others])
        counted.extend(name for name, old, new in changed(between) if {type(old), type(new)} <= {bool, int, float})
        return [first, second]

    return both


def _compare_second_calls(attribute: str, expected: Exception | Run, actual: Exception | Run, *, counts: bool) -> None:
    """Refuse an attribute with an effect on the next call, and an attribute that ``counts`` calls."""
    cause: NotPortableError | None = None
    try:
        compare_runs(expected, actual, [])
    except NotPortableError as error:
        cause = error
    if counts or cause is not None:
        raise NotPortableError(
            f"the forward keeps a value in {attribute} that changes the next call, and programs keep values in buffers "
            "only. Remedy: use a buffer, and write to the buffer in place"
        ) from cause
