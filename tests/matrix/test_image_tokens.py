"""Texts with places for images, as models of vision and language take them: the numbers of values have to fit."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_with_programs
from support.compare import assert_same, observe
from support.recording import InProcessRecorder, ask

IMAGE, WIDTH, PARTS = 49, 8, 4


class Projector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, WIDTH)

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(image).relu()


class Merges(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.projector, self.head = nn.Embedding(50, WIDTH), Projector(), nn.Linear(WIDTH, 3)

    def example_inputs(self) -> Any:
        return [call(2, 9)]

    def forward(self, ids: Tensor, image: Tensor) -> Tensor:
        texts, features = self.embed(ids), self.projector(image)
        places = (ids == IMAGE).unsqueeze(-1).expand_as(texts)
        torch._check_with(  # as a library does
            ValueError,
            texts[places].numel() == features.numel(),
            lambda: f"{places.sum()} places for {features.shape[0]} images",
        )
        return self.head(texts.masked_scatter(places, features))


def call(batch: int, length: int) -> dict[str, Tensor]:
    numbers = torch.Generator().manual_seed(batch + length)
    ids = torch.randint(1, IMAGE - 1, (batch, length), generator=numbers)
    ids[:, :PARTS] = IMAGE
    return {"ids": ids, "image": torch.randn(batch, PARTS, 6, generator=numbers)}


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    original = Merges()
    return original, rebuilt_with_programs(original)


@pytest.mark.parametrize(("batch", "length"), [(2, 9), (3, 9), (2, 13), (1, 4)])
def test_a_program_takes_other_batches_and_lengths(pair: tuple[nn.Module, nn.Module], batch: int, length: int) -> None:
    original, rebuilt = pair
    given = call(batch, length)
    assert_same(observe(rebuilt, given), observe(original, given))


def test_images_that_do_not_fit_are_refused(pair: tuple[nn.Module, nn.Module]) -> None:
    given = call(2, 9)
    given["image"] = given["image"][:1]
    for module in pair:
        with pytest.raises(Exception):  # noqa: B017, PT011  the original's kind of error stays on the server
            module(**given)


class MergesOneByOne(Merges):
    """The number of images is fixed in a program."""

    def forward(self, ids: Tensor, image: Tensor) -> Tensor:
        return torch.stack([super(MergesOneByOne, self).forward(ids[i], image[i]) for i in range(len(image))])


def test_a_call_without_values_has_the_integers_of_the_examples() -> None:
    """Integers 0 and 1 have no place for an image."""
    original = MergesOneByOne()
    rebuilt, recorder = rebuilt_with_programs(original), InProcessRecorder(MergesOneByOne)
    ask(rebuilt, recorder)
    for batch in (2, 3):
        assert_same(observe(rebuilt, call(batch, 9)), observe(original, call(batch, 9)))
    assert recorder.calls == 1


def test_errors_on_the_way_to_a_program_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Torch's C++ code refuses symbols, and torch's Python code takes them."""
    with caplog.at_level(logging.DEBUG, "torch._subclasses.fake_tensor"):
        rebuilt_with_programs(Merges())
    assert not [item for item in caplog.records if item.levelno >= logging.WARNING]
