"""Flow-matching action decoders: a single decoder, and a mixture of experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model_factory_server.constructor.blocks.parts.checks import check_count, check_optional_dim
from model_factory_server.constructor.blocks.parts.embedding import add_positions
from model_factory_server.constructor.blocks.parts.flow_decoder import FlowDecoder
from model_factory_server.constructor.blocks.parts.projections import normed_projection, silu_projection
from model_factory_server.constructor.blocks.parts.transformer import Activation, TransformerArguments


class VFPSingleActionDecoder(FlowDecoder):
    """A single decoder with layer norms in the projections.

    Example:
        >>> import torch
        >>> block = VFPSingleActionDecoder(
        ...     action_dim=2, transformer_d_model=8, transformer_nhead=2, transformer_dim_feedforward=16,
        ...     transformer_dropout=0.0, transformer_activation="gelu", transformer_batch_first=True,
        ...     transformer_tgt_is_causal=True, transformer_num_layers=1, transformer_action_chunk_size=5,
        ... )
        >>> block(time=torch.rand(3), noise=torch.zeros(3, 5, 2), memory_input=torch.zeros(3, 7, 8)).shape
        torch.Size([3, 5, 2])
    """

    def __init__(  # noqa: PLR0913, PLR0917  the config's arguments
        self,
        action_dim: int,
        transformer_d_model: int,
        transformer_nhead: int,
        transformer_dim_feedforward: int,
        transformer_dropout: float,
        transformer_activation: Activation,
        transformer_batch_first: bool,
        transformer_tgt_is_causal: bool,
        transformer_num_layers: int,
        transformer_action_chunk_size: int,
        use_cond_semantic: bool = False,
        cond_semantic_dim: int | None = None,
    ) -> None:
        super().__init__(
            TransformerArguments(
                d_model=transformer_d_model,
                nhead=transformer_nhead,
                dim_feedforward=transformer_dim_feedforward,
                dropout=transformer_dropout,
                activation=transformer_activation,
                batch_first=transformer_batch_first,
                num_layers=transformer_num_layers,
            ),
            action_dim=action_dim,
            semantic_dim=check_optional_dim(
                "use_cond_semantic", use_cond_semantic, "cond_semantic_dim", cond_semantic_dim
            ),
            num_tokens=transformer_action_chunk_size,
            tgt_is_causal=transformer_tgt_is_causal,
            projection=normed_projection,
        )

    def _make_time_mlp(self) -> nn.Sequential:
        return normed_projection(self.d_model, self.d_model)

    def _make_output_layer(self) -> nn.Sequential:
        d_model = self.d_model
        return nn.Sequential(nn.Linear(d_model, 2 * d_model), nn.SiLU(), nn.Linear(2 * d_model, self.action_dim))


class ActionExpert(FlowDecoder):
    """An expert of :class:`VFPMoE`: smaller projections, and positions on the memory."""

    def _make_time_mlp(self) -> nn.Sequential:
        d_model = self.d_model
        return nn.Sequential(nn.Linear(d_model, 2 * d_model), nn.SiLU(), nn.Linear(2 * d_model, d_model))

    def _make_output_layer(self) -> nn.Sequential:
        return nn.Sequential(nn.SiLU(), nn.Linear(self.d_model, self.action_dim))

    def _prepare_memory(self, memory_input: Tensor) -> Tensor:
        return add_positions(memory_input, self.d_model)


class VFPMoE(nn.Module):
    """Several decoders with separate weights on the same inputs.

    Example:
        >>> import torch
        >>> block = VFPMoE(
        ...     num_experts=4, action_dim=2, transformer_d_model=8, transformer_nhead=2, transformer_dim_feedforward=16,
        ...     transformer_dropout=0.0, transformer_activation="gelu", transformer_batch_first=True,
        ...     transformer_tgt_is_causal=True, transformer_num_layers=1, transformer_action_chunk_size=5,
        ... )
        >>> block(time=torch.rand(3), noise=torch.zeros(3, 5, 2), memory_input=torch.zeros(3, 7, 8)).shape
        torch.Size([3, 4, 5, 2])
    """

    def __init__(  # noqa: PLR0913, PLR0917  the config's arguments
        self,
        num_experts: int,
        action_dim: int,
        transformer_d_model: int,
        transformer_nhead: int,
        transformer_dim_feedforward: int,
        transformer_dropout: float,
        transformer_activation: Activation,
        transformer_batch_first: bool,
        transformer_tgt_is_causal: bool,
        transformer_num_layers: int,
        transformer_action_chunk_size: int,
        use_cond_semantic: bool = False,
        cond_semantic_dim: int | None = None,
    ) -> None:
        super().__init__()
        check_count("num_experts", num_experts)
        semantic_dim = check_optional_dim(
            "use_cond_semantic", use_cond_semantic, "cond_semantic_dim", cond_semantic_dim
        )
        arguments = TransformerArguments(
            d_model=transformer_d_model,
            nhead=transformer_nhead,
            dim_feedforward=transformer_dim_feedforward,
            dropout=transformer_dropout,
            activation=transformer_activation,
            batch_first=transformer_batch_first,
            num_layers=transformer_num_layers,
        )
        self.experts = nn.ModuleList(
            ActionExpert(
                arguments,
                action_dim=action_dim,
                semantic_dim=semantic_dim,
                num_tokens=transformer_action_chunk_size,
                tgt_is_causal=transformer_tgt_is_causal,
                projection=silu_projection,
            )
            for _ in range(num_experts)
        )

    def forward(
        self, time: Tensor, noise: Tensor, memory_input: Tensor, discrete_semantic_input: Tensor | None = None
    ) -> Tensor:
        """Run every expert; returns ``(batch, num_experts, s, action_dim)``. See :class:`FlowDecoder`."""
        outputs = [expert(time, noise, memory_input, discrete_semantic_input) for expert in self.experts]
        return torch.stack(outputs, dim=1)

    def example_inputs(self) -> list[dict[str, object]]:
        """Return the example calls of an expert."""
        return self.experts[0].example_inputs()  # type: ignore[operator, no-any-return]
