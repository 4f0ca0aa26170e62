"""Tensors of no module, arrays and scalars of NumPy, and older forms of calls: constants and ops of programs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_with_programs
from model_factory import NotPortableError
from model_factory.errors import FormatError
from model_factory.limits import MAX_CONSTANT_BYTES
from model_factory.program.codec.constants import constant_step, constant_tensor
from model_factory.program.codec.programs import decode_program, encode_program
from model_factory.program.ir import Constant, OpCall, Program, Ref
from model_factory.program.runtime.interpreter import Runner
from model_factory.program.runtime.program_module import ProgramModule
from support.compare import assert_same, observe

WIDTH = 4
TABLE = torch.tensor([0.1, -0.0, float("inf"), 1e-45])
ARRAY = np.linspace(0, 1, WIDTH)
LARGE = torch.zeros(MAX_CONSTANT_BYTES // 4 + 1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.tables: list[Any] = [torch.rand(WIDTH), {"a": torch.arange(WIDTH)}]
        self.array = np.linspace(0, 1, WIDTH).astype(np.float32)
        self.rate = np.float32(0.3)
        self.count = np.int64(3)
        self.steps = 5
        self.register_buffer("decay", torch.cumprod(1 - torch.linspace(1e-4, 0.02, 100), 0))

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": tensor(2, 6)}]


def tensor(*sizes: int) -> Tensor:
    return torch.rand(*sizes, WIDTH, generator=torch.Generator().manual_seed(sum(sizes)))


def block(forward: Callable[[Any, Tensor], Any]) -> nn.Module:
    return type(forward.__name__, (Block,), {"forward": forward})()


def of_a_list(self: Any, x: Tensor) -> Any:
    return self.linear(x) * self.tables[0] + self.tables[1]["a"], self.tables[0]


def of_a_global(self: Any, x: Tensor) -> Any:
    return self.linear(x.clamp(min=0.5)) / TABLE[:2].repeat(2), TABLE


def of_an_array(self: Any, x: Tensor) -> Any:
    y = self.linear(x - torch.as_tensor(self.array, dtype=x.dtype, device=x.device))
    return y + torch.tensor(ARRAY).to(x), torch.tensor(self.rate), torch.tensor([self.rate]), x.new_tensor(ARRAY)


def of_python(self: Any, x: Tensor) -> Any:
    y = self.linear(x) + torch.FloatTensor([1, 2, 3, 4]) + torch.from_numpy(np.cos(torch.arange(WIDTH).numpy())).to(x)
    return y, torch.autograd.Variable(y), torch.Tensor(2, 3).fill_(2), torch.LongTensor([1, 2]).add_(1)


def of_numbers(self: Any, x: Tensor) -> Any:
    return self.linear(x * self.rate)[..., : self.count] / np.sqrt(x.shape[1]) + torch.full((1,), self.rate)


def loop(self: Any, x: Tensor) -> Any:
    """A sampling loop over steps from a table of numbers."""
    steps = torch.linspace(99, 0, self.steps).long().tolist()
    y = torch.randn_like(x)
    for now, after in zip(steps, [*steps[1:], None], strict=True):
        z = y - self.linear(y) * (1 - self.decay[now]).sqrt()
        scale = self.decay.new_tensor(1.0) if after is None else self.decay[after]
        y = z * scale.sqrt() + float(TABLE[0])
    return y + x


def decides(self: Any, x: Tensor) -> Any:
    if (TABLE > 0.05).any() and TABLE[0].item() < 1 and 0.5 not in torch.arange(3):
        return self.linear(x)
    return x


def contains(self: Any, x: Tensor) -> Any:
    return self.linear(x) if 2.0 in x else -self.linear(x)


def types(self: Any, x: Tensor) -> Any:
    y = self.linear(x).type(dtype=torch.float64).type("torch.FloatTensor").type(torch.DoubleTensor)
    return y.type(x.type()), x.type(torch.LongTensor), x.asarray if hasattr(x, "asarray") else torch.asarray(x)


def news(self: Any, x: Tensor) -> Any:
    y = self.linear(x) + x.new(x.shape[0], 1, WIDTH).fill_(2) + x.new([1, 2, 3, 4])
    return y, x.new(x.shape).zero_(), torch.asarray([1.0, 2.0]), torch.asarray(ARRAY)


FORWARDS = [of_a_list, of_a_global, of_an_array, of_python, of_numbers, loop, decides, contains, types, news]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("forward", FORWARDS)
def test_constants_equal_the_original(forward: Callable[..., Any], training: bool) -> None:
    original = block(forward)
    rebuilt = rebuilt_with_programs(original)
    assert isinstance(rebuilt, ProgramModule)
    for module in (original, rebuilt):
        module.train(training)
    for sizes in [(2, 6), (5, 3), (1, 1)]:
        inputs = {"x": tensor(*sizes)}
        for _ in range(2):  # the constants are as before at the second call
            assert_same(observe(rebuilt, inputs), observe(original, inputs), str(sizes))


@pytest.mark.parametrize("forward", [of_a_list, of_an_array, loop])
def test_constants_keep_their_dtype_in_a_converted_model(forward: Callable[..., Any]) -> None:
    original = block(forward)
    rebuilt = rebuilt_with_programs(original).double()
    original = copy.deepcopy(original).double()
    inputs = {"x": tensor(3, 2).double()}
    assert_same(observe(rebuilt, inputs), observe(original, inputs))


def test_constants_in_compiled_and_exported_programs() -> None:
    original = block(of_a_list)
    rebuilt = rebuilt_with_programs(original)
    inputs = tensor(2, 6)
    compiled = torch.compile(rebuilt, fullgraph=True, backend="eager")
    assert_same(compiled(inputs), original(inputs))
    exported = torch.export.export(rebuilt, (inputs,), strict=False).module()
    assert_same(exported(inputs), original(inputs))


def writes_a_list(self: Any, x: Tensor) -> Any:
    self.tables[0].add_(1)
    return self.linear(x) * self.tables[0]


def writes_a_view(self: Any, x: Tensor) -> Any:
    table = torch.from_numpy(self.array)
    y = self.linear(x) * table
    table[1:] += 1
    return y


def writes_an_array(self: Any, x: Tensor) -> Any:
    y = self.linear(x) * torch.from_numpy(self.array)
    self.array += 1
    return y


def writes_first(self: Any, x: Tensor) -> Any:
    self.array += 1
    return self.linear(x) * torch.from_numpy(self.array)


def writes_in_training(self: Any, x: Tensor) -> Any:
    y = self.linear(x) * torch.tensor(self.array)
    if self.training:
        self.array += 1
    return y


def too_large(self: Any, x: Tensor) -> Any:
    return self.linear(x) * LARGE[:1]


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (writes_a_list, "writes to a tensor"),
        (writes_a_view, "writes to a tensor"),
        (writes_an_array, "changes the values"),
        (writes_first, "does not reproduce the forward"),
        (writes_in_training, "does not reproduce the forward|changes the values"),
        (too_large, f"at most {MAX_CONSTANT_BYTES} bytes"),
    ],
)
def test_changing_and_large_tensors_are_refused(forward: Callable[..., Any], reason: str) -> None:
    with pytest.raises(NotPortableError, match=reason):
        rebuilt_with_programs(block(forward))


def test_values_from_inputs_are_no_constants() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        table = torch.zeros(3)
        table[1:].add_(x.sum())
        return self.linear(x) * table[1].item()

    original = block(forward)
    rebuilt = rebuilt_with_programs(original)
    for scale in (1, 2):
        inputs = {"x": tensor(2, 6) * scale}
        assert_same(observe(rebuilt, inputs), observe(original, inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64, torch.complex64])
def test_a_constant_has_the_same_bits_after_the_way(dtype: torch.dtype) -> None:
    values = torch.tensor([[0.0, -0.0, 1.5], [float("nan"), float("-inf"), 3e38]]).to(dtype)
    program = Program(inputs=(), steps=(constant_step(values, "v0"),), result=Ref("v0"))
    arrived = decode_program(encode_program(program))
    assert arrived == program
    found = Runner(arrived).run(nn.Module(), [])
    assert (found.dtype, found.shape) == (dtype, values.shape)
    assert torch.equal(found.view(-1).view(torch.uint8), values.view(-1).view(torch.uint8))


def test_a_step_that_writes_to_a_constant_leaves_the_next_run_alone() -> None:
    write = OpCall(name="torch.Tensor.add_", args=(Ref("v0"), 1), out="v1")
    runner = Runner(Program(inputs=(), steps=(constant_step(torch.zeros(2), "v0"), write), result=Ref("v0")))
    assert [runner.run(nn.Module(), []).tolist() for _ in range(2)] == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    "step",
    [
        Constant(dtype="float32", shape=(2,), data=bytes(4)),
        Constant(dtype="float32", shape=(-1,), data=bytes(4)),
        Constant(dtype="float32", shape=(-1, -1), data=bytes(4)),
        Constant(dtype="float32", shape=(2**30, 2**30, 0), data=b""),
        Constant(dtype="float32", shape=(1,) * 64, data=bytes(4)),
        Constant(dtype="qint8", shape=(1,), data=bytes(1)),
        Constant(dtype="channels_last", shape=(1,), data=bytes(1)),
        Constant(dtype="uint8", shape=(MAX_CONSTANT_BYTES + 1,), data=bytes(MAX_CONSTANT_BYTES + 1)),
    ],
)
def test_a_hostile_constant_is_refused(step: Constant) -> None:
    with pytest.raises(FormatError):
        Runner(Program(inputs=(), steps=(step,), result=None))


def test_truth_values_of_other_bytes_are_true() -> None:
    assert constant_tensor(Constant(dtype="bool", shape=(3,), data=b"\x00\x02\xff")).tolist() == [False, True, True]


@pytest.mark.parametrize("args", [[[2], "AAA"], [[2], "%%%%"], [[2]], [[True], "AA=="], [[2.0], "AA=="], ["x", "AA=="]])
def test_a_malformed_constant_is_refused(args: list[Any]) -> None:
    step = {"call": "constant:uint8", "args": args, "kwargs": [], "out": "v0"}
    with pytest.raises(FormatError):
        decode_program({"inputs": [], "steps": [step], "result": None})
