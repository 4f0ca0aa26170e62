"""What programs of a hostile server could do to a trainer: kernels with arguments that the kernels trust."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fuzz.harness import child_environment
from model_factory import FormatError, GraphExecutionError
from model_factory.errors import NotPortableError
from model_factory.program import checked_ops
from model_factory.program.checked_ops import ascending
from model_factory.program.codec.programs import decode_program, encode_program
from model_factory.program.ir import Expr, OpCall, OwnBackward, Program, Ref, Size
from model_factory.program.ops import OPS
from model_factory.program.runtime.interpreter import Runner
from model_factory.program.torch_names import lacking

SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)


def run(*steps: OpCall | OwnBackward, **values: Any) -> Any:
    """Run steps as a program does, through its document; the last step makes the result."""
    program = Program(inputs=tuple(values), steps=steps, result=Ref(str(steps[-1].out)))
    document = json.loads(json.dumps(encode_program(program)))
    return Runner(decode_program(document)).run(nn.Identity(), list(values.values()))


def op(name: str, *args: Any, out: str = "y", **kwargs: Any) -> OpCall:
    return OpCall(name=name, args=args, kwargs=kwargs, out=out)


def survives(code: str) -> str:
    """Run code of this module in another process, in which damage to memory is fatal; return what the code prints."""
    source = f"from attacks.test_hostile_programs import *\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", source],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.mark.parametrize("number", [2**31 + 1, -(2**31) - 1, 2**63 - 1, -(2**63), 2**200])
def test_integers_of_a_program_are_bounded(number: int) -> None:
    """``max_pool1d`` of such a stride writes outside of its result; other kernels multiply such sizes."""
    x = torch.ones(1, 1, 20)
    places = [number, [1, number], (number,), slice(None, number), Size(Expr("add", (number, 1)))]
    for place in places:
        document = encode_program(Program(inputs=("x",), steps=(op("identity", 7),), result=Ref("x")))
        text = json.dumps(document).replace("7", json.dumps(_encoded(place)))
        with pytest.raises(FormatError, match="lie between -2147483648 and"):
            decode_program(json.loads(text))
        with pytest.raises(FormatError, match="lie between -2147483648 and"):
            run(op("identity", place), x=x)


def _encoded(place: Any) -> Any:
    if isinstance(place, slice):
        return {"slice": [None, place.stop, None]}
    if isinstance(place, Size):
        return {"size": {"op": ["add", *place.expr.args]}}  # type: ignore[union-attr]
    return {"tuple": list(place)} if isinstance(place, tuple) else place


@pytest.mark.parametrize("number", [2**31 + 1, -(2**63)])
def test_integers_that_a_program_computes_are_bounded(number: int) -> None:
    high, low = divmod(number, 2**31)
    computed = Size(Expr("add", (Expr("mul", (high, 2**31)), low)))
    with pytest.raises(FormatError, match="lie between"):
        run(op("torch.zeros", [computed, 0]))
    with pytest.raises(GraphExecutionError, match="lie between"):
        run(op("torch.Tensor.item", Ref("n"), out="m"), op("torch.zeros", [Ref("m"), 0]), n=torch.tensor(number))
    with pytest.raises(GraphExecutionError, match="lie between"):
        run(*(op("add", Ref(f"n{at}"), Ref(f"n{at}"), out=f"n{at + 1}") for at in range(64)), n0=2**30)


@pytest.mark.parametrize(
    "step",
    [
        op("torch.Tensor.expand", Ref("x"), [2**20, 2**20]),  # takes no memory, and a sum over it has no end
        op("torch.zeros", [2**31, 2**31, 0]),
        op("torch.broadcast_tensors", Ref("x"), Ref("wide")),
        op("torch.meshgrid", Ref("wide"), Ref("wide"), indexing="ij"),
    ],
    ids=lambda step: step.name,
)
def test_views_and_empty_tensors_have_bounded_sizes(step: OpCall) -> None:
    wide = torch.ones(2**18) if "mesh" in step.name else torch.ones(1).expand(2**17, 2**18)
    with pytest.raises(GraphExecutionError, match=r"elements are allowed|parts"):
        run(step, x=torch.ones(1), wide=wide)


@pytest.mark.parametrize(
    "step",
    [
        op("torch.chunk", Ref("x"), 2**31),
        op("torch.tensor_split", Ref("x"), sections=2**31),
        op("torch.Tensor.split", Ref("x"), 1),
        op("torch.split", Ref("x"), split_size_or_sections=1),
        op("torch.unbind", Ref("x")),
        op("torch.combinations", Ref("x"), r=2**31),
        op("torch.special.multigammaln", Ref("x"), 2**31),
        op("mul", [1], 2**31),
        op("mul", "a", 2**31),
        op("add", [1], [2]),
    ],
    ids=lambda step: step.name,
)
def test_the_count_of_results_is_bounded(step: OpCall) -> None:
    with pytest.raises(GraphExecutionError, match=r"at most|cannot compute"):
        run(step, x=torch.ones(1).expand(2**22))


ATTENTION = "torch.nn.functional.scaled_dot_product_attention"
needs_groups = pytest.mark.skipif("torch._grouped_mm" not in OPS, reason="this torch has no products of groups")


DIVISIONS = """div divide floor_divide fmod remainder Tensor.div Tensor.div_ Tensor.divide Tensor.floor_divide
Tensor.fmod Tensor.remainder Tensor.__floordiv__ Tensor.__mod__ Tensor.__ifloordiv__ Tensor.__imod__""".split()
REVERSED = ["Tensor.__rfloordiv__", "Tensor.__rmod__"]


def divide_the_least_integers() -> int:
    """Divide by -1 in every way of the table; return the number of ways."""
    count = 0
    for dtype, name in itertools.product(SIGNED, [*DIVISIONS, *REVERSED]):
        least, one = torch.full((70,), torch.iinfo(dtype).min, dtype=dtype), torch.full((70,), -1, dtype=dtype)
        for modes in (
            [{"rounding_mode": "trunc"}, {"rounding_mode": "floor"}] if "div" in name.split(".")[-1][:3] else [{}]
        ):
            for divisor in (one, one[:1], torch.tensor(-1, dtype=dtype), -1):
                call = (
                    op(f"torch.{name}", Ref("n"), divisor if divisor == -1 else Ref("d"), **modes)
                    if isinstance(divisor, int)
                    else op(f"torch.{name}", Ref("n"), Ref("d"), **modes)
                )
                values = {"n": least.clone()} if isinstance(divisor, int) else {"n": least.clone(), "d": divisor}
                if name in REVERSED:
                    if isinstance(divisor, int):
                        continue
                    call = op(f"torch.{name}", Ref("d"), Ref("n"))
                result = run(call, **values)
                assert result[0].item() in (torch.iinfo(dtype).min, 0), (name, dtype, modes, result[0])
                count += 1
    for dtype, name in itertools.product(SIGNED, ("gcd", "lcm", "Tensor.gcd", "Tensor.lcm")):
        least = torch.full((70,), torch.iinfo(dtype).min, dtype=dtype)
        for other in (-1, 1, 0, 7, 46341, torch.iinfo(dtype).min, torch.iinfo(dtype).max):
            if torch.iinfo(dtype).min <= other <= torch.iinfo(dtype).max:
                number = torch.tensor(other, dtype=dtype)
                for pair in ((least, number), (number, least), (number, number)):
                    run(op(f"torch.{name}", Ref("n"), Ref("d")), n=pair[0], d=pair[1])
    return count


def test_the_least_integer_by_minus_one() -> None:
    """A processor raises SIGFPE. In two's complement, the quotient is the dividend, and the remainder is 0."""
    assert int(survives("print(divide_the_least_integers())")) > 200


def test_divisions_of_other_integers() -> None:
    """The check changes no other result."""
    numbers = torch.tensor([7, -7, 0, -128], dtype=torch.int8)
    for divisor in (torch.tensor([2, -2, 5, 3], dtype=torch.int8), torch.tensor(-1), 3, 2.5, torch.tensor(2.5)):
        for name, args in (("floor_divide", ()), ("remainder", ()), ("fmod", ()), ("div", ())):
            call = op(f"torch.{name}", Ref("n"), Ref("d"), *args)
            expected = getattr(torch, name)(
                numbers[:3], divisor[:3] if isinstance(divisor, torch.Tensor) and divisor.dim() else divisor
            )
            value = divisor[:3] if isinstance(divisor, torch.Tensor) and divisor.dim() else divisor
            result = run(call, n=numbers[:3], d=value)
            assert result.dtype == expected.dtype
            assert torch.equal(result, expected)
    with pytest.raises(RuntimeError, match="ZeroDivision"):
        run(op("torch.floor_divide", Ref("n"), 0), n=numbers)


def samples(dtype: torch.dtype) -> bool:
    """Whether this torch has the kernel for a dtype on the CPU."""
    try:
        torch.nn.functional.grid_sample(torch.zeros(1, 1, 2, 2, dtype=dtype), torch.zeros(1, 1, 1, 2, dtype=dtype))
    except RuntimeError as error:
        return "not implemented for" not in str(error)
    return True


def sample_at_hostile_positions() -> None:
    numbers = [float("inf"), -float("inf"), float("nan"), 1e30, -1e30, 1e300, 3e9, 2.0**31]
    modes = [
        *itertools.product(("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection"), (True, False), (2, 3))
    ]
    for (mode, padding, corners, rank), number, dtype in itertools.product(
        modes, numbers, (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    ):
        if (rank == 3 and mode == "bicubic") or not samples(dtype):
            continue
        image = torch.randn(1, 2, *[3] * rank, dtype=dtype, requires_grad=True)
        grid = torch.full((1, *[5] * rank, rank), number, dtype=torch.float64).to(dtype)
        grid.requires_grad_()
        call = op("torch.nn.functional.grid_sample", Ref("x"), Ref("g"), mode, padding, corners)
        run(call, x=image, g=grid).sum().backward()


def test_positions_of_grid_sample_that_are_no_positions() -> None:
    """The kernels of a CPU, and of the gradient, read where positions that are infinite or no number point."""
    survives("sample_at_hostile_positions()")


def test_positions_of_grid_sample_that_are_positions() -> None:
    """The check changes no result, and no gradient."""
    image = torch.randn(1, 2, 4, 5, requires_grad=True)
    grid = (torch.randn(1, 3, 3, 2) * 2).requires_grad_()
    for mode, padding in itertools.product(("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection")):
        expected = torch.nn.functional.grid_sample(image, grid, mode, padding, align_corners=False)
        found = run(op("torch.nn.functional.grid_sample", Ref("x"), Ref("g"), mode, padding, False), x=image, g=grid)
        assert torch.equal(found, expected)
        wanted = torch.autograd.grad(expected.sum(), [image, grid])
        assert all(map(torch.equal, torch.autograd.grad(found.sum(), [image, grid]), wanted))


def distances_of_no_rows() -> None:
    for columns, p in itertools.product((0, 3), (0.0, 1.0, 2.0, 3.0, float("inf"))):
        x = torch.empty(0, columns, requires_grad=True)
        result = run(op("torch.nn.functional.pdist", Ref("x"), p), x=x)
        assert result.shape == (0,)
        result.sum().backward()
        assert x.grad is not None


def test_distances_of_no_rows() -> None:
    survives("distances_of_no_rows()")


def test_distances_of_rows() -> None:
    x = torch.randn(4, 3)
    assert torch.equal(run(op("torch.nn.functional.pdist", Ref("x")), x=x), torch.nn.functional.pdist(x))


BAGS = [
    *itertools.product(("sum", "mean", "max"), (10**9, -1, -(2**63), 5)),
]


@pytest.mark.parametrize(("mode", "index"), BAGS)
def test_indices_of_an_embedding_bag(mode: str, index: int) -> None:
    """The kernel of the gradient writes where the indices point."""
    table = torch.randn(5, 3, requires_grad=True)
    call = op("torch.nn.functional.embedding_bag", Ref("i"), Ref("w"), Ref("o"), mode=mode)
    bad = torch.tensor([0, 1, index, 2])
    with pytest.raises(GraphExecutionError, match="rows of the weight, 0 to 4"):
        run(call, i=bad, w=table, o=torch.tensor([0, 2]))
    run(call, i=bad.clamp(0, 4), w=table, o=torch.tensor([0, 2])).sum().backward()


BAG = "torch.nn.functional.embedding_bag"
INF = float("inf")
COMPILED = {
    "indices": (op(BAG, Ref("i"), Ref("w"), mode="sum"), (5, 3), [[0, 1]], [[0, 5]], "rows of the weight"),
    "offsets": (op(BAG, Ref("r"), Ref("w"), Ref("i"), mode="sum"), (5, 3), [0, 2], [0, 9], "offsets of an embedding"),
    "matrix": (
        op("torch.linalg.eigvals", Ref("i")),
        (1,),
        [[2.0, 0.0], [0.0, 1.0]],
        [[INF, 0.0], [0.0, 1.0]],
        "finite",
    ),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_steps_check_their_values(name: str) -> None:
    call, shape, good, bad, said = COMPILED[name]
    runner = Runner(Program(inputs=("w", "r", "i"), steps=(call,), result=Ref("y")))
    weight, rows = torch.randn(shape), torch.tensor([0, 1, 2, 3])
    compiled = torch.compile(lambda *values: runner.run(nn.Identity(), list(values)), backend="eager", fullgraph=True)
    assert torch.equal(compiled(weight, rows, torch.tensor(good)), run(call, w=weight, r=rows, i=torch.tensor(good)))
    with pytest.raises(RuntimeError, match=said):
        compiled(weight, rows, torch.tensor(bad))


INDEXED = {
    "embedding_bag": (op("torch.nn.functional.embedding_bag", Ref("i"), Ref("w"), mode="sum"), (5, 3), [[0, 1]]),
    "max_pool2d": (op("torch.nn.functional.max_pool2d", Ref("w"), 2, return_indices=True), (1, 1, 4, 4), [[0]]),
    "ctc_loss": (op("torch.nn.functional.ctc_loss", Ref("w"), Ref("i"), [5], [2]), (5, 1, 4), [[1, 2]]),
}


@pytest.mark.parametrize("name", INDEXED)
def test_indices_that_change_after_the_check(name: str) -> None:
    """``.data`` hides a change from autograd, whose kernel would use the new indices."""
    call, shape, indices = INDEXED[name]
    weight = torch.randn(shape, requires_grad=True)
    values = {"w": weight.log_softmax(-1) if name == "ctc_loss" else weight, "i": torch.tensor(indices)}
    unpack = [op("getitem", Ref("y"), 1, out="j"), op("getitem", Ref("y"), 0, out="z")] if name == "max_pool2d" else []
    changed = Ref("j" if unpack else "i")
    result = run(
        call,
        *unpack,
        op("torch.Tensor.data", changed, out="alias"),
        op("torch.Tensor.fill_", Ref("alias"), 10**9, out="filled"),
        op("identity", Ref("z" if unpack else "y"), out="result"),
        **values,
    )
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


def test_indices_that_a_backward_changes() -> None:
    """The backward of the step runs before the gradient of the embedding."""
    backward = Program(inputs=("g", "i"), steps=(op("torch.Tensor.fill_", Ref("i"), 10**9),), result=(Ref("g"),))
    weight = torch.randn(5, 3, requires_grad=True)
    result = run(
        op("torch.nn.functional.embedding", Ref("i"), Ref("w"), out="e"),
        op("torch.Tensor.data", Ref("i"), out="alias"),
        op("torch.Tensor.mul", Ref("e"), 2, out="h"),
        OwnBackward(inputs=(Ref("e"),), results=(Ref("h"),), kept=(Ref("alias"),), backward=backward, out=("result",)),
        op("identity", Ref("result"), out="y"),
        w=weight,
        i=torch.tensor([[0, 1]]),
    )
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


@pytest.mark.parametrize("device", ["meta", "mkldnn", "xla", "meta:0", "vulkan"])
def test_devices_without_memory(device: str) -> None:
    """Kernels would read a tensor without memory."""
    for call in (
        op("torch.zeros", [2], device=device),
        op("torch.Tensor.to", Ref("x"), device),
        op("identity", [device]),
    ):
        with pytest.raises(FormatError, match="names the device"):
            run(call, x=torch.ones(2))
    with pytest.raises(GraphExecutionError, match="makes a text"):
        run(op("getitem", f"x{device}", slice(1, None)), x=torch.ones(2))
    with pytest.raises(GraphExecutionError, match="cannot compute"):
        run(op("add", device[:2], device[2:]))
    assert run(op("torch.zeros", [2], device="cpu")).device.type == "cpu"


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("name", ["torch.conv", "torch.nn.functional.conv", "torch.conv_transpose"])
def test_strides_and_distances_of_convolutions(name: str, rank: int) -> None:
    """oneDNN generates code for each stride of bfloat16 gradients: an endless loop, or an access outside of tensors."""
    x = torch.randn(1, 4, *[4] * rank, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(4, 4, *[2] * rank, dtype=torch.bfloat16)
    axes = [1] * (rank - 1)
    places = [{"stride": [*axes, 65536]}, {"padding": [*axes, 2**31]}, {"dilation": 2**31}, {"stride": 2**28}]
    places += [{"output_padding": 2**31}] if "transpose" in name else []
    for kwargs in places:
        with pytest.raises(GraphExecutionError, match="of a convolution"):
            run(op(f"{name}{rank}d", Ref("x"), Ref("w"), **kwargs), x=x, w=weight)
    with pytest.raises(GraphExecutionError, match="stride of a convolution or window is 65536"):
        run(op(f"{name}{rank}d", Ref("x"), Ref("w"), None, 65536), x=x, w=weight)
    run(op(f"{name}{rank}d", Ref("x"), Ref("w"), None, 3), x=x, w=weight).sum().backward()


class LargeInteger(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.masked_fill(x > 3, -(2**62))

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": torch.arange(6).reshape(2, 3)}]


def test_a_server_records_no_integer_that_clients_refuse() -> None:
    record_model = pytest.importorskip("model_factory_server.export.exporter").record_model
    with pytest.raises(NotPortableError, match=r"large integer: the integer -4611686018427387904 .*Remedy"):
        record_model(LargeInteger())


def pool_without_numbers() -> None:
    for axes, (dilation, size, stride) in itertools.product((1, 2, 3), ((17, 6, 46341), (4, 3, 1), (5, 4, 50))):
        for name in (f"torch.nn.functional.max_pool{axes}d", f"torch.max_pool{axes}d"):
            x = torch.randn(1, 2, *[size] * axes, requires_grad=True)
            call = op(name, Ref("x"), 2, stride, [1] * axes, dilation, ceil_mode=True)
            with pytest.raises(GraphExecutionError, match="a max pooling of"):
                run(call, x=x).sum().backward()
    x = torch.randn(1, 2, 6, 6, requires_grad=True)
    run(op("torch.nn.functional.max_pool2d", Ref("x"), 3, 2, 1, 2, ceil_mode=True), x=x).sum().backward()


def test_windows_of_a_max_pooling_without_numbers() -> None:
    """The kernel of the gradient writes outside of the input."""
    survives("pool_without_numbers()")


@pytest.mark.skipif(bool(lacking(ATTENTION, ["enable_gqa"])), reason="this torch has no grouped heads")
def test_an_attention_without_heads() -> None:
    """A kernel divides by the number of heads."""
    query, none = torch.randn(1, 2, 3, 4), torch.randn(1, 0, 3, 4)
    for key, value in ((none, query), (query, none), (none, none)):
        call = op(ATTENTION, *map(Ref, "qkv"), enable_gqa=True)
        with pytest.raises(GraphExecutionError, match="without heads"):
            run(call, q=query, k=key, v=value)
    assert run(call, q=query, k=query[:, :1], v=query[:, :1]).shape == query.shape


def test_results_never_resize_a_tensor() -> None:
    """A module's kernels rely on the shapes of its tensors, which are checked at the build."""
    target, x = torch.zeros(2, 3), torch.ones(4)
    with pytest.raises(GraphExecutionError, match=r"shape \(4,\) into a tensor of the shape \(2, 3\)"):
        run(OpCall(name="torch.neg", args=(Ref("x"),), kwargs={"out": Ref("t")}, out="y"), x=x, t=target)
    assert target.shape == (2, 3)
    run(OpCall(name="torch.neg", args=(Ref("x"),), kwargs={"out": Ref("t")}, out="y"), x=torch.ones(2, 3), t=target)
    assert torch.equal(target, -torch.ones(2, 3))


def test_shapes_of_a_module_s_tensors_stay() -> None:
    for name, args in (("transpose_", (0, 1)), ("unsqueeze_", (0,)), ("squeeze_", ())):
        target = torch.zeros(2, 1)
        result = run(op(f"torch.Tensor.{name}", Ref("t"), *args), t=target)
        assert target.shape == (2, 1)
        assert result.shape != (2, 1)


def test_lists_that_hold_themselves_many_times() -> None:
    doubled = [op("identity", [Ref(f"n{at}"), Ref(f"n{at}")], out=f"n{at + 1}") for at in range(40)]
    with pytest.raises(GraphExecutionError, match="more than 1048576 values"):
        run(*doubled, op("torch.tensor", Ref("n40")), n0=torch.ones(()))


def test_axes_have_no_names() -> None:
    with pytest.raises(FormatError, match="named axes"):
        run(op("torch.zeros", [2], names=["a"]))


@pytest.mark.parametrize("name", ["torch.linalg.qr", "torch.linalg.eigvals", "torch.linalg.slogdet", "torch.det"])
def test_numbers_of_matrices_without_elements(name: str) -> None:
    """LAPACK is called for each of them: minutes for a tensor that takes no memory."""
    call = op(name, Ref("x"))
    with pytest.raises(GraphExecutionError, match="2147483648 matrices without elements"):
        run(call, x=torch.empty(2**31, 0, 0))
    run(call, x=torch.empty(3, 0, 0))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("offsets", [[0], [0, 1], [0, 2, 3], []])
def test_included_last_offsets_of_an_embedding_bag(mode: str, offsets: list[int]) -> None:
    """The kernels use bags that nothing set."""
    table = torch.randn(5, 3, requires_grad=True)
    call = op("torch.nn.functional.embedding_bag", *map(Ref, "iwo"), mode=mode, include_last_offset=True)
    with pytest.raises(
        (GraphExecutionError, RuntimeError), match=r"the last of the offsets|include_last_offset|at least 1|no offsets"
    ):
        run(call, i=torch.tensor([0, 1, 2, 3]), w=table, o=torch.tensor(offsets, dtype=torch.int64))
    run(call, i=torch.tensor([0, 1, 2, 3]), w=table, o=torch.tensor([0, 2, 4])).sum().backward()


def stride_beyond_the_input() -> None:
    for axes, kind in itertools.product((1, 2, 3), ("conv", "conv_transpose")):
        size = 1 if kind == "conv_transpose" else 5
        shape = [4, 1024] if kind == "conv" else [1024, 4]
        stride = 1500 if kind == "conv" else 32
        x = torch.randn(1, 1024, *[size] * axes, requires_grad=True)
        weight = torch.randn(*shape, *[3] * axes, requires_grad=True)
        call = op(f"torch.{kind}{axes}d", Ref("x"), Ref("w"), stride=[1] * (axes - 1) + [stride], padding=1)
        run(call, x=x, w=weight).sum().backward()


def test_strides_beyond_the_input_of_a_convolution() -> None:
    """The gradient of oneDNN's kernels writes outside of the input."""
    survives("stride_beyond_the_input()")


@pytest.mark.parametrize("kind", ["conv", "conv_transpose"])
def test_results_of_convolutions_with_strides(kind: str) -> None:
    """A bounded stride gives the same result as the stride of the program."""
    for size, stride, padding, dilation in itertools.product((1, 2, 5, 9), (1, 2, 7, [3, 30]), (0, 1, [2, 0]), (1, 2)):
        x, weight = torch.randn(1, 2, size, size + 1), torch.randn(2, 2, 2, 1)
        arguments = {"stride": stride, "padding": padding, "dilation": dilation}
        try:
            expected = getattr(torch.nn.functional, f"{kind}2d")(x, weight, **arguments)
        except RuntimeError:
            continue
        assert torch.equal(run(op(f"torch.{kind}2d", Ref("x"), Ref("w"), **arguments), x=x, w=weight), expected)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("avg_pool1d", (2**31,)),
        ("lp_pool1d", (2.0, 2, 2**31)),
        ("adaptive_avg_pool1d", (2**31,)),
        ("max_pool1d", (2, 2**30)),
        ("fold", ([4, 5], [2, 2], 1, 2**31)),
    ],
)
def test_numbers_of_windows(name: str, args: Any) -> None:
    x = torch.randn(1, 12, 6)
    with pytest.raises(GraphExecutionError, match="convolution or window"):
        run(op(f"torch.nn.functional.{name}", Ref("x"), *args), x=x)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_strides_beyond_the_kernel_of_a_transposed_convolution(axes: int) -> None:
    """oneDNN's kernels for bfloat16 write outside of the result."""
    x, weight = (torch.randn(1, 2, *[size] * axes, dtype=torch.bfloat16) for size in (2, 3))
    call = op(f"torch.conv_transpose{axes}d", Ref("x"), Ref("w"), stride=48)
    with pytest.raises(GraphExecutionError, match="stride of a convolution or window is 48; at most 32"):
        run(call, x=x[:, :1], w=weight)
    assert run(replace(call, kwargs={"stride": 3}), x=x[:, :1], w=weight).shape[2:] == (6,) * axes


@pytest.mark.parametrize("driver", ["gels", "gelsy", "gelsd", "gelss"])
@pytest.mark.parametrize("shapes", [((3, 3), (3, 0)), ((0, 3), (0, 2)), ((3, 0), (3, 2))])
def test_least_squares_of_nothing(driver: str, shapes: Any) -> None:
    """LAPACK reads beyond the matrices."""
    a, b = map(torch.ones, shapes)
    with pytest.raises(GraphExecutionError, match="least squares problem"):
        run(op("torch.linalg.lstsq", Ref("a"), Ref("b"), driver=driver), a=a, b=b)


def loss_of_expanded_targets() -> None:
    for _ in range(20):
        log_probs = torch.randn(8, 2, 5).log_softmax(2).requires_grad_()
        targets = torch.ones(1, dtype=torch.int64).expand(5)
        call = op("torch.nn.functional.ctc_loss", Ref("p"), Ref("t"), Ref("n"), Ref("m"), reduction="none")
        values = {"p": log_probs, "t": targets, "n": torch.tensor([8, 7]), "m": torch.tensor([3, 2])}
        run(call, **values).sum().backward()


def test_expanded_targets_of_a_ctc_loss() -> None:
    """The kernel reads beyond a tensor whose elements share memory."""
    survives("loss_of_expanded_targets()")


def test_eigenvectors_of_a_real_matrix() -> None:
    """LAPACK does not converge on this matrix; torch then writes a column beyond its result."""
    matrix = torch.eye(5, dtype=torch.float64) + 0.5
    matrix[2, 1] = -1e300
    for real in (matrix, matrix.float(), torch.ones(2, 2, dtype=torch.int64)):
        with pytest.raises(GraphExecutionError, match="may write beyond its result"):
            run(op("torch.linalg.eig", Ref("x")), x=real)
    values, vectors = run(
        op("torch.linalg.eig", Ref("x")), x=torch.tensor([[1.0, 2.0], [-2.0, 1.0]]).to(torch.complex128)
    )
    assert torch.allclose(values.imag.sort().values, torch.tensor([-2.0, 2.0], dtype=torch.float64))
    assert vectors.shape == (2, 2)


def medians_of_expanded_tensors() -> None:
    for name in ("torch.median", "torch.nanmedian", "torch.Tensor.median", "torch.Tensor.nanmedian"):
        for _ in range(100):
            x = torch.rand(1, 2, 1, 2, requires_grad=True)
            median, place = run(op(name, Ref("x"), dim=0), x=x.expand(3, 2, 1, 2))
            assert torch.equal(median, x[0])
            assert place.shape == median.shape
            median.sum().backward()


def test_medians_of_expanded_tensors() -> None:
    """The kernel reads beyond a tensor whose elements share memory."""
    survives("medians_of_expanded_tensors()")


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_an_embedding_bag_without_offsets(mode: str) -> None:
    """The kernel for a padding index reads the first offset."""
    values = {"w": torch.randn(5, 3, requires_grad=True), "o": torch.zeros(0, dtype=torch.int64)}
    call = op(BAG, *map(Ref, "iwo"), mode=mode, padding_idx=1)
    with pytest.raises(GraphExecutionError, match="has 6 indices and no offsets"):
        run(call, i=torch.tensor([2, 0, 3, 0, 1, 1]), **values)
    assert run(call, i=torch.zeros(0, dtype=torch.int64), **values).shape == (0, 3)


def test_a_program_does_not_turn_autocast_on() -> None:
    """Kernels for bfloat16 would run on a trainer that uses float32."""
    for call in (op("set_autocast_enabled", True), op("set_autocast_enabled", enabled=True)):
        with pytest.raises(FormatError, match="may only turn autocast off"):
            run(call)
    run(op("set_autocast_enabled", False, out="off"), op("set_autocast_enabled", out="back"), op("torch.ones", [2]))


@pytest.mark.parametrize("kind", ["conv", "conv_transpose"])
@pytest.mark.parametrize("module", ["torch", "torch.nn.functional"])
def test_strides_and_channels_of_a_convolution(module: str, kind: str) -> None:
    """The gradient of oneDNN's kernels writes outside of the input, as for modules."""
    x, weight = torch.zeros(1, 1024, 6200, requires_grad=True), torch.ones(16, 1024, 1)
    stride = 2048
    if kind == "conv_transpose":
        x, weight, stride = x[..., :3], torch.ones(1024, 1, 512), 512
    with pytest.raises(GraphExecutionError, match="at most 131072 with the 1024 channels"):
        run(op(f"{module}.{kind}1d", Ref("x"), Ref("w"), None, stride), x=x, w=weight)
    with pytest.raises(GraphExecutionError, match="at most 65536 of all strides"):
        run(op("torch.conv2d", Ref("x"), Ref("w"), None, 300), x=torch.zeros(1, 1, 400, 400), w=torch.ones(1, 1, 1, 1))
    run(op("torch.conv1d", Ref("x"), Ref("w"), None, 16), x=torch.zeros(1, 1024, 64), w=torch.ones(4, 1024, 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_swapped_arguments_of_an_embedding_bag(dtype: torch.dtype) -> None:
    """torch takes the weight and the indices in either order, and the check would look at the weight."""
    call = op("torch.nn.functional.embedding_bag", *map(Ref, "wio"), mode="sum", include_last_offset=True)
    with pytest.raises(GraphExecutionError, match="must be integers"):
        run(call, w=torch.zeros(5, 3, dtype=dtype), i=torch.tensor([0] * 15 + [10**9] * 5), o=torch.tensor([0, 15]))


def test_ends_of_groups_are_ends_of_groups_for_a_gpu() -> None:
    """The kernels of CUDA read and write where the ends point; the values of right ends stay."""
    for given in ([2, 4, 6], [0, 0, 0], [6, 6, 6], [1, 1, 4], [0, 6, 6]):
        ends = torch.tensor(given, dtype=torch.int32)
        assert torch.equal(ascending(ends, 6), ends)
    for given in ([4, 2, 6], [-3, 2, 9], [2**31 - 1, -5, 6], [-(2**31), 2**31 - 1, 0]):
        found = ascending(torch.tensor(given, dtype=torch.int32), 6).tolist()
        assert found == sorted(found)
        assert 0 <= found[0] <= found[-1] <= 6


@needs_groups
@pytest.mark.parametrize("shapes", [((6, 8), (3, 8, 4)), ((8, 8), (8, 4)), ((3, 4, 8), (8, 8))], ids=str)
def test_each_product_of_groups_has_ends_within_its_groups(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of rows, of the axis of the sum, or of columns: the kernel of a GPU gets other ends."""
    last = {(2, 3): shapes[0][0], (2, 2): shapes[0][1], (3, 2): shapes[1][1]}[len(shapes[0]), len(shapes[1])]
    seen: list[Tensor] = []

    def kernel(one: Tensor, other: Tensor, offs: Tensor) -> Tensor:
        seen.append(offs)
        return one.sum() + other.sum()

    ends = torch.tensor([2**31 - 1, -5, 7], dtype=torch.int32, device="meta")
    monkeypatch.setattr(checked_ops, "ascending", lambda _ends, most: torch.tensor([most]))
    for kwargs in ({}, {"offs": ends}):
        args = (torch.ones(shapes[0]), torch.ones(shapes[1]), *([] if kwargs else [ends]))
        checked_ops._grouped(kernel, *args, **kwargs)
    assert [item.tolist() for item in seen] == [[last], [last]]


def multiply_hostile_groups() -> None:
    for given in ([4, 2, 6], [-3, 2, 9], [2**31 - 1, -5, 6], [-(2**31), 2**31 - 1, 0], [7, 8, 9]):
        x, w = torch.randn(6, 8, requires_grad=True), torch.randn(3, 8, 4, requires_grad=True)
        ends = torch.tensor(given, dtype=torch.int32)
        run(op("torch._grouped_mm", Ref("x"), Ref("w"), Ref("ends")), x=x, w=w, ends=ends).square().sum().backward()


@needs_groups
def test_ends_of_groups_that_do_not_ascend_harm_no_cpu() -> None:
    survives("multiply_hostile_groups()")
