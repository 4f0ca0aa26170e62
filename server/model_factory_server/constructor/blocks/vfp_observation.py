"""Observations of the mixture policy as tokens: embedders with one visual tensor, and projectors of proprioception."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model_factory_server.constructor.blocks.parts.checks import (
    check_count,
    check_flag,
    check_given,
    check_optional_dim,
    check_rank,
    note_ignored,
)
from model_factory_server.constructor.blocks.parts.embedding import add_positions
from model_factory_server.constructor.blocks.parts.example_tensors import BATCH, distinct_sizes, example
from model_factory_server.constructor.blocks.parts.projections import (
    Projection,
    input_normed_projection,
    normed_projection,
    project,
    projection_unless_equal,
)
from model_factory_server.constructor.blocks.parts.tokens import (
    SEQUENCE,
    camera_tokens,
    make_cls_token,
    prepend,
    prepend_cls,
    semantic_sequence,
)
from model_factory_server.constructor.blocks.parts.transformer import (
    Activation,
    TransformerArguments,
    TransformerEncoder,
)


class VFPInfoEmbedder(nn.Module):
    """One visual tensor, proprioception, semantics and actions as a sequence of tokens, encoded by a transformer.

    A modality of width ``d = transformer_d_model`` passes through without a projection.

    Example:
        >>> import torch
        >>> block = VFPInfoEmbedder(
        ...     cond_proprio_dim=5, cond_visual_dim=6, use_cls_token=True, num_cls_token=2, use_action=False,
        ...     action_dim=None, use_cond_semantic=False, use_cond_semantic_projection=False, cond_semantic_dim=None,
        ...     transformer_d_model=8, transformer_nhead=2, transformer_dim_feedforward=16, transformer_dropout=0.0,
        ...     transformer_activation="gelu", transformer_batch_first=True, transformer_num_layers=1,
        ... )
        >>> encoded = block(cond_proprio=torch.zeros(3, 1, 5), cond_visual=torch.zeros(3, 4, 6))
        >>> {name: tuple(value.shape) for name, value in encoded.items()}
        {'cls_token': (3, 2, 8), 'encoder_output': (3, 7, 8)}
    """

    projection: Projection = staticmethod(input_normed_projection)

    def __init__(  # noqa: PLR0913, PLR0917  the config's arguments
        self,
        cond_proprio_dim: int,
        cond_visual_dim: int,
        use_cls_token: bool,
        num_cls_token: int | None,
        use_action: bool,
        action_dim: int | None,
        use_cond_semantic: bool,
        use_cond_semantic_projection: bool,
        cond_semantic_dim: int | None,
        transformer_d_model: int,
        transformer_nhead: int,
        transformer_dim_feedforward: int,
        transformer_dropout: float,
        transformer_activation: Activation,
        transformer_batch_first: bool,
        transformer_num_layers: int,
        **ignored: object,
    ) -> None:
        super().__init__()
        note_ignored(type(self).__name__, ignored)
        arguments = TransformerArguments(
            d_model=transformer_d_model,
            nhead=transformer_nhead,
            dim_feedforward=transformer_dim_feedforward,
            dropout=transformer_dropout,
            activation=transformer_activation,
            batch_first=transformer_batch_first,
            num_layers=transformer_num_layers,
        )
        d_model = self.d_model = arguments.d_model
        self.proprio_dim = check_count("cond_proprio_dim", cond_proprio_dim)
        self.visual_dim = check_count("cond_visual_dim", cond_visual_dim)
        self.action_dim = check_optional_dim("use_action", use_action, "action_dim", action_dim)
        self.semantic_dim = check_optional_dim(
            "use_cond_semantic", use_cond_semantic, "cond_semantic_dim", cond_semantic_dim
        )
        is_projected = check_flag("use_cond_semantic_projection", use_cond_semantic_projection)
        projected_semantic_dim = self.semantic_dim if is_projected else None
        self.num_cls_token = num_cls_token
        self.cls_token = make_cls_token(use_cls_token, num_cls_token, d_model)
        self.action_projection = projection_unless_equal(self.projection, self.action_dim, d_model)
        self.semantic_projection = projection_unless_equal(self.projection, projected_semantic_dim, d_model)
        self.proprio_projection = projection_unless_equal(self.projection, cond_proprio_dim, d_model)
        self.visual_projection = projection_unless_equal(self.projection, cond_visual_dim, d_model)
        self.encoder = TransformerEncoder(arguments)

    def forward(
        self,
        cond_proprio: Tensor,
        cond_visual: Tensor,
        cond_semantic: Tensor | None = None,
        action: Tensor | None = None,
        **_ignored: object,
    ) -> dict[str, Tensor | None]:
        """Encode ``[learned tokens, action, semantics, visual, proprioception]``.

        Args:
            cond_proprio: ``(batch, s, cond_proprio_dim)``.
            cond_visual: ``(batch, v, cond_visual_dim)``.
            cond_semantic: ``(batch, f)`` or ``(batch, k, f)`` with ``use_cond_semantic``; ignored otherwise.
            action: ``(batch, s, action_dim)`` with ``use_action``; ignored otherwise.

        Returns:
            ``encoder_output (batch, tokens, d)``, and ``cls_token (batch, num_cls_token, d)``: the outputs of the
            learned tokens if the block has any, else None.

        Raises:
            ValueError: an argument is missing, or rank or width differ from the above.
        """
        check_rank("cond_proprio", cond_proprio, SEQUENCE)
        check_rank("cond_visual", cond_visual, SEQUENCE)
        x = prepend(
            project("cond_visual", cond_visual, self.visual_projection, self.d_model),
            project("cond_proprio", cond_proprio, self.proprio_projection, self.d_model),
        )
        if self.semantic_dim is not None:
            cond_semantic = check_given("cond_semantic", cond_semantic, "use_cond_semantic is true")
            semantics = semantic_sequence("cond_semantic", cond_semantic)
            x = prepend(project("cond_semantic", semantics, self.semantic_projection, self.d_model), x)
        if self.action_dim is not None:
            action = check_given("action", action, "use_action is true")
            check_rank("action", action, SEQUENCE)
            x = prepend(project("action", action, self.action_projection, self.d_model), x)
        encoded: Tensor = self.encoder(prepend_cls(self.cls_token, add_positions(x, self.d_model)))
        cls_token = None if self.cls_token is None else encoded[:, : self.num_cls_token]
        return {"cls_token": cls_token, "encoder_output": encoded}

    def example_inputs(self) -> list[dict[str, object]]:
        """Return a call, and with semantics a call for each rank of the semantics."""
        sizes = distinct_sizes(self.d_model, self.proprio_dim, self.visual_dim, self.action_dim, self.semantic_dim)
        inputs: dict[str, object] = {
            "cond_proprio": example(BATCH, next(sizes), self.proprio_dim),
            "cond_visual": example(BATCH, next(sizes), self.visual_dim),
            "cond_semantic": None,
            "action": None if self.action_dim is None else example(BATCH, next(sizes), self.action_dim),
        }
        if self.semantic_dim is None:
            return [inputs]
        width = self.d_model if self.semantic_projection is None else self.semantic_dim
        semantics = (example(BATCH, width), example(BATCH, next(sizes), width))
        return [inputs | {"cond_semantic": item} for item in semantics]


class NaiveInfoEmbedder(VFPInfoEmbedder):
    """A :class:`VFPInfoEmbedder` whose projections end with a layer norm."""

    projection = staticmethod(normed_projection)


class VFPProprioProjector(nn.Module):
    """The visual features of all cameras as tokens, then projected proprioception.

    Example:
        >>> import torch
        >>> block = VFPProprioProjector(cond_proprio_dim=5, transformer_d_model=8)
        >>> block(cond_proprio=torch.zeros(4, 1, 5), cond_visual=torch.zeros(4, 2, 8, 7)).shape
        torch.Size([4, 15, 8])
    """

    def __init__(self, cond_proprio_dim: int, transformer_d_model: int) -> None:
        super().__init__()
        self.proprio_dim = check_count("cond_proprio_dim", cond_proprio_dim)
        self.d_model = check_count("transformer_d_model", transformer_d_model)
        self.proprio_projection = projection_unless_equal(self._layers, cond_proprio_dim, transformer_d_model)

    @staticmethod
    def _layers(features: int, width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(features, 2 * width),
            nn.SiLU(),
            nn.Linear(2 * width, 2 * width),
            nn.SiLU(),
            nn.Linear(2 * width, width),
            nn.SiLU(),
        )

    def forward(self, cond_proprio: Tensor, cond_visual: Tensor, **_ignored: object) -> Tensor:
        """Return the tokens ``(batch, tokens, d)`` of the visuals, camera by camera, then of proprioception.

        Args:
            cond_proprio: ``(batch, s, cond_proprio_dim)``.
            cond_visual: ``(batch, n, d, s)``, ``(batch, n, d, h, w)`` or ``(batch, n, t, d, h, w)`` of ``n`` cameras,
                with ``d = transformer_d_model`` channels.

        Raises:
            ValueError: rank or width differ from the above.
        """
        check_rank("cond_proprio", cond_proprio, SEQUENCE)
        visual = camera_tokens("cond_visual", cond_visual).flatten(1, 2)
        visual = project("cond_visual", visual, None, self.d_model)
        return torch.cat((visual, project("cond_proprio", cond_proprio, self.proprio_projection, self.d_model)), dim=1)

    def example_inputs(self) -> list[dict[str, object]]:
        """Return a call for each rank of the visuals."""
        sizes = distinct_sizes(self.d_model, self.proprio_dim)
        cameras, seq, time, height, width = (next(sizes) for _ in range(5))
        proprio = example(BATCH, next(sizes), self.proprio_dim)
        shapes = (height, width), (seq,)
        visuals = [example(BATCH, cameras, self.d_model, *shape) for shape in shapes]
        visuals.append(example(BATCH, cameras, time, self.d_model, height, width))
        return [{"cond_proprio": proprio, "cond_visual": visual} for visual in visuals]


class NaiveProprioProjector(VFPProprioProjector):
    """A :class:`VFPProprioProjector` with ELU and a last layer norm."""

    @staticmethod
    def _layers(features: int, width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(features, 2 * width),
            nn.ELU(),
            nn.Linear(2 * width, 2 * width),
            nn.ELU(),
            nn.Linear(2 * width, width),
            nn.LayerNorm(width),
        )


class CfgVQVAEProprioProjector(VFPProprioProjector):
    """A :class:`VFPProprioProjector` with smaller layers."""

    @staticmethod
    def _layers(features: int, width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(features, 2 * width),
            nn.SiLU(),
            nn.Linear(2 * width, width),
            nn.SiLU(),
            nn.Linear(width, width),
        )
