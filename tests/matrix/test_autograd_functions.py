"""Functions of autograd with a backward of their own: the rebuilt module has the gradients of the original."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from matrix.portability import rebuilt_with_programs, with_recorder
from model_factory import CallSignatureError, NotPortableError
from model_factory.errors import FormatError
from model_factory.program.codec.programs import decode_program, encode_program
from model_factory.program.ir import AttributeRead, Guard, OpCall, OwnBackward, Program, Ref
from model_factory.program.runtime.caller_modes import AUTOCAST
from model_factory.program.runtime.interpreter import Runner
from model_factory_server.export.exporter import record_model
from support.compare import assert_same, assert_same_runs
from support.schemas import check

# Torch's own hints for a compiled block whose input is no leaf, and for a compiled function, the same for the original.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

WIDTH = 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": rows(3)}]


def rows(count: int) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(count))


class Reversed(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return -ctx.factor * gradient, None


class Reverses(Block):
    def forward(self, x: Tensor) -> Any:
        return self.linear(Reversed.apply(self.linear(x), 0.25))


class Sign(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return gradient.clamp(-100, 100) * (x.abs() <= 1)


class StraightThrough(Block):
    def forward(self, x: Tensor) -> Any:
        y = Sign.apply(self.linear(x))
        y *= 300  # the gradients of a verification are smaller than the limit in the backward
        return self.linear(y)


class Scan(Function):
    """``h[t] = a[t] * h[t - 1] + x[t]``, with writes in place to a padded copy."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, x: Tensor) -> Tensor:
        length = x.shape[0]
        h = functional.pad(x, (0, 0, 0, length % 2))
        for step in range(1, length):
            h[step].add_(a[step] * h[step - 1])
        ctx.save_for_backward(a, h)
        return h[:length]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        a, h = ctx.saved_tensors
        length, given = gradient.size(0), gradient.clone()
        for step in range(length - 2, -1, -1):
            given[step].add_(a[step + 1] * given[step + 1])
        of_a = torch.zeros_like(a)
        of_a[1:].add_(given[1:] * h[: length - 1])
        return of_a, given


scan = Scan.apply  # bound before a recording


class Scans(Block):
    def forward(self, x: Tensor) -> Any:
        return scan(self.linear(x).sigmoid(), x)


class Scaled(Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, power: int = 2) -> Tensor:
        return x * weight**power

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.power = inputs
        ctx.save_for_backward(x, weight, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, weight, output = ctx.saved_tensors
        needs = ctx.needs_input_grad
        assert not needs[2]
        of_x = gradient * weight**ctx.power if needs[0] else None
        of_weight = (gradient * (ctx.power * x * weight + output.tanh())).sum(0) if needs[1] else None
        return of_x, of_weight, None


class SetsUpItsContext(Block):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Any:
        return Scaled.apply(x, self.weight)


class Sorted(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, names: list[str], other: Tensor) -> Any:
        values, indices = x.sort(-1)
        ctx.save_for_backward(indices)
        ctx.mark_non_differentiable(indices)
        ctx.shape = other.shape
        return values, indices, len(names), x.exp()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        of_values, of_indices, of_number, of_exp = gradients
        assert of_number is None
        (indices,) = ctx.saved_tensors
        of_x = torch.zeros_like(of_values).scatter(-1, indices, of_values) + of_exp * 2 + of_indices
        return of_x, None, gradients[0].sum().expand(ctx.shape), None


class SortsWithOthers(Block):
    def forward(self, x: Tensor) -> Any:
        h = self.linear(x)
        values, indices, number, exp = Sorted.apply(h, ["a", "b"], h[0])
        return values + indices, exp * number


class Converted(Function):
    """Dtypes of values, limits, a constant, and sizes of another tensor than the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.dtype, ctx.length = x.dtype, x.shape[0]
        return x.float().sum(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        table = torch.tensor([1.0, 0.5, 2.0, 4.0], dtype=torch.float64)
        of_x = gradient.expand(ctx.length, -1).to(ctx.dtype)
        return (of_x + torch.finfo(ctx.dtype).eps).div(ctx.length) * table.to(of_x.dtype)


class Converts(Block):
    def forward(self, x: Tensor) -> Any:
        return Converted.apply(self.linear(x)).to(x.dtype) + 1


class Dropped(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, training: bool) -> Tensor:
        ctx.mask = torch.rand_like(x) > 0.5 if training else None
        return x if ctx.mask is None else x * ctx.mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return gradient if ctx.mask is None else gradient * ctx.mask, None


class Drops(Block):
    def forward(self, x: Tensor) -> Any:
        return Dropped.apply(self.linear(x), self.training) * Dropped.apply(x, False)


class Decided(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.is_large = bool(x.sum() > 0)
        return 2 * x if ctx.is_large else x - 1

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return gradient * (7 if ctx.is_large else 5)


class DecidesInTheForward(Block):
    def forward(self, x: Tensor) -> Any:
        return Decided.apply(self.linear(x))


class Root(Function):
    """A backward with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.abs().sqrt()
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, y = ctx.saved_tensors
        return gradient * x.sign() / y.square() * 3


class Roots(Block):
    def forward(self, x: Tensor) -> Any:
        return Root.apply(self.linear(x))


class RootsTwice(Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return Root.apply(Root.apply(gradient))


class Layers(Block):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([StraightThrough(), StraightThrough(), Reverses()])

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            factor = Sign.apply(x)
            assert not factor.requires_grad
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return x * factor


BLOCKS = (
    *(Reverses, StraightThrough, SetsUpItsContext, SortsWithOthers, Converts, Drops, Roots, Layers, Scans),
    DecidesInTheForward,
)


@pytest.mark.parametrize("block", BLOCKS)
def test_gradients_are_the_originals(block: type[Block]) -> None:
    torch.manual_seed(0)
    original = block()
    rebuilt = rebuilt_with_programs(original)
    copies = [rebuilt, copy.deepcopy(rebuilt), pickle.loads(pickle.dumps(rebuilt))]  # noqa: S301  written here
    for module in copies:
        for count in (3,) if block is Scans else (3, 1, 7):
            for training in (True, False):
                assert_same_runs(module.train(training), original.train(training), {"x": rows(count)})
                assert_same_runs(module, original, {"x": 1000 * rows(count)})
    with torch.no_grad():
        assert_same(rebuilt(rows(3)), original(rows(3)))


def test_a_call_of_another_length_is_recorded_at_the_call() -> None:
    original, rebuilt, recorder = with_recorder(Scans)
    for count in (3, 4, 5, 4):
        assert_same_runs(rebuilt, original, {"x": rows(count)})
    assert recorder.calls == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("block", [Converts, SortsWithOthers, StraightThrough])
def test_a_module_in_another_dtype_has_the_gradients_of_the_original(block: type[Block], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    original = block()
    rebuilt = rebuilt_with_programs(original).to(dtype)
    assert_same_runs(rebuilt, copy.deepcopy(original).to(dtype), {"x": rows(3).to(dtype)})


@pytest.mark.parametrize(
    "block", [Reverses, StraightThrough, Scans, SetsUpItsContext, SortsWithOthers, Converts, Drops, Roots]
)
def test_a_rebuilt_module_compiles_to_one_graph(block: type[Block]) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    original = block()
    rebuilt = rebuilt_with_programs(original)
    exported = torch.export.export(rebuilt, (rows(3),)).module()
    results = []
    for module in (exported, original):
        torch.manual_seed(0)
        results.append(module(rows(3)))
    assert_same(*results)
    rebuilt.compile(backend="aot_eager", fullgraph=True)
    for count in (3,) if block is Scans else (3, 5, 7):  # the second call of another size is compiled for all sizes
        assert_same_runs(rebuilt, original, {"x": rows(count)})


def second_gradients(module: nn.Module) -> list[Tensor | None]:
    x = rows(3).requires_grad_()
    (first,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
    return [first, *torch.autograd.grad(first.square().sum(), [x, *module.parameters()], allow_unused=True)]


@pytest.mark.parametrize("block", [Roots, Reverses, SetsUpItsContext])
def test_a_backward_has_the_gradients_of_the_original(block: type[Block]) -> None:
    torch.manual_seed(0)
    original = block()
    assert_same(second_gradients(rebuilt_with_programs(original)), second_gradients(original))


def test_a_rebuilt_module_is_transformed_as_the_original() -> None:
    torch.manual_seed(0)
    original = SetsUpItsContext()
    gradients = []
    for module in (rebuilt_with_programs(original), original):

        def loss(parameters: dict[str, Tensor], module: nn.Module = module) -> Tensor:
            result: Tensor = torch.func.functional_call(module, parameters, (rows(3),)).square().sum()
            return result

        gradients.append(torch.func.grad(loss)(dict(module.named_parameters())))
    assert_same(*gradients)


class SortsOnce(Block):
    def forward(self, x: Tensor) -> Any:
        return Sorted.apply(self.linear(x), [], x)[0]


def test_a_backward_without_gradients_refuses_a_second_differentiation() -> None:
    for module in (SortsOnce(), rebuilt_with_programs(SortsOnce())):
        x = rows(3).requires_grad_()
        (first,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate twice"):
            first.square().sum().backward()


class ChangesASavedTensor(Block):
    def forward(self, x: Tensor) -> Any:
        h = self.linear(x)
        return Root.apply(h) + h.mul_(2)


class ChangesAResult(Block):
    def forward(self, x: Tensor) -> Any:
        y = Reversed.apply(self.linear(x), 0.5)
        return y.mul_(2)


@pytest.mark.parametrize(
    ("block", "reason"),
    [(ChangesASavedTensor, "modified by an inplace"), (ChangesAResult, "view \\+ inplace|is a view")],
)
def test_autograd_refuses_what_the_original_refuses(block: type[Block], reason: str) -> None:
    with pytest.raises(RuntimeError, match=reason):
        block()(rows(3)).sum().backward()
    with pytest.raises((NotPortableError, CallSignatureError), match=reason):
        rebuilt_with_programs(block())


def test_autograd_notices_changes_of_results_on_the_trainer() -> None:
    for block, reason in ((Roots, "modified by an inplace"), (ReturnsAView, "is a view")):
        original = block()
        for module in (original, rebuilt_with_programs(original)):
            with pytest.raises(RuntimeError, match=reason):
                module(rows(3)).add_(1).sum().backward()


class ReturnsAView(Block):
    def forward(self, x: Tensor) -> Any:
        return Reversed.apply(self.linear(x), 0.5)


class Cast(Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        return gradient @ weight.T, x.T @ gradient


class Casts(Block):
    def forward(self, x: Tensor) -> Any:
        return Cast.apply(x, self.linear.weight)


def test_a_backward_in_the_modes_of_its_forward_is_for_these_modes() -> None:
    original = Casts()
    rebuilt = rebuilt_with_programs(original)
    gradients = []
    for module in (original, rebuilt):
        y = module(rows(3))
        with torch.autocast("cpu"):  # without an effect on the backward, as the forward ran without autocast
            gradients.append(torch.autograd.grad(y.square().sum(), module.linear.weight))
    assert_same(*gradients)
    with torch.autocast("cpu"), pytest.raises(CallSignatureError):
        rebuilt(rows(3))


class Dirty(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return gradient * 2


class Unmaterialized(Reversed):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        ctx.set_materialize_grads(False)
        return x + 1


class DecidedBackward(Sign):
    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return gradient if gradient.sum() > 0 else -gradient


class AsksForGradients(Sign):
    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return gradient * (2 if torch.is_grad_enabled() else 3)


class OneTooMany(Sign):
    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return gradient, gradient


class WithModule(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, module: Any) -> Tensor:
        ctx.module = module
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return gradient * ctx.module.bias, None


class Checkpointed(Sign):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            again = x.detach().requires_grad_()
            return torch.autograd.grad(again.exp(), again, gradient)[0]


class KeepsModulesWeight(Function):
    """Reads the parameter in the forward of the function alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Linear) -> Tensor:
        ctx.weight = module.weight
        return x @ ctx.weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return gradient @ ctx.weight.T, None


class DecidesByNeeds(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * (2 if ctx.needs_input_grad[0] else 3)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return gradient * 2


class Contiguous(Function):
    """Keeps the argument itself, if the argument is contiguous."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return 2 * gradient * x


class ContiguousOnce(Contiguous):
    backward = staticmethod(once_differentiable(Contiguous.backward))


class KeepsContiguous(Block):
    def forward(self, x: Tensor) -> Any:
        return ContiguousOnce.apply(self.linear(x))


def test_what_may_be_an_argument_is_kept_for_first_gradients() -> None:
    original = KeepsContiguous()
    rebuilt, x = rebuilt_with_programs(original), rows(3).requires_grad_()
    assert_same(*(torch.autograd.grad(module(x).sum(), x)[0] for module in (original, rebuilt)))


class CastOnGpu(Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")  # type: ignore[untyped-decorator]
    def forward(_ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")  # type: ignore[untyped-decorator]
    def backward(_ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return gradient, None


class CastsOnGpu(Block):
    def forward(self, x: Tensor) -> Any:
        return CastOnGpu.apply(x, self.linear.weight)


def test_the_autocast_of_a_gpu_is_a_condition_of_functions_that_use_it() -> None:
    ((_, recorded),) = record_model(CastsOnGpu())
    assert dict(recorded.modes)[f"{AUTOCAST}cuda"] is False


class OfAnotherTensor(Block):
    def forward(self, x: Tensor) -> Any:
        scale = self.linear(x).exp()

        class Scale(Function):
            @staticmethod
            def forward(_ctx: Any, y: Tensor) -> Tensor:
                return y * scale

            @staticmethod
            def backward(_ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
                return gradient * scale

        return Scale.apply(x)


class Refused(Block):
    def __init__(self, function: Any, *args: Any) -> None:
        super().__init__()
        self.apply_function = lambda x: function.apply(x, *(self.linear if arg == "linear" else arg for arg in args))

    def forward(self, x: Tensor) -> Any:
        return self.apply_function(self.linear(x))


@pytest.mark.parametrize(
    ("function", "args", "reason"),
    [
        (Dirty, (), "Dirty, an autograd.Function that writes to an argument"),
        (Unmaterialized, (0.5,), "Unmaterialized, an autograd.Function whose backward differs for missing gradients"),
        (DecidedBackward, (), "the backward of .*DecidedBackward decides by the values of a tensor"),
        (AsksForGradients, (), "the backward of .*AsksForGradients asks for the mode"),
        (RootsTwice, (), "the backward of .*RootsTwice calls .*Root, another autograd.Function"),
        (Checkpointed, (), "torch.autograd.grad, which is not in the table of ops"),
        (OneTooMany, (), "returns 2 gradients for 1 arguments"),
        (KeepsModulesWeight, ("linear",), "KeepsModulesWeight uses a tensor, which is no argument of its forward"),
        (Contiguous, (), "Contiguous keeps what may be an argument itself"),
        (DecidesByNeeds, (), "the forward of .*DecidesByNeeds asks for ctx.needs_input_grad"),
        (WithModule, ("linear",), "the backward of .*WithModule uses attr:linear.bias, which is no argument"),
    ],
)
def test_they_are_refused(function: type[Function], args: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(NotPortableError, match=reason):
        rebuilt_with_programs(Refused(function, *args))


def test_a_backward_with_a_tensor_of_the_caller_is_refused() -> None:
    """The second gradients of the original include the tensor."""
    with pytest.raises(NotPortableError, match="Scale uses a tensor, which is no argument of its forward"):
        rebuilt_with_programs(OfAnotherTensor())


def step_of_a_program() -> tuple[Program, OwnBackward]:
    ((_, recorded),) = record_model(Roots())
    (step,) = (item for item in recorded.program.steps if isinstance(item, OwnBackward))
    return recorded.program, step


def test_a_step_is_the_same_after_a_round_trip() -> None:
    program, step = step_of_a_program()
    assert step.backward.steps
    encoded = encode_program(program)
    assert decode_program(encoded) == program
    check("values", encoded)


DOUBLE = Program(inputs=("g",), steps=(OpCall(name="mul", args=(Ref("g"), 2), out="y"),), result=(Ref("y"),))
GIVEN = OwnBackward(inputs=(Ref("x"),), results=(Ref("h"),), kept=(), backward=DOUBLE, out=("z",))


def run(step: Any) -> Tensor:
    begin = (OpCall(name="mul", args=(Ref("x"), 3), out="h"), step)
    program = Program(inputs=("x",), steps=begin, result=Ref("z"))
    x = torch.ones(2, requires_grad=True)
    Runner(decode_program(encode_program(program))).run(nn.Module(), [x]).sum().backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (replace(GIVEN, backward=replace(DOUBLE, steps=(GIVEN,))), "has the step backward"),
        (replace(GIVEN, backward=replace(DOUBLE, steps=(AttributeRead(path="w", out="y"),))), "has the step attr:w"),
        (replace(GIVEN, backward=replace(DOUBLE, steps=(Guard(value=1, outcome=1),))), "has the step guard"),
        (replace(GIVEN, backward=replace(DOUBLE, result=Ref("y"))), "a gradient for each input"),
        (replace(GIVEN, backward=replace(DOUBLE, result=(Ref("y"), None))), "a gradient for each input"),
        (replace(GIVEN, backward=replace(DOUBLE, result=(Ref("x"),))), "no step makes a value of this name"),
        (replace(GIVEN, backward=replace(DOUBLE, inputs=("g", "x"))), "a gradient for each result"),
        (replace(GIVEN, kept=(Ref("other"),), backward=replace(DOUBLE, inputs=("g", "o"))), "before it exists"),
        (replace(GIVEN, inputs=(3,)), "other than values"),
        (replace(GIVEN, constant=(1,)), "that do not exist"),
        (replace(GIVEN, out=("z", "y")), "a gradient for each result"),
        (
            replace(GIVEN, backward=replace(DOUBLE, steps=(OpCall(name="os.system", args=("ls",), out="y"),))),
            "unknown op",
        ),
    ],
)
def test_a_malformed_backward_is_refused(step: OwnBackward, reason: str) -> None:
    assert run(GIVEN).tolist() == [2, 2]
    with pytest.raises(FormatError, match=reason):
        run(step)


@pytest.mark.parametrize("change", ["args", "kwargs", "out"])
def test_a_malformed_document_is_refused(change: str) -> None:
    program = encode_program(Program(inputs=("x", "h"), steps=(GIVEN,), result=Ref("z")))
    program["steps"][0][change] = {"args": program["steps"][0]["args"][1:], "kwargs": [["a", 1]], "out": "z"}[change]
    with pytest.raises(FormatError):
        decode_program(program)
