"""Action chunking with transformers: a conditional VAE over chunks of actions (Zhao et al. 2023, section IV)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ActionChunkingCVAE(nn.Module):
    """Predicts a chunk of actions from proprioception and visual tokens.

    In training, an encoder reads the actions and the latent is drawn from the posterior. Without actions, the latent is
    the mean of the prior, zero.
    """

    def __init__(
        self,
        proprio_dim: int,
        visual_dim: int,
        action_dim: int,
        chunk: int = 100,
        latent_dim: int = 32,
        model_dim: int = 512,
        heads: int = 8,
        layers: int = 4,
    ) -> None:
        super().__init__()
        self.dims = {"proprio": proprio_dim, "visual": visual_dim, "action": action_dim, "latent": latent_dim}
        self.chunk = chunk
        options: dict[str, Any] = {"dim_feedforward": 4 * model_dim, "dropout": 0.1, "batch_first": True}
        self.style = nn.Parameter(torch.randn(1, 1, model_dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, chunk + 2, model_dim) * 0.02)
        self.embed_actions = nn.Linear(action_dim, model_dim)
        self.embed_proprio = nn.Linear(proprio_dim, model_dim)
        self.embed_visual = nn.Linear(visual_dim, model_dim)
        self.embed_latent = nn.Linear(latent_dim, model_dim)
        self.posterior = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(model_dim, heads, **options), layers, enable_nested_tensor=False
        )
        self.to_latent = nn.Linear(model_dim, 2 * latent_dim)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(model_dim, heads, **options), layers, enable_nested_tensor=False
        )
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(model_dim, heads, **options), layers)
        self.queries = nn.Parameter(torch.randn(1, chunk, model_dim) * 0.02)
        self.head = nn.Linear(model_dim, action_dim)

    def forward(
        self, proprio: Tensor, visual: Tensor, actions: Tensor | None = None, is_pad: Tensor | None = None
    ) -> dict[str, Tensor | None]:
        """Map ``proprio (batch, p)`` and ``visual (batch, tokens, v)`` to ``actions (batch, chunk, a)``.

        ``actions (batch, chunk, a)`` are the targets, and ``is_pad (batch, chunk)`` is true for padding. Returns
        ``actions`` and, for given targets, ``mean`` and ``log_variance (batch, latent)`` of the posterior.
        """
        mean = log_variance = None
        if actions is None:
            latent = proprio.new_zeros(proprio.shape[0], self.dims["latent"])
        else:
            mean, log_variance = self._posterior(proprio, actions, is_pad).chunk(2, dim=-1)
            latent = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        tokens = [self.embed_latent(latent)[:, None], self.embed_proprio(proprio)[:, None], self.embed_visual(visual)]
        memory = self.encoder(torch.cat(tokens, dim=1))
        chunk = self.decoder(self.queries.expand(proprio.shape[0], -1, -1), memory)
        return {"actions": self.head(chunk), "mean": mean, "log_variance": log_variance}

    def _posterior(self, proprio: Tensor, actions: Tensor, is_pad: Tensor | None) -> Tensor:
        """Mean and logarithm of the variance of the latent, side by side: ``(batch, 2 * latent)``."""
        batch = proprio.shape[0]
        tokens = [self.style.expand(batch, -1, -1), self.embed_proprio(proprio)[:, None], self.embed_actions(actions)]
        sequence = torch.cat(tokens, dim=1) + self.positions[:, : actions.shape[1] + 2]
        if is_pad is not None:
            is_pad = torch.cat([is_pad.new_zeros(batch, 2), is_pad], dim=1)
        return self.to_latent(self.posterior(sequence, src_key_padding_mask=is_pad)[:, 0])

    def example_inputs(self) -> list[dict[str, Any]]:
        """Return training batches with and without padding, and a step of a rollout."""
        inputs = {"proprio": torch.zeros(2, self.dims["proprio"]), "visual": torch.zeros(2, 3, self.dims["visual"])}
        actions = torch.zeros(2, self.chunk, self.dims["action"])
        is_pad = torch.zeros(2, self.chunk, dtype=torch.bool)
        return [{**inputs, "actions": actions}, {**inputs, "actions": actions, "is_pad": is_pad}, inputs]
