"""Tables that a forward keeps for its next call: the program computes them anew, if no call shows a difference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_with_programs
from model_factory import GraphExecutionError, NotPortableError
from model_factory.descriptor.codec import encode_programs
from model_factory.program.ir import BufferAssignment, Program, Ref
from model_factory.program.runtime.interpreter import Runner
from model_factory_server.export.exporter import record_model
from support.compare import assert_same, observe
from support.schemas import check

WIDTH = 4


def positions(size: int) -> Tensor:
    return torch.arange(size).float()[:, None].cos()


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.table: Tensor | None = None
        self.longest = 0
        self.register_buffer("positions", torch.zeros(1), persistent=False)
        self.register_buffer("later", None, persistent=False)

    def example_inputs(self) -> Any:
        return [{"x": torch.zeros(3, 5, WIDTH)}]


class OfOneSize(Table):
    def forward(self, x: Tensor) -> Tensor:
        if self.table is None or len(self.table) != x.shape[1]:
            self.table = positions(x.shape[1])
        return self.linear(x + self.table)


class Growing(Table):
    """As rotary embeddings do."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > self.longest:
            self.longest = x.shape[1]
            self.table = positions(self.longest)
        assert self.table is not None
        return self.linear(x + self.table[: x.shape[1]])


class InBuffer(Table):
    """As the relative positions of ConViT."""

    def forward(self, x: Tensor) -> Tensor:
        if len(self.positions) != x.shape[1]:
            self.positions = positions(x.shape[1])
        return self.linear(x + self.positions)


class InLaterBuffer(Table):
    def forward(self, x: Tensor) -> Tensor:
        if self.later is None or len(self.later) != x.shape[1]:
            self.register_buffer("later", positions(x.shape[1]), persistent=False)
        return self.linear(x + self.later)


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = InBuffer(), nn.LayerNorm(WIDTH)

    def example_inputs(self) -> Any:
        return self.inner.example_inputs()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.inner(x))


def test_a_document_assigns_a_buffer() -> None:
    document = encode_programs(record_model(InBuffer()))
    assert b"assign:positions" in document
    check("programs", document)


@pytest.mark.parametrize("block", [OfOneSize, Growing, InBuffer, InLaterBuffer, Around])
def test_a_table_is_computed_anew(block: type[nn.Module]) -> None:
    original = block()
    rebuilt = rebuilt_with_programs(original)
    for number, size in enumerate((5, 5, 7, 3, 7)):
        inputs = {"x": torch.randn(2, size, WIDTH)}
        seen = [observe(module.train(number % 2 == 0), inputs) for module in (rebuilt, original)]
        assert_same(*seen, str(size))
        buffers = [dict(module.named_buffers()) for module in (rebuilt, original)]
        assert_same(*buffers, str(size))
        assert rebuilt.state_dict().keys() == original.state_dict().keys()


class OfTraining(Table):
    """Evaluation reads what training keeps, in a buffer that no state dict has."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.positions = x.detach().mean((0, 1))
        return self.linear(x + self.positions)


class GrowingBuffer(Table):
    """After a long call, a short one leaves the long table in place: a program would leave a short one."""

    def forward(self, x: Tensor) -> Tensor:
        if self.later is None or len(self.later) < x.shape[1]:
            self.register_buffer("later", positions(x.shape[1]), persistent=False)
        return self.linear(x + self.later[: x.shape[1]])

    def example_inputs(self) -> Any:
        return [{"x": torch.zeros(3, size, WIDTH)} for size in (5, 3)]


class Saved(Table):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = x.detach().mean((0, 1))
        return self.linear(x)


class OfMethod(Table):
    """A method without an example could read the table."""

    portable_methods = ("encode",)

    def encode(self, x: Tensor) -> Tensor:
        return self.linear(x)

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None or len(self.table) != x.shape[1]:
            self.table = positions(x.shape[1])
        return self.linear(x + self.table)


@pytest.mark.parametrize(
    ("block", "name"),
    [
        (OfTraining, "OfTraining._buffers.positions"),
        (GrowingBuffer, "GrowingBuffer._buffers.later"),
        (Saved, "Saved._buffers.mean"),
        (OfMethod, "OfMethod.table"),
    ],
)
def test_what_is_no_table_is_refused(block: type[nn.Module], name: str) -> None:
    with pytest.raises(NotPortableError, match=f"the forward assigns {name}"):
        rebuilt_with_programs(block())


@pytest.mark.parametrize(
    "path",
    ["norm.running_mean", "norm.weight", "weight", "saved", "forward", "__class__", "", "norm", "missing.x", "a b"],
)
def test_a_program_assigns_nothing_else(path: str) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)
            self.weight = nn.Parameter(torch.ones(2))
            self.register_buffer("saved", torch.ones(2))

    program = Program(inputs=("x",), steps=(BufferAssignment(path=path, value=Ref("x")),), result=Ref("x"))
    block = Block()
    before = {name: item.clone() for name, item in block.state_dict().items()}
    with pytest.raises(GraphExecutionError, match=r"a program assigns|the module has no child"):
        Runner(program).run(block, [torch.zeros(7)])
    assert_same(dict(block.state_dict()), before)
