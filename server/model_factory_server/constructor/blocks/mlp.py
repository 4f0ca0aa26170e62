"""A plain multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from model_factory_server.constructor.blocks.parts.checks import (
    check_count,
    check_flag,
    check_module,
    check_probability,
)
from model_factory_server.constructor.blocks.parts.example_tensors import BATCH, distinct_sizes, example


class MLP(nn.Module):
    """Linear layers of widths ``dims`` with an activation between layers.

    With ``dims[0]=None``, the first input determines the width. All layers share one ``activation`` object; the default
    is ReLU.

    Example:
        >>> import torch
        >>> MLP(dims=[4, 8, 2])(torch.zeros(3, 5, 4)).shape
        torch.Size([3, 5, 2])
    """

    examples_are_guesses = True  # activations of the config may accept other inputs only

    def __init__(
        self,
        dims: Sequence[int | None],
        activation: nn.Module | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        final_activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        first, *widths = _check_dims(dims)
        check_probability("dropout", dropout)
        check_flag("bias", bias)
        between = nn.ReLU() if activation is None else check_module("activation", activation)
        layers: list[nn.Module] = []
        for index, width in enumerate(widths):
            if index:
                layers.append(between)
                if dropout > 0:
                    layers.append(nn.Dropout(dropout))
            layers.append(nn.LazyLinear(width, bias=bias) if first is None else nn.Linear(first, width, bias=bias))
            first = width
        if final_activation is not None:
            layers.append(check_module("final_activation", final_activation))
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x (..., dims[0])`` to ``(..., dims[-1])``."""
        return self.net(x)  # type: ignore[no-any-return]

    def example_inputs(self) -> list[dict[str, object]]:
        """Return a call with vectors and a call with sequences; empty while ``dims[0]`` is unknown."""
        first = self.net[0]
        if isinstance(first, LazyModuleMixin) or not isinstance(first, nn.Linear):
            return []
        seq = next(distinct_sizes(first.in_features))
        return [{"x": example(BATCH, first.in_features)}, {"x": example(BATCH, seq, first.in_features)}]


def _check_dims(dims: Sequence[int | None]) -> tuple[int | None, *tuple[int, ...]]:
    if isinstance(dims, str) or not isinstance(dims, Sequence) or len(dims) < 2:
        raise ValueError(f"dims must be a list of at least two widths, got {dims!r}")
    first = None if dims[0] is None else check_count("dims[0]", dims[0])
    return first, *(check_count(f"dims[{index}]", width) for index, width in enumerate(dims) if index)
