"""A model of the zoo: how it is built, and how it is called at three sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model_factory.descriptor.stock import is_stock

SEED = 7
SIZES = 3
"""Calls of each model: the first is recorded, the others have another batch and, where possible, other sizes."""

Inputs = Callable[[int], dict[str, Any]]
"""The arguments of the call of a size, from 0 to 2."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """An entry of the zoo."""

    name: str
    """Library and model, for example ``timm/resnet18``."""
    make: Callable[[], nn.Module]
    """Makes the model, with a tiny config and random weights."""
    inputs: Inputs
    """Arguments of a call."""
    method: str = "forward"
    """The called method."""
    input_gradients: bool = True
    """Whether the inputs may have gradients; some models refuse them in train mode."""

    @property
    def library(self) -> str:
        """The part of the name before the first slash."""
        return self.name.partition("/")[0]

    def build(self) -> nn.Module:
        """Make the model; each time with the same weights."""
        torch.manual_seed(SEED)
        return self.prepared(self.make())

    def prepared(self, model: nn.Module) -> nn.Module:
        """Give a model its example inputs, and declare its called method."""
        if self.method != "forward":
            type(model).portable_methods = (self.method,)
        if not is_stock(model):  # the blocks of a torch layer are recorded at the first call
            model.example_inputs = self.examples
        return model

    def examples(self) -> Any:
        """The first call, as the ``example_inputs()`` of a block."""
        return [self.inputs(0)] if self.method == "forward" else {self.method: [self.inputs(0)]}


def tensors(**shapes: Sequence[int | Sequence[int]]) -> Inputs:
    """Make tensors of normal random numbers; a size in the shape may be a tuple with a size for each call.

    >>> [tensors(x=((2, 3, 4), 5))(size)["x"].shape for size in range(3)]
    [torch.Size([2, 5]), torch.Size([3, 5]), torch.Size([4, 5])]
    """
    return lambda size: {
        name: torch.randn(_shape(shape, size), generator=_generator(size)) for name, shape in shapes.items()
    }


def integers(bound: int, **shapes: Sequence[int | Sequence[int]]) -> Inputs:
    """Make tensors of random integers from 1 to ``bound - 1``; shapes are as in :func:`tensors`."""
    return lambda size: {
        name: torch.randint(1, bound, _shape(shape, size), generator=_generator(size)) for name, shape in shapes.items()
    }


def fixed(**values: Any) -> Inputs:
    """Pass the same values in each call."""
    return lambda _size: {name: item.clone() if isinstance(item, Tensor) else item for name, item in values.items()}


def together(*parts: Inputs) -> Inputs:
    """Join the arguments of several functions."""
    return lambda size: {name: value for part in parts for name, value in part(size).items()}


BATCH = (2, 3, 4)
"""The batch of each call."""


def images(side: int, other: int | None = None, *, name: str = "x", channels: int = 3) -> Inputs:
    """Make square images; the third call has the side ``other``, if given."""
    sides = (side, side, other or side)
    return tensors(**{name: (BATCH, channels, sides, sides)})


def _shape(shape: Sequence[int | Sequence[int]], size: int) -> list[int]:
    return [item if isinstance(item, int) else item[size] for item in shape]


def _generator(size: int) -> torch.Generator:
    return torch.Generator().manual_seed(size)


def rows(library: str, table: Mapping[str, tuple[Callable[[], nn.Module], Inputs]]) -> list[Model]:
    """Make the entries of a library from a table."""
    return [Model(name=f"{library}/{name}", make=make, inputs=inputs) for name, (make, inputs) in table.items()]
