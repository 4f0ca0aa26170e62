"""A call described without values: the server chooses constants and integers, and records what it finds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from model_factory.documents import encode_document
from model_factory.errors import CallSignatureError, FormatError
from model_factory.program.example_call import decode_call, encode_call_without_values
from model_factory.program.recorded_program import RecordedProgram
from model_factory_server.export.exporter import record_model
from model_factory_server.export.trainer_call import record_programs


def record(module: nn.Module, **arguments: Any) -> tuple[RecordedProgram, ...]:
    programs = record_programs(module, "", decode_call(encode_call_without_values(arguments)), {"": True})
    return tuple(item for _, item in programs)


class FromOne(nn.Module):
    """Refuses an integer of 0."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least = least
        self.table = nn.Parameter(torch.randn(1, 3))

    def forward(self, ids: Tensor) -> Tensor:
        return functional.embedding(ids - self.least, self.table)


@pytest.mark.parametrize("least", [0, 1])
def test_integers_are_0_and_1_or_only_one_of_them(least: int) -> None:
    assert len(record(FromOne(least), ids=torch.tensor([12345]))) == 1


def test_integers_that_fit_no_choice_are_refused() -> None:
    with pytest.raises(CallSignatureError, match="the forward refused the call"):
        record(FromOne(2), ids=torch.tensor([12345]))


class Flags(nn.Module):
    def forward(self, x: Tensor, options: dict[str, Any]) -> Tensor:
        if options["negate"] and options["square"]:
            raise ValueError("one of both")
        return -x if options["negate"] else x.square() if options["square"] else x


def test_each_combination_of_truth_values_that_the_forward_accepts_is_recorded() -> None:
    options = {"negate": True, "square": False, "name": "secret"}
    found = record(Flags(), x=torch.ones(2), options=options)
    assert [item.call_signature[1][1] for item in found] == [
        ("dict", (("negate", ("const", "bool", one)), ("square", ("const", "bool", two)), ("name", ("any", "str"))))
        for one, two in ((False, False), (False, True), (True, False))
    ]


class Many(nn.Module):
    def forward(self, x: Tensor, **flags: bool) -> Tensor:
        return x * sum(flags.values())


def test_many_truth_values_are_not_all_combined() -> None:
    flags = {f"flag{index}": True for index in range(40)}
    assert len(record(Many(), x=torch.ones(2), flags=flags)) == 8


class Chain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for bound in range(3):
            if x.sum() > bound:
                x = x * 2
        return x

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": torch.zeros(3)}]


def test_all_branches_that_inputs_reach_are_recorded_at_the_build() -> None:
    programs = record_model(Chain())
    outcomes = {item.program.outcomes() for _, item in programs}
    assert len(outcomes) == len(programs)
    assert {(False, False, False), (True, True, True)} <= outcomes
    assert {item.program.outcomes() for item in record(Chain(), x=torch.zeros(3))} == outcomes


@pytest.mark.parametrize("kind", ["tensor", "list", "bytes", "NoneType", 3, None])
def test_kinds_without_a_constant_are_refused(kind: Any) -> None:
    document = {"call_signature": [["x", {"any": kind}]], "tensors": [], "without_values": True}
    with pytest.raises(FormatError):
        decode_call(encode_document(document))


class Lengths(nn.Module):
    """Refuses a length of 0 by a decision."""

    def forward(self, lengths: Tensor) -> Tensor:
        if not torch.all(lengths > 0):
            raise ValueError("a length of 0")
        return lengths * 2


@pytest.mark.parametrize("drawn", [[0, 0], [0, 1], [1, 1]])
def test_drawn_integers_that_reach_no_result_are_replaced_by_ones(drawn: list[int]) -> None:
    call = decode_call(encode_call_without_values({"lengths": torch.tensor([5, 2])}))
    arguments = {"lengths": torch.tensor(drawn)}
    (_, recorded), *_ = record_programs(Lengths(), "", replace(call, arguments=arguments), {"": True})
    assert recorded.program.outcomes() == (True,)
