"""Proves a recorded program: replays it against the original on random inputs of other sizes.

Outputs, gradients of parameters and inputs, buffers afterwards and the random numbers drawn must all agree: bit for bit
on the CPU, within float tolerance elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from model_factory.errors import NotPortableError, refused_call
from model_factory.program.call_signature import call_signature, leaf_names, match_call_signature, rebuild_arguments
from model_factory.program.expressions import Env, compile_expression, expression_names, shape_key
from model_factory.program.forward_signature import ForwardSignature
from model_factory.program.ir import OWN, Dim, Expr, ModuleCall
from model_factory.program.recorded_program import RecordedProgram
from model_factory.program.runtime.interpreter import Runner
from model_factory.program.runtime.lookup import get_module, own_shape
from model_factory.program.runtime.step_compiler import BranchMissError
from model_factory_server.export.out_of_memory import is_out_of_memory
from model_factory_server.export.restored_after import attributes_kept, plain_tensors, restored_after, tensors_as
from model_factory_server.export.torch_patches import every_generator_seeded
from model_factory_server.export.trace.einsum import orders_of
from model_factory_server.export.trace.results import portable_output
from model_factory_server.export.trace.sample_inputs import REFUSED_CALL, VERIFY_SEED, draws, unreached
from model_factory_server.export.verify.state_diff import changed, state_of

Shapes = list[list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Observed:
    """One run of a forward or its program."""

    seen: dict[str, Any]
    """What has to be the same in both."""
    kept: str
    """An attribute that has another value afterwards, if there is one: the next call may be another."""


def verify(module: nn.Module, recorded: RecordedProgram, arguments: Mapping[str, Any]) -> None:
    """Check that ``recorded`` does what ``module`` does, at the sizes of ``arguments`` and at others its guards allow.

    Training flags and buffers are as before afterwards.

    Raises:
        NotPortableError: it does not, or no replay could be made.
    """
    with attributes_kept(module), _shallow_stacks(module, recorded), orders_of(recorded.program):
        _prove_modes(module, recorded, arguments)


@contextmanager
def _shallow_stacks(module: nn.Module, recorded: RecordedProgram) -> Iterator[None]:
    """Cut the stacks of layers that the program calls as a whole to one layer.

    What is inside torch's own modules is not in question, and a proof of a large model would take minutes.
    """
    calls = [step.path for step in recorded.program.steps if isinstance(step, ModuleCall)]
    stacks = [
        item
        for path, item in module.named_modules()
        if isinstance(item, nn.TransformerEncoder | nn.TransformerDecoder)
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


def _prove_modes(module: nn.Module, recorded: RecordedProgram, arguments: Mapping[str, Any]) -> None:
    examples = _examples(recorded, arguments)
    if not recorded.training:
        module.eval()
    for path, flag in recorded.training:
        get_module(module, path).training = flag
    example_shapes = [list(leaf.shape) for leaf in examples]
    # Found once: what a mode refuses after all, original and replay refuse together.
    candidates = list(
        candidate_shapes(module, recorded, example_shapes, _acceptance(module, recorded, examples, arguments))
    )
    _prove_mode(module, recorded, examples, candidates, arguments)
    if not recorded.training:
        _prove_mode(module.train(), recorded, examples, candidates, arguments)


def _examples(recorded: RecordedProgram, arguments: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors of a call that a program for the call takes."""
    form, leaves = call_signature(arguments)
    kept = match_call_signature(recorded.call_signature, form)
    assert kept is not None
    return [leaves[index] for index in kept]


def _prove_mode(
    module: nn.Module,
    recorded: RecordedProgram,
    examples: Sequence[torch.Tensor],
    candidates: Sequence[Shapes],
    arguments: Mapping[str, Any],
) -> None:
    signature = ForwardSignature.of(module.forward)
    runner = Runner(recorded.program)

    def original(leaves: list[torch.Tensor]) -> Any:
        return portable_output(signature.call(module, rebuild_arguments(recorded.call_signature, leaves, arguments)))

    def replay(leaves: list[torch.Tensor]) -> Any:
        return runner.run(module, leaves)

    example_shapes = [list(leaf.shape) for leaf in examples]
    decides = bool(recorded.program.outcomes())
    verified = 0
    for shapes in [*candidates, *([example_shapes] if decides else [])]:
        for seed, leaves in enumerate(_inputs(examples, shapes, decides), VERIFY_SEED):
            others = draws(examples, example_shapes if shapes != example_shapes else candidates[0])
            agreed = _agree(original, replay, module, leaves, seed, others)
            if agreed is not None:
                verified += agreed
                break
    if not verified:
        if decides:
            raise unreached()
        # Perhaps it takes no numbers but such as the call's own: probabilities, say.
        if not _agree(original, replay, module, examples, VERIFY_SEED, iter([examples])):
            refusal = _observe(original, module, examples, VERIFY_SEED)
            assert isinstance(refusal, Exception)
            raise refused_call(f"{REFUSED_CALL}: {type(refusal).__name__}: {refusal}", refusal) from refusal


def _inputs(examples: Sequence[torch.Tensor], shapes: Shapes, decides: bool) -> Iterator[list[torch.Tensor]]:
    """Inputs of a proof: of any values or, where values decide, until some take the program's side."""
    if decides and shapes == [list(leaf.shape) for leaf in examples]:
        yield list(examples)
    yield from draws(examples, shapes)


_Call = Callable[[list[torch.Tensor]], Any]


def _agree(
    original: _Call,
    replay: _Call,
    module: nn.Module,
    leaves: Sequence[torch.Tensor],
    seed: int,
    others: Iterator[Sequence[torch.Tensor]],
) -> bool | None:
    """Whether the two do the same; False if both refuse, None if the values lead to the side of another program.

    Where a call leaves something behind, so must another one after it, with the first of ``others`` (other sizes), too.

    Raises:
        NotPortableError: they do not.
    """
    actual = _observe(replay, module, leaves, seed)
    if isinstance(actual, BranchMissError):
        return None
    expected = _observe(original, module, leaves, seed)
    alike = _compare_runs(expected, actual, [list(leaf.shape) for leaf in leaves])
    if isinstance(expected, _Observed) and expected.kept:
        flipped = [leaf.flip(0) if leaf.dim() else leaf for leaf in leaves]
        for second, of_other_sizes in ((flipped, False), (next(others, leaves), True)):
            counted: list[str] = []
            twice = _observe(_twice(original, module, counted, second), module, leaves, seed)
            replayed = _observe(_twice(replay, module, [], second), module, leaves, seed)
            if isinstance(replayed, BranchMissError) or (of_other_sizes and isinstance(twice, Exception)):
                continue  # what is kept may go with its size alone
            counts = bool(counted) and not of_other_sizes  # a size is kept, too
            _compare_second_calls(next(iter(counted), expected.kept), twice, replayed, counts=counts)
    return alike


def _twice(call: _Call, module: nn.Module, counted: list[str], others: Sequence[torch.Tensor]) -> _Call:
    """A call, and a second one with ``others``; ``counted`` gets what has numbers that this changes again."""

    def both(leaves: list[torch.Tensor]) -> list[Any]:
        first = call(leaves)
        between = state_of(module)
        second = call([leaf.detach().clone() for leaf in others])
        counted.extend(name for name, old, new in changed(between) if {type(old), type(new)} <= {bool, int, float})
        return [first, second]

    return both


def _compare_second_calls(
    kept: str, expected: Exception | _Observed, actual: Exception | _Observed, *, counts: bool
) -> None:
    """Refuse what two calls in a row show to be kept for the next one; a number that goes on changing in any case."""
    cause: NotPortableError | None = None
    try:
        _compare_runs(expected, actual, [])
    except NotPortableError as error:
        cause = error
    if counts or cause is not None:
        raise NotPortableError(
            f"its forward keeps something in {kept} that changes the next call, which a program cannot. Remedy: keep "
            "it in a buffer, and write to that in place"
        ) from cause


def _compare_runs(expected: Exception | _Observed, actual: Exception | _Observed, shapes: Shapes) -> bool:
    """Whether original and replay agree at some sizes; False if they agree in refusing them."""
    if isinstance(expected, Exception) and isinstance(actual, Exception):
        return False
    if isinstance(expected, Exception) or isinstance(actual, Exception):
        failure = expected if isinstance(expected, Exception) else actual
        raise _disproved(f"only one of the two failed at sizes {shapes}: {failure}")
    assert isinstance(expected, _Observed)
    assert isinstance(actual, _Observed)
    _compare(expected.seen, actual.seen, shapes)
    return True


def candidate_shapes(
    module: nn.Module, recorded: RecordedProgram, example: Shapes, accepts: Callable[[Shapes], bool]
) -> Iterator[Shapes]:
    """Sizes to prove a program at: not the example's, where others are allowed by its guards and the forward.

    These are every size that may change larger by one, and every such size one; where that is refused together, each on
    its own.
    """
    names = leaf_names(recorded.call_signature)
    sizes = {
        Dim(name, axis): size for name, shape in zip(names, example, strict=True) for axis, size in enumerate(shape)
    }
    guards = [compile_expression(guard) for guard in recorded.guards]
    asked = {name for guard in recorded.guards for name in expression_names(guard) if name.startswith(OWN)}
    own: Env = {shape_key(name): own_shape(module, name) for name in asked}

    def changed(groups: Sequence[list[Dim]], change: Callable[[int], int]) -> Shapes:
        chosen = sizes | {dim: change(sizes[dim]) for group in groups for dim in group}
        return [
            [chosen[Dim(name, axis)] for axis in range(len(shape))] for name, shape in zip(names, example, strict=True)
        ]

    def allowed(shapes: Shapes) -> bool:
        env = own | {shape_key(name): shape for name, shape in zip(names, shapes, strict=True)}
        return all(guard(env) for guard in guards) and accepts(shapes)

    free = [group for group in _free_groups(recorded, sizes) if allowed(changed([group], _larger))]
    if not free:
        yield example
    for change in (_larger, _one):
        together = changed(free, change)
        if allowed(together):
            yield together
        else:
            yield from (shapes for group in free if allowed(shapes := changed([group], change)))


def _acceptance(
    module: nn.Module, recorded: RecordedProgram, examples: Sequence[torch.Tensor], arguments: Mapping[str, Any]
) -> Callable[[Shapes], bool]:
    """Return whether the forward accepts given sizes.

    It is asked on the meta device, where that costs next to nothing, or, where it needs real tensors, with these; where
    values decide, its program is asked, which ends sooner than the forward where the values lead elsewhere.
    """
    signature = ForwardSignature.of(module.forward)
    on_meta: dict[int, torch.Tensor] = {}

    def to_meta(_path: str, tensor: torch.Tensor) -> torch.Tensor:
        return on_meta.setdefault(id(tensor), tensor.to("meta"))

    def call(leaves: list[torch.Tensor]) -> Any:
        return signature.call(module, rebuild_arguments(recorded.call_signature, leaves, arguments))

    def accepts_really(shapes: Shapes) -> bool:
        leaves = next(draws(examples, shapes), [])
        asked = partial(Runner(recorded.program).run, module) if recorded.program.outcomes() else call
        observed = _observe(asked, module, leaves)
        return not isinstance(observed, Exception) or isinstance(observed, BranchMissError)

    def accepts(shapes: Shapes) -> bool:
        leaves = [
            torch.empty(shape, dtype=example.dtype, device="meta")
            for example, shape in zip(examples, shapes, strict=True)
        ]
        try:
            with torch.no_grad(), tensors_as(module, to_meta):
                signature.call(module, rebuild_arguments(recorded.call_signature, leaves, arguments))
        except Exception:  # noqa: BLE001  the forward is the operator's code; its refusal is an answer
            return False
        return True

    return accepts if accepts([list(example.shape) for example in examples]) else accepts_really


def _larger(size: int) -> int:
    return size + 1


def _one(_size: int) -> int:
    return 1


def _free_groups(recorded: RecordedProgram, sizes: Mapping[Dim, int]) -> list[list[Dim]]:
    """Input dimensions that may change, grouped by those that must be equal."""
    group_of: dict[Dim, list[Dim]] = {dim: [dim] for dim in sizes}
    fixed = {dim for dim, size in sizes.items() if size == 0}  # another size would be another form
    for guard in recorded.guards:
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


def _observe(
    call: Callable[[list[torch.Tensor]], Any],
    module: nn.Module,
    leaves: Sequence[torch.Tensor],
    seed: int = VERIFY_SEED,
    *,
    writes_parameters: bool = False,
) -> Exception | _Observed:
    """Run once from a seed; everything that can be seen of the run, or its error. The module is as before.

    ``writes_parameters`` is whether the forward may write to parameters, as that of a module that travels as source.
    """
    inputs = [leaf.detach().clone().requires_grad_(leaf.is_floating_point()) for leaf in leaves]
    given = [item.clone() for item in inputs]  # no leaves of autograd's, since a forward may write to its inputs
    plain = plain_tensors(module)
    parameters = [item for item in [*module.parameters(), *plain.values()] if item.requires_grad]
    state = state_of(module)
    with every_generator_seeded(seed), torch.enable_grad(), restored_after(module, parameters=writes_parameters):
        try:
            outputs, structure = pytree.tree_flatten(call(given))
            differentiable = [item for item in outputs if isinstance(item, torch.Tensor) and item.requires_grad]
            loss = sum(
                (item.abs().double().square().sum() for item in differentiable), torch.zeros((), dtype=torch.float64)
            )
            wanted = [*parameters, *[item for item in inputs if item.requires_grad]] if differentiable else []
            gradients = torch.autograd.grad(loss, wanted, allow_unused=True) if wanted else ()
            kinds = [*module.named_buffers(), *plain.items(), *(module.named_parameters() if writes_parameters else ())]
            after = {name: item.detach().clone() for name, item in kinds}
            random = torch.rand(2)
            kept = next((name for name, _, _ in changed(state)), "")
        except Exception as error:  # the forward is the operator's code; its refusal is an answer
            if is_out_of_memory(error):
                raise
            return error
    seen = {
        "output structure": str(structure),
        "outputs": outputs,
        "inputs afterwards": [item.detach() for item in given],
        "gradients": gradients,
        "tensors afterwards": after,
        "random": random,
    }
    return _Observed(seen=seen, kept=kept)


def _compare(expected: dict[str, Any], actual: dict[str, Any], shapes: Shapes) -> None:
    for what, value in expected.items():
        try:
            if what == "output structure":
                if value != actual[what]:
                    raise AssertionError(f"{value} is not {actual[what]}")  # noqa: TRY301
                continue
            for one, other in zip(pytree.tree_leaves(value), pytree.tree_leaves(actual[what]), strict=True):
                _compare_leaf(one, other)
        except (AssertionError, ValueError) as error:
            raise _disproved(f"{what} differ at sizes {shapes}: {error}") from None


def _compare_leaf(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        alike = all(getattr(one, name) == getattr(other, name) for name in ("device", "dtype", "shape", "layout"))
        if alike and one.layout == torch.strided and torch.equal(one, other):
            return  # without the temporaries of what follows, which take several times the memory
        exact = {"rtol": 0.0, "atol": 0.0} if one.device.type == "cpu" else {}
        torch.testing.assert_close(other, one, equal_nan=True, **exact)  # type: ignore[arg-type]
    elif one != other and not (one != one and other != other):  # noqa: PLR0124  nan equals nan here
        raise AssertionError(f"{one!r} is not {other!r}")


def _disproved(detail: str) -> NotPortableError:
    return NotPortableError(
        f"its recorded program does not reproduce its forward ({detail}). Remedy: make the forward depend on its "
        "arguments, parameters and buffers only"
    )


def prove_rebuilt(original: nn.Module, rebuilt: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Check that a rebuilt module of the same class does what ``original`` does on a call, in both modes.

    Raises:
        NotPortableError: it does not.
    """
    signature = ForwardSignature.of(original.forward)
    form, examples = call_signature(arguments)

    def observe(module: nn.Module) -> Exception | _Observed:
        def call(leaves: list[torch.Tensor]) -> Any:
            return signature.call(module, rebuild_arguments(form, leaves))

        return _observe(call, module, examples, writes_parameters=True)

    with attributes_kept(original), attributes_kept(rebuilt):
        for mode in (False, True):
            expected, actual = observe(original.train(mode)), observe(rebuilt.train(mode))
            if isinstance(actual, Exception) and not isinstance(expected, Exception):
                raise NotPortableError(f"its source fails where it is rebuilt: {type(actual).__name__}: {actual}")
            if not isinstance(expected, Exception) and not isinstance(actual, Exception):
                try:
                    _compare(expected.seen, actual.seen, [list(example.shape) for example in examples])
                except NotPortableError as error:
                    raise NotPortableError(
                        f"its source does something else where it is rebuilt: {error}. Remedy: keep what the forward "
                        "needs in parameters, buffers and plain attributes, and nothing in module-level variables"
                    ) from None
