"""Checks in forwards: conditions on sizes, guards on values, and messages without any effect."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_with_programs
from model_factory import CallSignatureError
from model_factory.program.runtime.program_module import ProgramModule
from support.compare import assert_same, observe

WIDTH = 4
LOG = logging.getLogger(__name__)
_assert = torch._assert


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": tensor(2, 6)}]


class AssertsSizes(Block):
    def forward(self, x: Tensor) -> Tensor:
        batch, seq, width = x.shape
        torch._assert(width == WIDTH, f"a width of {WIDTH} is wanted, not ({width})")
        _assert(seq % 2 == 0, "a length of {} is odd".format(seq))  # noqa: UP032
        torch._assert(seq > 1, message="batch %s, length %s" % (batch, seq))  # noqa: UP031
        _assert(True, "shape " + str(x.shape) + f" half {seq / 2:.1f} {x.shape!r}")
        return self.linear(x)


class ChecksSizes(Block):
    def forward(self, x: Tensor) -> Tensor:
        seq = x.shape[1]
        torch._check(seq % 2 == 0, lambda: f"a length of {seq} is odd")
        assert seq > 1, f"a length of {seq}"
        return self.linear(x)


def check(condition: Any, message: Any, kind: type[Exception] = ValueError) -> None:
    """Pass a message on, as functions of libraries do."""
    if not callable(message):

        def text() -> Any:
            return message

    else:
        text = message
    if isinstance(condition, Tensor):
        torch._check_tensor_all_with(kind, condition, text)
    else:
        torch._check_with(kind, condition, text)


class ChecksByAFunction(Block):
    def forward(self, x: Tensor) -> Tensor:
        seq = x.shape[1]
        check(seq % 2 == 0, f"a length of {seq} is odd")
        check(seq > 1, message=f"a length of {seq}, values {x}")
        return self.linear(x)


class WarnsOfSizes(Block):
    def forward(self, x: Tensor) -> Tensor:
        LOG.debug(f"{x.shape}")  # noqa: G004
        LOG.info("%s", str(x.shape[0]))
        if x.shape[1] % 2:
            raise ValueError(f"a length of {x.shape[1]} is odd")
        if x.shape[1] == 1:
            warnings.warn(f"a length of {x.shape[1]}", stacklevel=1)
        return self.linear(x)


ON_SIZES = [AssertsSizes, ChecksSizes, ChecksByAFunction, WarnsOfSizes]


def tensor(*sizes: int) -> Tensor:
    return torch.rand(*sizes, WIDTH, generator=torch.Generator().manual_seed(sum(sizes))) + 0.1


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("block", ON_SIZES)
def test_a_check_of_sizes_is_a_condition(block: type[Block], training: bool) -> None:
    original = block()
    rebuilt = rebuilt_with_programs(original)
    assert isinstance(rebuilt, ProgramModule)
    for module in (original, rebuilt):
        module.train(training)
    for sizes in [(2, 6), (5, 8), (1, 2), (3, 12)]:
        inputs = {"x": tensor(*sizes)}
        assert_same(observe(rebuilt, inputs), observe(original, inputs), str(sizes))
    assert len(rebuilt._programs) == 1
    assert [step for step in rebuilt._programs[0].step_texts if "linear" not in step[0]] == []
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        original(tensor(2, 5))
    with pytest.raises(CallSignatureError):
        rebuilt(tensor(2, 5))


class AssertsValues(Block):
    def forward(self, x: Tensor) -> Tensor:
        torch._assert((x >= 0).all(), f"the least is {x.min()}")
        return self.linear(x)


class ChecksValues(Block):
    def forward(self, x: Tensor) -> Tensor:
        check(x >= 0, f"the least is {x.min()}")
        return self.linear(x)


class ChecksItems(Block):
    def forward(self, x: Tensor) -> Tensor:
        count = (x >= 0).sum()
        check(count.item() == x.numel(), f"only {count}")
        return self.linear(x)


class CountsChosen(Block):
    def forward(self, x: Tensor) -> Tensor:
        chosen = x[x >= 0]
        check(chosen.numel() == x.numel(), f"only {chosen.numel()} of {x.numel()}")
        return self.linear(x)


@pytest.mark.parametrize("block", [AssertsValues, ChecksValues, ChecksItems, CountsChosen])
def test_a_check_of_values_is_a_guard(block: type[Block]) -> None:
    original = block()
    rebuilt = rebuilt_with_programs(original)
    for sizes in [(2, 6), (5, 7), (1, 1)]:
        inputs = {"x": tensor(*sizes)}
        assert_same(observe(rebuilt, inputs), observe(original, inputs), str(sizes))
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        original(-tensor(2, 6))
    with pytest.raises(CallSignatureError):
        rebuilt(-tensor(2, 6))


def remember(condition: bool, message: str) -> str:
    """Return the message: the caller may decide by the text."""
    torch._assert(condition, message)
    return message


class DecidesByText(Block):
    def forward(self, x: Tensor) -> Tensor:
        found = remember(x.shape[1] > 1, f"{x.shape[1]}")
        return self.linear(x) * (2 if found == "6" else 3)


class DecidesByTextInMessage(Block):
    def forward(self, x: Tensor) -> Tensor:
        factors = {"6": 2}
        torch._assert(True, f"{factors.setdefault(f'{x.shape[1]}', 3)}")
        return self.linear(x) * len(factors)


@pytest.mark.parametrize("block", [DecidesByText, DecidesByTextInMessage])
def test_a_text_with_another_use_decides_by_the_size(block: type[Block]) -> None:
    original = block()
    rebuilt = rebuilt_with_programs(original)
    for batch in (2, 5):
        inputs = {"x": tensor(batch, 6)}
        assert_same(observe(rebuilt, inputs), observe(original, inputs), str(batch))
    with pytest.raises(CallSignatureError):
        rebuilt(tensor(2, 7))
