"""The base of the flow-matching action decoders: time, noise and memory to an action chunk."""

from __future__ import annotations

from torch import Tensor, nn

from model_factory_server.constructor.blocks.parts.checks import check_count, check_given, check_rank
from model_factory_server.constructor.blocks.parts.embedding import embed_time
from model_factory_server.constructor.blocks.parts.example_tensors import BATCH, distinct_sizes, example
from model_factory_server.constructor.blocks.parts.projections import Projection, project, projection_unless_equal
from model_factory_server.constructor.blocks.parts.tokens import SEQUENCE, prepend, semantic_sequence
from model_factory_server.constructor.blocks.parts.transformer import TransformerArguments, TransformerDecoder


class FlowDecoder(nn.Module):
    """Decodes noise to actions at a flow time; subclasses choose the layers and prepare the memory."""

    def __init__(
        self,
        arguments: TransformerArguments,
        *,
        action_dim: int,
        semantic_dim: int | None,
        num_tokens: int,
        tgt_is_causal: bool,
        projection: Projection,
    ) -> None:
        super().__init__()
        d_model = self.d_model = arguments.d_model
        if d_model < 4 or d_model % 2:
            raise ValueError(f"transformer_d_model must be even and at least 4 to embed time, got {d_model}")
        check_count("transformer_action_chunk_size", num_tokens)
        self.batch_first = arguments.batch_first
        self.action_dim = check_count("action_dim", action_dim)
        self.semantic_dim = semantic_dim
        self.noise_projection = projection(action_dim, d_model)
        self.semantic_projection = projection_unless_equal(projection, semantic_dim, d_model)
        self.time_mlp = self._make_time_mlp()
        self.decoder = TransformerDecoder(arguments, num_tokens=num_tokens, tgt_is_causal=tgt_is_causal)
        self.output_layer = self._make_output_layer()

    def _make_time_mlp(self) -> nn.Sequential:
        raise NotImplementedError

    def _make_output_layer(self) -> nn.Sequential:
        raise NotImplementedError

    def _prepare_memory(self, memory_input: Tensor) -> Tensor:
        return memory_input

    def _used_semantics(self, discrete_semantic_input: Tensor | None) -> Tensor | None:
        """Return the semantics if the block was built for semantics, else None; subclasses may use what is given."""
        if self.semantic_dim is None:
            return None
        return check_given("discrete_semantic_input", discrete_semantic_input, "use_cond_semantic is true")

    def forward(
        self,
        time: Tensor,
        noise: Tensor,
        memory_input: Tensor,
        discrete_semantic_input: Tensor | None = None,
        **_ignored: object,
    ) -> Tensor:
        """Decode the noise against the tokens ``[semantics, time, memory]``.

        Args:
            time: ``(batch,)`` or ``(batch, 1)``, flow time in 0..1.
            noise: ``(batch, s, action_dim)``.
            memory_input: ``(batch, m, d)``.
            discrete_semantic_input: ``(batch, f)`` or ``(batch, k, f)`` with ``use_cond_semantic``; ignored otherwise.

        Returns:
            ``(batch, s, action_dim)``.

        Raises:
            ValueError: semantics are missing, or rank or width of an argument differ from the above.
        """
        check_rank("noise", noise, SEQUENCE)
        check_rank("memory_input", memory_input, SEQUENCE)
        time_features = embed_time(_time_vector(time), self.d_model).to(noise.dtype)
        memory = project("memory_input", memory_input, None, self.d_model)
        memory = prepend(self.time_mlp(time_features).unsqueeze(1), self._prepare_memory(memory))
        given = self._used_semantics(discrete_semantic_input)
        if given is not None:
            name = "discrete_semantic_input"
            semantics = semantic_sequence(name, given)
            memory = prepend(project(name, semantics, self.semantic_projection, self.d_model), memory)
        return self.output_layer(self.decoder(self.noise_projection(noise), memory))  # type: ignore[no-any-return]

    def example_inputs(self) -> list[dict[str, object]]:
        """Return calls with semantics of both ranks, or a call without semantics if the block uses none."""
        if not self.batch_first:
            return []
        sizes = distinct_sizes(self.action_dim, self.d_model, self.semantic_dim)
        inputs: dict[str, object] = {
            "time": example(BATCH),
            "noise": example(BATCH, next(sizes), self.action_dim),
            "memory_input": example(BATCH, next(sizes), self.d_model),
            "discrete_semantic_input": None,
        }
        if self.semantic_dim is None:
            return [inputs]
        semantics = (example(BATCH, self.semantic_dim), example(BATCH, next(sizes), self.semantic_dim))
        return [inputs | {"discrete_semantic_input": item} for item in semantics]


def _time_vector(time: Tensor) -> Tensor:
    check_rank("time", time, {1: "(batch,)", 2: "(batch, 1)"})
    if time.ndim == 1:
        return time
    if time.shape[1] != 1:
        raise ValueError(f"time of rank 2 must be (batch, 1), got {tuple(time.shape)}")
    return time[:, 0]
