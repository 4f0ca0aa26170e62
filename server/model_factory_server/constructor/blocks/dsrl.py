"""Actor and critic over flattened features, for reinforcement learning in the noise space of a policy (DSRL)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model_factory_server.constructor.blocks.parts.checks import check_count, check_probability, check_rank
from model_factory_server.constructor.blocks.parts.example_tensors import BATCH, example

FLAT = {2: "(batch, features)"}
INIT_METHODS = ("xavier",)


class DSRLQFunction(nn.Module):
    """The mean of an ensemble of value networks.

    Example:
        >>> import torch
        >>> DSRLQFunction(input_dim=6, num_ensemble=2, num_layers=1, num_hidden_dim=8)(torch.zeros(4, 6)).shape
        torch.Size([4, 1])
    """

    def __init__(
        self,
        input_dim: int = 64,
        num_ensemble: int = 3,
        num_layers: int = 3,
        num_hidden_dim: int = 2048,
        dropout: float = 0.0,
        init_method: str = "xavier",
    ) -> None:
        super().__init__()
        self.input_dim = input_dim
        check_count("num_ensemble", num_ensemble)
        self.q_ensembles_hidden_layers = nn.ModuleList(
            _hidden_stack(input_dim, num_layers, num_hidden_dim, dropout) for _ in range(num_ensemble)
        )
        self.q_ensembles_output_layers = nn.ModuleList(nn.Linear(num_hidden_dim, 1) for _ in range(num_ensemble))
        _initialise(self, init_method)

    def forward(self, flattened_tensor: Tensor) -> Tensor:
        """Map features ``(batch, input_dim)`` to values ``(batch, 1)``.

        Raises:
            ValueError: the rank is not 2.
        """
        check_rank("flattened_tensor", flattened_tensor, FLAT)
        values = [
            output(hidden(flattened_tensor))
            for hidden, output in zip(self.q_ensembles_hidden_layers, self.q_ensembles_output_layers, strict=True)
        ]
        return torch.stack(values).mean(dim=0)

    def example_inputs(self) -> list[dict[str, object]]:
        """Return a call with a batch of features."""
        return [{"flattened_tensor": example(BATCH, self.input_dim)}]


class DSRLNoiseLatentActor(nn.Module):
    """Maps features to a chunk of noise in [-1, 1].

    Example:
        >>> import torch
        >>> actor = DSRLNoiseLatentActor(input_dim=6, action_chunk_size=5, action_dim=2, num_layers=1, num_hidden_dim=8)
        >>> actor(torch.zeros(4, 6)).shape
        torch.Size([4, 5, 2])
    """

    def __init__(
        self,
        input_dim: int = 64,
        action_chunk_size: int = 50,
        action_dim: int = 32,
        num_layers: int = 3,
        num_hidden_dim: int = 2048,
        dropout: float = 0.0,
        init_method: str = "xavier",
    ) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.action_chunk_size = check_count("action_chunk_size", action_chunk_size)
        self.action_dim = check_count("action_dim", action_dim)
        self.model = _hidden_stack(input_dim, num_layers, num_hidden_dim, dropout)
        self.last_layer = nn.Sequential(nn.Linear(num_hidden_dim, action_chunk_size * action_dim), nn.Tanh())
        _initialise(self, init_method)

    def forward(self, flattened_tensor: Tensor) -> Tensor:
        """Map features ``(batch, input_dim)`` to noise ``(batch, action_chunk_size, action_dim)``.

        Raises:
            ValueError: the rank is not 2.
        """
        check_rank("flattened_tensor", flattened_tensor, FLAT)
        noise: Tensor = self.last_layer(self.model(flattened_tensor))
        return noise.reshape(noise.shape[0], self.action_chunk_size, self.action_dim)

    def example_inputs(self) -> list[dict[str, object]]:
        """Return a call with a batch of features."""
        return [{"flattened_tensor": example(BATCH, self.input_dim)}]


def _hidden_stack(input_dim: int, num_layers: int, width: int, dropout: float) -> nn.Sequential:
    """Build ``num_layers`` normed layers and a linear layer: ``(batch, input_dim)`` to ``(batch, width)``."""
    features = check_count("input_dim", input_dim)
    check_count("num_hidden_dim", width)
    check_probability("dropout", dropout)
    layers: list[nn.Module] = []
    for _ in range(check_count("num_layers", num_layers)):
        layers += [nn.Linear(features, width), nn.LayerNorm(width), nn.ELU(), nn.Dropout(dropout)]
        features = width
    return nn.Sequential(*layers, nn.Linear(width, width), nn.Dropout(dropout))


def _initialise(module: nn.Module, init_method: str) -> None:
    """Draw the weights of all linear layers (``nn.init.xavier_uniform_``) and set all biases to zero."""
    if init_method not in INIT_METHODS:
        raise ValueError(f"init_method must be one of {', '.join(INIT_METHODS)}, got {init_method!r}")
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            nn.init.zeros_(child.bias)
