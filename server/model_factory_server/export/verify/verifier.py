"""Verifies a recorded program: replays the program against the original forward on random inputs of other sizes.

Outputs, gradients of parameters and inputs, buffers after the call, and random numbers must agree: bit for bit on the
CPU, within float tolerance on other devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import nn

from model_factory.describe.assignments import attributes_restored_after
from model_factory.errors import CallSignatureError, NotPortableError, refused_call
from model_factory.program.arguments.generators import generators_of
from model_factory.program.call_signature import (
    call_signature,
    leaf_names,
    match_call_signature,
    rebuild_arguments,
)
from model_factory.program.forward_signature import ForwardSignature
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
from model_factory_server.export.verify.stand_ins import (
    KnownForms,
    compiled_blocks,
    programs_run,
    replaceable,
    shallow_stacks,
    stand_ins,
)
from model_factory_server.export.verify.state_diff import changed, contents_of, state_of

Programs: TypeAlias = Mapping[nn.Module, Sequence[RecordedProgram]]
"""Programs of blocks."""


def verify(
    module: nn.Module,
    recorded: RecordedProgram,
    arguments: Mapping[str, Any],
    *,
    forms: KnownForms | None = None,
    inner: Programs = MappingProxyType({}),
) -> None:
    """Compare ``recorded`` with the forward of ``module``, at sizes allowed by the guards.

    Training flags and buffers are restored. A program for a GPU alone equals another that is verified.

    Args:
        module: The recorded module.
        recorded: Its program.
        arguments: An example call.
        forms: Forms of the results of inner blocks. Stand-ins with these results take the place of verified inner
            blocks. If original and program then differ, for example because the forward refuses the values of a
            stand-in, they are compared with the inner blocks.
        inner: Programs of inner blocks. These run together with the program, beside the whole original: only so state
            is seen that a caller shares with an inner block, for example a number in an object of both.

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
        if not _is_verified_with_stand_ins(module, recorded, arguments, forms):
            _verify_at_sizes(module, recorded, arguments, inner=inner)
    if inner and not recorded.program.outcomes():
        with attributes_restored_after(module):
            _set_flags(module, recorded)
            original, replay = map(
                torch.no_grad(), _calls(module, recorded, arguments, inner)
            )  # state may depend on it
            examples = _examples(recorded, arguments)
            runs = run_once(original, module, examples), run_once(replay, module, examples)
            compare_runs(*runs, _shapes(examples))


def _is_verified_with_stand_ins(
    module: nn.Module, recorded: RecordedProgram, arguments: Mapping[str, Any], forms: KnownForms | None
) -> bool:
    replaced = replaceable(module, recorded.program)
    if forms is None or not replaced or recorded.program.outcomes():  # decisions depend on values
        return False
    with stand_ins(replaced, forms), suppress(NotPortableError, CallSignatureError):
        _verify_at_sizes(module, recorded, arguments, replaced=replaced)
        return True
    return False


def reproduces(
    module: nn.Module,
    programs: Sequence[RecordedProgram],
    arguments: Mapping[str, Any],
    *,
    forms: KnownForms | None = None,
    inner: Programs = MappingProxyType({}),
) -> bool:
    """Whether the programs of another module of the same kind do as ``module`` does, in one run on ``arguments``.

    ``forms`` and ``inner`` are as in :func:`verify`; inner blocks replaced by stand-ins have to be compared on their
    own.

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
        original, replay = _calls(module, recorded, arguments, inner)
        examples = _examples(recorded, arguments)
        for known in (forms, None) if forms is not None and not recorded.program.outcomes() else (None,):
            with stand_ins(replaceable(module, recorded.program), known), suppress(NotPortableError):
                agreed = _agree(original, replay, module, examples, VERIFY_SEED, iter([examples]))
                if agreed or (agreed is not None and known is None):
                    return agreed
    return False


def _calls(
    module: nn.Module, recorded: RecordedProgram, arguments: Mapping[str, Any], inner: Programs = MappingProxyType({})
) -> tuple[Call, Call]:
    """The original forward and the program, with programs of inner blocks, as functions of the program's tensors."""
    signature, runner, compiled = ForwardSignature.of(module.forward), Runner(recorded.program), compiled_blocks(inner)
    frozen = {f"{REQUIRES_GRAD}{name}": index for index, name in enumerate(leaf_names(recorded.call_signature))}

    generators = generators_of(recorded.call_signature, arguments)

    def seed_generators() -> None:
        for generator in generators.values():
            generator.manual_seed(VERIFY_SEED)

    def with_states(result: Any) -> Any:
        """A result together with the numbers that the generators draw next."""
        drawn = [torch.rand(2, generator=generator, device=generator.device) for generator in generators.values()]
        return [result, drawn] if generators else result

    def with_gradients(leaves: list[torch.Tensor]) -> list[torch.Tensor]:
        detached = {frozen[name] for name, value in recorded.modes if name in frozen and value is False}
        return [leaf.detach() if index in detached else leaf for index, leaf in enumerate(leaves)]

    def original(leaves: list[torch.Tensor]) -> Any:
        leaves = with_gradients(leaves)
        seed_generators()
        given = rebuild_arguments(recorded.call_signature, leaves, arguments)
        with modes_entered(recorded.modes):
            return with_states(portable_output(signature.call(module, given)))

    def replay(leaves: list[torch.Tensor]) -> Any:
        seed_generators()
        with modes_entered(recorded.modes), programs_run(compiled):
            return with_states(runner.run(module, with_gradients(leaves), generators=generators))

    return original, replay


def _verify_at_sizes(
    module: nn.Module,
    recorded: RecordedProgram,
    arguments: Mapping[str, Any],
    *,
    replaced: Sequence[nn.Module] = (),
    inner: Programs = MappingProxyType({}),
) -> None:
    """Verify in each mode of the program, at several sizes."""
    examples = _examples(recorded, arguments)
    with shallow_stacks(module, recorded, replaced):
        module.eval()
        _set_flags(module, recorded)
        # Found once for both modes: sizes that a mode refuses are refused by original and program.
        accepts = acceptance_of(module, recorded, examples, arguments)
        candidates = list(candidate_shapes(module, recorded, _shapes(examples), accepts))
        calls = _calls(module, recorded, arguments, inner)
        if recorded.training:
            _verify_mode(module, recorded, examples, calls, candidates)
            return
        # One program for both modes: each mode has half of the sizes. Many layers refuse sizes of 1, which are the
        # second half in most cases, in train mode.
        first, second = candidates[0::2], candidates[1::2]
        if recorded.program.outcomes():
            first, second = candidates, []
        for mode, sizes, other_sizes in ((False, second, first), (True, first, second)):
            module.train(mode)  # an own train() may return nothing
            _verify_mode(module, recorded, examples, calls, sizes, other_sizes)


def _set_flags(module: nn.Module, recorded: RecordedProgram) -> None:
    for path, flag in recorded.training:
        get_module(module, path).training = flag


def _shapes(tensors: Sequence[torch.Tensor]) -> Shapes:
    return [list(tensor.shape) for tensor in tensors]


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
    calls: tuple[Call, Call],
    sizes: Sequence[Shapes],
    other_sizes: Sequence[Shapes] = (),
) -> None:
    """Verify at ``sizes``; at ``other_sizes`` only if all of ``sizes`` are refused."""
    original, replay = calls
    example_shapes = _shapes(examples)
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
