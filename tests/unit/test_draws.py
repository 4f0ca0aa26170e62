"""Random numbers by several threads: those that one thread draws, in whatever and however many they are drawn."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from model_factory_server import draws
from model_factory_server.twister import STEP, later

FILLS: dict[str, Callable[[torch.Tensor], object]] = {
    "uniform": torch.nn.init.uniform_,
    "uniform, a range": lambda tensor: tensor.uniform_(-3, 2.5),
    "normal": torch.nn.init.normal_,
    "normal, by name": lambda tensor: tensor.normal_(mean=1, std=0.02),
}
SIZES = [0, 15, 2 * STEP, 2 * STEP + 1, 2 * STEP + 15, 2 * STEP + 16, 4 * STEP + 15, 7 * STEP - 16]


def _drawn(seed: int, draw: Callable[[], object]) -> list[torch.Tensor]:
    """What is drawn, and the state of the generator after it."""
    torch.manual_seed(seed)
    torch.empty(seed * 3).normal_()  # an odd number of them leaves one in reserve
    drawn = draw()
    found = [*drawn] if isinstance(drawn, (list, tuple)) else [drawn]
    return [*(item for item in found if isinstance(item, torch.Tensor)), torch.get_rng_state()]


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


@pytest.mark.parametrize(("count", "steps"), [(2, 8), (3, 4), (8, 4)])
def test_what_takes_several_rounds(count: int, steps: int, shared: list[int]) -> None:
    _check_same(lambda: torch.empty((2 * steps * count + 3) * STEP + 20).uniform_(), count=count)
    assert max(shared) == steps * (count - 1) * STEP
    assert shared.count(0) >= 2 * 2  # under two seeds


def test_more_threads_than_are_used(shared: list[int]) -> None:
    with draws.in_threads(100):
        torch.empty(32 * STEP).normal_()
    assert max(shared) == 4 * 7 * STEP


@pytest.mark.parametrize("steps", [1, 2, 28])
@pytest.mark.parametrize("before", [0, 1, 623, 624, 625])
def test_a_generator_anywhere_in_its_words(steps: int, before: int) -> None:
    generator = torch.Generator().manual_seed(3)
    torch.empty(before).uniform_(generator=generator)
    ahead = later(generator.get_state(), steps)
    torch.empty(steps * STEP).uniform_(generator=generator)
    assert torch.equal(ahead, generator.get_state())


def test_initialisers_and_modules(shared: list[int]) -> None:
    _check_same(lambda: nn.init.trunc_normal_(torch.empty(1300, 1200), std=0.02))
    _check_same(lambda: nn.init.orthogonal_(torch.empty(1300 * 100, 12)))
    _check_same(lambda: [*nn.Sequential(nn.Linear(1300, 1200), nn.Linear(7, 9)).state_dict().values()])
    _check_same(lambda: nn.Embedding(1200, 1300).weight.data)
    assert len(shared) >= 16


def test_what_takes_other_draws_is_left_alone(shared: list[int]) -> None:
    size = 4 * STEP
    _check_same(lambda: torch.empty(size, dtype=torch.float64).uniform_())
    _check_same(lambda: torch.empty(size, dtype=torch.float16).normal_())
    _check_same(lambda: torch.empty(size // 1024, 1024).t().normal_())
    _check_same(lambda: torch.empty(2 * size)[::2].uniform_().clone())
    _check_same(lambda: torch.empty(size).uniform_(generator=torch.Generator().manual_seed(1)))
    with torch.inference_mode():
        _check_same(lambda: torch.empty(size).uniform_())
    assert not shared


def test_views_and_parameters(shared: list[int]) -> None:
    size = 4 * STEP
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


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: torch.empty(4 * STEP).normal_(std=-1),
        lambda: torch.empty(4 * STEP).uniform_(2, 1),
        lambda: nn.Parameter(torch.empty(4 * STEP)).uniform_(),
        lambda: torch.empty(4 * STEP).uniform_(nothing=1),
        lambda: torch.empty(STEP, 1).expand(STEP, 4).normal_(),
        lambda: torch.func.vmap(lambda x: x.normal_())(torch.empty(1, 4 * STEP)),
    ],
)
def test_errors_are_torchs(wrong: Callable[[], object]) -> None:
    said, states = [], []
    for count in (1, 2):
        torch.manual_seed(0)
        with draws.in_threads(count), pytest.raises((RuntimeError, TypeError)) as caught:
            wrong()
        said.append(f"{caught.type} {caught.value}")
        states.append(torch.get_rng_state())
    assert said[0] == said[1]
    assert torch.equal(*states)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse CSR tensor support")
def test_transforms_and_other_kinds_of_tensors() -> None:
    large = torch.zeros(2, 4 * STEP)
    _check_same(lambda: torch.func.vmap(lambda x: x.normal_(), randomness="different")(large).clone())
    _check_same(lambda: torch.func.functionalize(lambda x: x.normal_() + 0)(large))
    _check_same(lambda: torch.nested.nested_tensor([torch.zeros(4), torch.zeros(5)]).normal_().to_padded_tensor(0))
    _check_same(lambda: torch.eye(3).to_sparse_csr().normal_().values())


class NoNoise(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.normal_.default:
            return args[0].zero_()
        return func(*args, **(kwargs or {}))


def test_what_looks_at_every_op_sees_it() -> None:
    with draws.in_threads(2), NoNoise():
        assert not torch.ones(4 * STEP).normal_().any()


def test_a_child_that_is_forked() -> None:
    torch.manual_seed(1)
    expected = torch.empty(4 * STEP).normal_().sum().item()
    with draws.in_threads(2):
        torch.empty(4 * STEP).normal_()
        receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)

        def draw() -> None:
            torch.manual_seed(1)
            sender.send(torch.empty(4 * STEP).normal_().sum().item())

        child = multiprocessing.get_context("fork").Process(target=draw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12 on, about threads
            child.start()
        assert receiver.poll(60)
        assert receiver.recv() == expected
        child.join()


def test_threads_of_a_constructor_draw_different_numbers(shared: list[int]) -> None:
    with draws.in_threads(2), ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda _: torch.empty(4 * STEP).normal_()[:100], range(4)))
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(drawn, 2))
    assert not shared


def test_no_room_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    _check_same(lambda: torch.empty(4 * STEP).normal_())


def test_torch_is_as_before_at_the_end() -> None:
    before = torch.Tensor.uniform_
    with pytest.raises(ZeroDivisionError), draws.in_threads(2):
        raise ZeroDivisionError
    assert torch.Tensor.uniform_ is before
    assert "uniform_" not in vars(torch.Tensor)


def test_what_others_put_there_is_left() -> None:
    def theirs(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.zero_()

    try:
        with draws.in_threads(2):
            torch.Tensor.normal_ = theirs  # type: ignore[assignment]
        assert torch.Tensor.normal_ is theirs
        with draws.in_threads(2):
            assert torch.Tensor.normal_ is theirs
            assert "uniform_" not in vars(torch.Tensor)
    finally:
        del torch.Tensor.normal_  # monkeypatch would put back what was there meanwhile, which is not torch's


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
    monkeypatch.setattr(draws, "is_as_expected", draws.is_as_expected.__wrapped__)
    with draws.in_threads(2):
        assert "uniform_" not in vars(torch.Tensor)
