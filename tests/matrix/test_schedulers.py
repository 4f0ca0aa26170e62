"""Objects with tables of tensors beside the modules, as the noise schedulers of diffusion policies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_with_programs
from model_factory import NotPortableError
from support.compare import assert_same

STEPS, WIDTH = 100, 4


class Scheduler:
    """Moves its table to the device of each call, as diffusers does."""

    def __init__(self) -> None:
        self.products = torch.linspace(1, 0.1, STEPS).cumprod(0)
        self.timesteps = torch.arange(STEPS).flip(0)

    def add_noise(self, x: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        self.products = self.products.to(device=x.device)
        scale = self.products.to(dtype=x.dtype)[steps].sqrt()[:, None]
        return scale * x + (1 - scale**2).sqrt() * noise

    def set_timesteps(self, count: int) -> None:
        self.timesteps = torch.linspace(STEPS - 1, 0, count).long()


class Diffusion(nn.Module):
    portable_methods: tuple[str, ...] = ("compute_loss", "sample")

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.scheduler = Scheduler()

    def compute_loss(self, x: Tensor) -> Tensor:
        noise, steps = torch.randn_like(x), torch.randint(0, STEPS, (x.shape[0],))
        return (self.linear(self.scheduler.add_noise(x, noise, steps)) - noise).square().mean()

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        self.scheduler.set_timesteps(5)
        y = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        for step in self.scheduler.timesteps:
            y = y - self.linear(y) * self.scheduler.products[step]
        return y

    def example_inputs(self) -> Any:
        return {"compute_loss": [{"x": torch.zeros(3, WIDTH)}], "sample": [{"x": torch.zeros(3, WIDTH)}]}


@pytest.mark.parametrize("method", ["compute_loss", "sample"])
def test_a_scheduler_is_used_as_in_the_original(method: str) -> None:
    original = Diffusion()
    rebuilt = rebuilt_with_programs(original)
    assert type(original.scheduler.products) is Tensor, "a recording leaves the scheduler as it was"
    for size in (2, 5):
        x = torch.randn(size, WIDTH)
        results = []
        for module in (rebuilt, original):
            torch.manual_seed(size)
            results.append(getattr(module, method)(x))
        assert_same(*results)


class Remembers(Diffusion):
    portable_methods = ("compute_loss",)

    def compute_loss(self, x: Tensor) -> Tensor:
        self.scheduler.products = self.scheduler.products * 0.5
        return super().compute_loss(x)

    def example_inputs(self) -> Any:
        return {"compute_loss": [{"x": torch.zeros(3, WIDTH)}]}


def test_a_scheduler_that_changes_the_next_call_is_refused() -> None:
    with pytest.raises(NotPortableError, match=r"keeps a value in scheduler\['products'\] that changes the next call"):
        rebuilt_with_programs(Remembers())
