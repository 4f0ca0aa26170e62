"""Random numbers by several threads: those that one thread draws, in whatever and however many they are drawn."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from model_factory_server import draws
from model_factory_server.twister import MOST_STEPS, STEP, later

FILLS: dict[str, Callable[[torch.Tensor], object]] = {
    "uniform": torch.nn.init.uniform_,
    "uniform, a range": lambda tensor: tensor.uniform_(-3, 2.5),
    "normal": torch.nn.init.normal_,
    "normal, by name": lambda tensor: tensor.normal_(mean=1, std=0.02),
    "truncated": nn.init.trunc_normal_,
    "orthogonal": lambda tensor: nn.init.orthogonal_(tensor.view(-1, 16)) if tensor.numel() % 16 == 0 else None,
}
SIZES = [0, 1, 15, STEP - 1, STEP, STEP + 1, STEP + 15, STEP + 16, 2 * STEP + 17, 5 * STEP + 7, 9 * STEP]


def _drawn(seed: int, draw: Callable[[], object]) -> list[torch.Tensor]:
    """What is drawn, and what is drawn after it."""
    torch.manual_seed(seed)
    torch.empty(seed).normal_()  # an odd number of them leaves one in reserve
    drawn = draw()
    found = [*drawn] if isinstance(drawn, (list, tuple)) else [drawn]
    return [*(item for item in found if isinstance(item, torch.Tensor)), torch.empty(3).normal_(), torch.rand(2000)]


def _check_same(draw: Callable[[], object], *, count: int = 3) -> None:
    for seed in range(2):
        alone = _drawn(seed, draw)
        with draws.in_threads(count):
            together = _drawn(seed, draw)
        assert len(alone) == len(together)
        assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many draws ahead threads began."""
    begun: list[int] = []
    monkeypatch.setattr(draws, "later", lambda state, steps: begun.append(steps * STEP) or later(state, steps))
    return begun


def test_this_torch_is_as_expected() -> None:
    assert draws.is_as_expected()


@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize("count", [2, 3])
def test_all_sizes(name: str, count: int) -> None:
    for size in SIZES:
        _check_same(lambda size=size: (tensor := torch.zeros(size), FILLS[name](tensor)), count=count)


def test_threads_begin_ahead(shared: list[int]) -> None:
    with draws.in_threads(2):
        torch.empty(3 * STEP, 2).normal_()
    assert sorted(shared) == [0, 3 * STEP]


def test_what_is_larger_than_is_known_ahead(shared: list[int]) -> None:
    _check_same(lambda: torch.empty((2 * MOST_STEPS + 1) * STEP + 20).uniform_(), count=2)
    assert max(shared) == MOST_STEPS * STEP


@pytest.mark.parametrize("steps", [1, 2, MOST_STEPS])
@pytest.mark.parametrize("before", [0, 1, 623, 624, 625])
def test_a_generator_anywhere_in_its_words(steps: int, before: int) -> None:
    generator, other = torch.Generator().manual_seed(3), torch.Generator()
    torch.empty(before).uniform_(generator=generator)
    other.set_state(later(generator.get_state(), steps))
    torch.empty(steps * STEP).uniform_(generator=generator)
    assert torch.equal(torch.rand(2000, generator=generator), torch.rand(2000, generator=other))


def test_modules() -> None:
    def made() -> list[torch.Tensor]:
        return [*nn.Sequential(nn.Linear(900, 1200), nn.Embedding(1200, 900), nn.Linear(7, 9)).state_dict().values()]

    _check_same(made)


def test_what_takes_other_draws_is_left_alone(shared: list[int]) -> None:
    size = 3 * STEP
    _check_same(lambda: torch.empty(size, dtype=torch.float64).uniform_())
    _check_same(lambda: torch.empty(size, dtype=torch.float16).normal_())
    _check_same(lambda: torch.empty(size // 512, 1024).t().normal_())
    _check_same(lambda: torch.empty(2 * size)[::2].uniform_().clone())
    _check_same(lambda: torch.empty(size).uniform_(generator=torch.Generator().manual_seed(1)))
    with torch.inference_mode():
        _check_same(lambda: torch.empty(size).uniform_())
    assert not shared


def test_views_and_parameters(shared: list[int]) -> None:
    size = 2 * STEP
    whole = torch.zeros(2 * size)
    _check_same(lambda: whole[10 : 10 + size].normal_().clone())
    _check_same(lambda: nn.init.normal_(nn.Parameter(torch.empty(4, size // 4))).data)
    assert shared
    weight = nn.Parameter(torch.empty(size))
    before = weight._version
    with draws.in_threads(2):
        assert nn.init.uniform_(weight) is weight
    assert weight._version > before
    assert weight.is_leaf


def test_errors_are_torchs() -> None:
    for wrong, said in (
        (lambda: torch.empty(2 * STEP).normal_(std=-1), "std"),
        (lambda: torch.empty(2 * STEP).uniform_(2, 1), "from"),
        (lambda: nn.Parameter(torch.empty(2 * STEP)).uniform_(), "leaf"),
        (lambda: torch.empty(2 * STEP).uniform_(nothing=1), "argument"),
    ):
        with draws.in_threads(2), pytest.raises((RuntimeError, TypeError), match=said):
            wrong()


def test_torch_is_as_before_at_the_end() -> None:
    before = torch.Tensor.uniform_
    with pytest.raises(ZeroDivisionError), draws.in_threads(2):
        raise ZeroDivisionError
    assert torch.Tensor.uniform_ is before
    assert "uniform_" not in vars(torch.Tensor)


def test_one_thread_changes_nothing() -> None:
    with draws.in_threads(1):
        assert "uniform_" not in vars(torch.Tensor)


@pytest.mark.parametrize("broken", ["words", "raises"])
def test_another_torch_is_noticed(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(state: torch.Tensor, steps: int) -> torch.Tensor:
        raise ValueError(state, steps)

    monkeypatch.setattr(draws, "later", raising if broken == "raises" else lambda state, _steps: state)
    state = torch.get_rng_state()
    assert not draws.is_as_expected.__wrapped__()
    assert torch.equal(torch.get_rng_state(), state)
