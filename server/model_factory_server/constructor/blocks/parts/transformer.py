"""The transformer inside the policy blocks, and the arguments of the transformer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from model_factory_server.constructor.blocks.parts.checks import check_count, check_flag, check_probability

Activation = str | Callable[[Tensor], Tensor]
"""``relu`` or ``gelu``, or an activation module."""

ACTIVATIONS = ("relu", "gelu")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerArguments:
    """Arguments of a config for the transformer of a block.

    Raises:
        ValueError: an argument is out of range, or ``d_model`` is not divisible by ``nhead``.
    """

    d_model: int
    """Width of a token."""
    nhead: int
    """Number of attention heads."""
    dim_feedforward: int
    """Width between the two linear layers of a layer."""
    dropout: float
    """Probability of every dropout in a layer."""
    activation: Activation
    """Activation between the two linear layers of a layer."""
    batch_first: bool
    """As in ``torch.nn``: if false, attention runs over axis 0."""
    num_layers: int
    """Number of layers."""

    def __post_init__(self) -> None:
        check_count("transformer_d_model", self.d_model)
        check_count("transformer_nhead", self.nhead)
        check_count("transformer_dim_feedforward", self.dim_feedforward)
        check_probability("transformer_dropout", self.dropout)
        check_flag("transformer_batch_first", self.batch_first)
        check_count("transformer_num_layers", self.num_layers)
        if self.d_model % self.nhead:
            raise ValueError(
                f"transformer_d_model must be divisible by transformer_nhead, got {self.d_model} and {self.nhead}"
            )
        if self.activation not in ACTIVATIONS and not callable(self.activation):
            raise ValueError(
                f"transformer_activation must be one of {', '.join(ACTIVATIONS)}, or a module, got {self.activation!r}"
            )


class TransformerEncoder(nn.Module):
    """``nn.TransformerEncoder`` under ``.encoder``: tokens ``(batch, seq, d)`` to the same shape."""

    def __init__(self, arguments: TransformerArguments) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            d_model=arguments.d_model,
            nhead=arguments.nhead,
            dim_feedforward=arguments.dim_feedforward,
            dropout=arguments.dropout,
            activation=arguments.activation,
            batch_first=arguments.batch_first,
        )
        # Nested tensors help with padding masks only. These blocks have no masks, and enabling can emit a warning.
        self.encoder = nn.TransformerEncoder(layer, num_layers=arguments.num_layers, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode tokens ``(batch, seq, d)`` without a mask; returns the same shape."""
        return self.encoder(tokens)  # type: ignore[no-any-return]


class TransformerDecoder(nn.Module):
    """``nn.TransformerDecoder`` under ``.decoder``, and the causal mask of ``num_tokens`` tokens as a buffer."""

    tgt_causal_mask: Tensor

    def __init__(self, arguments: TransformerArguments, *, num_tokens: int, tgt_is_causal: bool) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(
            d_model=arguments.d_model,
            nhead=arguments.nhead,
            dim_feedforward=arguments.dim_feedforward,
            dropout=arguments.dropout,
            activation=arguments.activation,
            batch_first=arguments.batch_first,
        )
        self.decoder = nn.TransformerDecoder(layer, num_layers=arguments.num_layers)
        for copied in self.decoder.layers:
            _use_own_activation(copied)
        self.tgt_is_causal = check_flag("transformer_tgt_is_causal", tgt_is_causal)
        self.register_buffer("tgt_causal_mask", nn.Transformer.generate_square_subsequent_mask(num_tokens))

    def forward(self, tgt: Tensor, memory: Tensor) -> Tensor:
        """Decode ``tgt (batch, s, d)`` against ``memory (batch, m, d)``; returns ``(batch, s, d)``."""
        if not self.tgt_is_causal:
            return self.decoder(tgt, memory)  # type: ignore[no-any-return]
        # With tgt_is_causal torch does not compare the values of the mask, a comparison that cannot be recorded.
        # Attention kernels then skip the mask, so s may differ from num_tokens.
        return self.decoder(tgt, memory, tgt_mask=self.tgt_causal_mask, tgt_is_causal=True)  # type: ignore[no-any-return]


def _use_own_activation(layer: nn.Module) -> None:
    """Restore the activation module of a copied decoder layer.

    torch copies a layer through ``__setstate__``, which hides an activation module behind ``relu`` unless the instance
    has an attribute ``activation``.
    """
    if "activation" in layer._modules:  # noqa: SLF001
        vars(layer)["activation"] = layer._modules["activation"]  # noqa: SLF001
