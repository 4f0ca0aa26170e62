"""An autoencoder of action chunks."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from model_factory_server.constructor.blocks.parts.checks import check_count, check_rank
from model_factory_server.constructor.blocks.parts.example_tensors import BATCH, example


class ActionEncoder(nn.Module):
    """Maps an action chunk to an embedding; ``final_activation`` is accepted and has no effect.

    Example:
        >>> import torch
        >>> block = ActionEncoder(embedding_dim=3, hidden_dim=8, action_dim=2, action_chunk=5)
        >>> block(torch.zeros(4, 5, 2))["embedding"].shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        final_activation: str | None = None,  # noqa: ARG002  configs give it; no layer uses it
        embedding_dim: int = 24,
        hidden_dim: int = 1024,
        action_dim: int = 24,
        action_chunk: int = 40,
    ) -> None:
        super().__init__()
        self.action_dim = check_count("action_dim", action_dim)
        self.action_chunk = check_count("action_chunk", action_chunk)
        check_count("embedding_dim", embedding_dim)
        self.encoder = _relu_layers(action_dim * action_chunk, hidden_dim, embedding_dim)

    def forward(self, action: Tensor) -> dict[str, Tensor]:
        """Map actions to ``{"embedding": (batch, embedding_dim)}``.

        Args:
            action: ``(batch, action_chunk, action_dim)``, or flat ``(batch, action_chunk * action_dim)``.

        Raises:
            ValueError: the rank is neither 2 nor 3.
        """
        check_rank("action", action, {2: "(batch, chunk * features)", 3: "(batch, chunk, features)"})
        return {"embedding": self.encoder(action.flatten(1))}

    def example_inputs(self) -> list[dict[str, object]]:
        """Return a call with chunks and a call with flat chunks."""
        chunks = example(BATCH, self.action_chunk, self.action_dim)
        return [{"action": chunks}, {"action": chunks.flatten(1)}]


class ActionDecoder(nn.Module):
    """Maps an embedding to an action chunk; ``final_activation`` is accepted and has no effect.

    Example:
        >>> import torch
        >>> block = ActionDecoder(embedding_dim=3, hidden_dim=8, action_dim=2, action_chunk=5)
        >>> block(torch.zeros(4, 3))["action"].shape
        torch.Size([4, 5, 2])
    """

    def __init__(
        self,
        final_activation: str | None = None,  # noqa: ARG002  configs give it; no layer uses it
        embedding_dim: int = 24,
        hidden_dim: int = 1024,
        action_dim: int = 24,
        action_chunk: int = 40,
    ) -> None:
        super().__init__()
        self.embedding_dim = check_count("embedding_dim", embedding_dim)
        self.action_dim = check_count("action_dim", action_dim)
        self.action_chunk = check_count("action_chunk", action_chunk)
        self.decoder = _relu_layers(embedding_dim, hidden_dim, action_dim * action_chunk)

    def forward(self, embedding: Tensor) -> dict[str, Tensor]:
        """Map ``embedding (batch, embedding_dim)`` to ``{"action": (batch, action_chunk, action_dim)}``.

        Raises:
            ValueError: the rank is not 2.
        """
        check_rank("embedding", embedding, {2: "(batch, features)"})
        flat: Tensor = self.decoder(embedding)
        return {"action": flat.reshape(flat.shape[0], self.action_chunk, self.action_dim)}

    def example_inputs(self) -> list[dict[str, object]]:
        """Return a call with a batch of embeddings."""
        return [{"embedding": example(BATCH, self.embedding_dim)}]


def _relu_layers(features: int, hidden: int, out: int) -> nn.Sequential:
    """Build four linear layers, each followed by a ReLU, the last included."""
    check_count("hidden_dim", hidden)
    widths = (features, hidden, hidden, hidden, out)
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
