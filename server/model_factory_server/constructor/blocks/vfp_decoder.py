"""Flow-matching action decoders: single decoders, and a mixture of experts with its gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model_factory_server.constructor.blocks.parts.checks import (
    check_count,
    check_optional_dim,
    check_rank,
    note_ignored,
)
from model_factory_server.constructor.blocks.parts.embedding import add_positions
from model_factory_server.constructor.blocks.parts.example_tensors import BATCH, example
from model_factory_server.constructor.blocks.parts.flow_decoder import FlowDecoder
from model_factory_server.constructor.blocks.parts.projections import (
    Projection,
    input_normed_projection,
    normed_projection,
    silu_projection,
)
from model_factory_server.constructor.blocks.parts.transformer import Activation, TransformerArguments


class ActionDecoderBlock(FlowDecoder):
    """A :class:`FlowDecoder` with the arguments of a config; subclasses have the layers."""

    projection: Projection

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
        **ignored: object,
    ) -> None:
        note_ignored(type(self).__name__, ignored)
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
            projection=self.projection,
        )


class VFPSingleActionDecoder(ActionDecoderBlock):
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

    projection = staticmethod(normed_projection)

    def _make_time_mlp(self) -> nn.Sequential:
        return normed_projection(self.d_model, self.d_model)

    def _make_output_layer(self) -> nn.Sequential:
        return _two_layers(self.d_model, self.action_dim)

    def _used_semantics(self, discrete_semantic_input: Tensor | None) -> Tensor | None:
        return discrete_semantic_input

    def example_inputs(self) -> list[dict[str, object]]:
        """Return the calls of :class:`FlowDecoder`, and a call without semantics, which this decoder allows."""
        calls = super().example_inputs()
        return calls if self.semantic_dim is None else [*calls, calls[0] | {"discrete_semantic_input": None}]


class NaiveActionDecoder(ActionDecoderBlock):
    """A single decoder with small projections and with positions on the memory.

    Example:
        >>> import torch
        >>> block = NaiveActionDecoder(
        ...     action_dim=2, transformer_d_model=8, transformer_nhead=2, transformer_dim_feedforward=16,
        ...     transformer_dropout=0.0, transformer_activation="gelu", transformer_batch_first=True,
        ...     transformer_tgt_is_causal=True, transformer_num_layers=1, transformer_action_chunk_size=5,
        ... )
        >>> block(time=torch.rand(3), noise=torch.zeros(3, 5, 2), memory_input=torch.zeros(3, 7, 8)).shape
        torch.Size([3, 5, 2])
    """

    projection = staticmethod(silu_projection)

    def _make_time_mlp(self) -> nn.Sequential:
        return _two_layers(self.d_model, self.d_model)

    def _make_output_layer(self) -> nn.Sequential:
        return nn.Sequential(nn.SiLU(), nn.Linear(self.d_model, self.action_dim))

    def _prepare_memory(self, memory_input: Tensor) -> Tensor:
        return add_positions(memory_input, self.d_model)


class ActionExpert(FlowDecoder):
    """An expert of :class:`VFPMoE`: projections without a last layer norm."""

    def _make_time_mlp(self) -> nn.Sequential:
        return input_normed_projection(self.d_model, self.d_model)

    def _make_output_layer(self) -> nn.Sequential:
        return _two_layers(self.d_model, self.action_dim)


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
                projection=input_normed_projection,
            )
            for _ in range(num_experts)
        )

    def forward(
        self,
        time: Tensor,
        noise: Tensor,
        memory_input: Tensor,
        discrete_semantic_input: Tensor | None = None,
        **_ignored: object,
    ) -> Tensor:
        """Run every expert; returns ``(batch, num_experts, s, action_dim)``. See :class:`FlowDecoder`."""
        outputs = [expert(time, noise, memory_input, discrete_semantic_input) for expert in self.experts]
        return torch.stack(outputs, dim=1)

    def example_inputs(self) -> list[dict[str, object]]:
        """Return the example calls of an expert."""
        return self.experts[0].example_inputs()  # type: ignore[operator, no-any-return]


class VFPGate(nn.Module):
    """The weights of the experts of a mixture.

    ``top_k`` is part of existing configs and has no effect.

    Example:
        >>> import torch
        >>> gate = VFPGate(input_dim=6, num_experts=4, temperature=2.0, top_k=1)
        >>> gate(torch.zeros(3, 6)).shape
        torch.Size([3, 4])
    """

    portable_methods = ("inference",)

    def __init__(self, input_dim: int, num_experts: int, temperature: float, top_k: int) -> None:
        super().__init__()
        self.input_dim = check_count("input_dim", input_dim)
        self.num_experts = check_count("num_experts", num_experts)
        self.temperature = temperature
        self.top_k = top_k
        width = 2 * input_dim
        self.model = nn.Sequential(
            nn.Linear(input_dim, width),
            nn.LayerNorm(width),
            nn.ELU(),
            nn.Linear(width, width),
            nn.LayerNorm(width),
            nn.ELU(),
            nn.Linear(width, num_experts),
            nn.LayerNorm(num_experts),
        )

    def forward(
        self,
        input: Tensor,  # noqa: A002  the name in configs
        iterations: int | None = None,  # noqa: ARG002
        training: bool = False,
        use_noise: bool = False,
    ) -> Tensor:
        """Return the weights ``(batch, num_experts)``, which sum to 1.

        Args:
            input: ``(batch, input_dim)`` or ``(batch, 1, input_dim)``.
            iterations: Ignored.
            training: With ``use_noise``, adds normal noise to the logits; the mode of the module has no effect.
            use_noise: See ``training``.

        Raises:
            ValueError: the rank is neither 2 nor 3, or the middle axis is not 1.
        """
        check_rank("input", input, {2: "(batch, features)", 3: "(batch, 1, features)"})
        if input.ndim == 3 and input.shape[1] != 1:
            raise ValueError(f"input of rank 3 must be (batch, 1, features), got {tuple(input.shape)}")
        logits = self.model(input[:, 0] if input.ndim == 3 else input)
        if training and use_noise:
            logits = logits + torch.randn_like(logits)
        return torch.softmax(logits / self.temperature, dim=-1)

    @torch.no_grad()
    def inference(self, input: Tensor) -> int:  # noqa: A002  as in forward
        """Return the number of the best expert for the only sample of ``input``, see :meth:`forward`."""
        best: int = self(input).argmax(dim=-1).squeeze().item()  # int() would be a decision: a program for each expert
        return best

    def example_inputs(self) -> dict[str, list[dict[str, object]]]:
        """Return calls with inputs of both ranks, with and without noise; for ``inference`` with one sample."""
        calls: list[dict[str, object]] = []
        for shape in ((BATCH, self.input_dim), (BATCH, 1, self.input_dim)):
            plain: dict[str, object] = {"input": example(*shape)}
            calls += [plain, plain | {"iterations": 0, "training": True, "use_noise": True}]
        single: list[dict[str, object]] = [
            {"input": example(1, self.input_dim)},
            {"input": example(1, 1, self.input_dim)},
        ]
        return {"forward": calls, "inference": single}


def _two_layers(d_model: int, features: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(d_model, 2 * d_model), nn.SiLU(), nn.Linear(2 * d_model, features))
