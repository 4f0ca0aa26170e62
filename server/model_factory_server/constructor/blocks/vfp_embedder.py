"""Embedders of observations: proprioception, images, semantics and optional actions as a sequence of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from model_factory_server.constructor.blocks.parts.checks import (
    check_count,
    check_flag,
    check_given,
    check_optional_dim,
    check_rank,
)
from model_factory_server.constructor.blocks.parts.embedding import add_positions
from model_factory_server.constructor.blocks.parts.example_tensors import BATCH, distinct_sizes, example
from model_factory_server.constructor.blocks.parts.projections import (
    normed_projection,
    project,
    projection_unless_equal,
)
from model_factory_server.constructor.blocks.parts.tokens import SEQUENCE, make_cls_token, prepend, prepend_cls
from model_factory_server.constructor.blocks.parts.transformer import (
    Activation,
    TransformerArguments,
    TransformerEncoder,
)


class ModalityTokens(nn.Module):
    """Projects every modality to width ``d = transformer_d_model`` and joins all tokens, with positions.

    A modality of width ``d`` has no projection: proprioception, semantics and actions pass through, and images are
    left out. Existing checkpoints rely on both.
    """

    def __init__(  # noqa: PLR0913, PLR0917  the config's arguments
        self,
        cond_proprio_dim: int,
        cond_visual_dim: int,
        num_cond_visuals: int,
        use_cls_token: bool,
        num_cls_token: int,
        use_action: bool,
        action_dim: int | None,
        use_cond_semantic: bool,
        use_cond_semantic_projection: bool,
        num_cond_semantic: int | None,
        cond_semantic_dim: int | None,
        transformer_d_model: int,
    ) -> None:
        super().__init__()
        d_model = self.d_model = check_count("transformer_d_model", transformer_d_model)
        self.proprio_dim = check_count("cond_proprio_dim", cond_proprio_dim)
        self.visual_dim = check_count("cond_visual_dim", cond_visual_dim)
        self.num_visuals = check_count("num_cond_visuals", num_cond_visuals)
        self.action_dim = check_optional_dim("use_action", use_action, "action_dim", action_dim)
        self.semantic_dim = check_optional_dim(
            "use_cond_semantic", use_cond_semantic, "cond_semantic_dim", cond_semantic_dim
        )
        self.num_semantics = check_count("num_cond_semantic", num_cond_semantic) if use_cond_semantic else None
        self.num_cls_token = num_cls_token

        is_projected = check_flag("use_cond_semantic_projection", use_cond_semantic_projection)
        projected_semantic_dim = self.semantic_dim if is_projected else None
        self.cls_token = make_cls_token(use_cls_token, num_cls_token, d_model)
        self.action_projection = projection_unless_equal(normed_projection, self.action_dim, d_model)
        self.semantic_projection = _projections(self.num_semantics, projected_semantic_dim, d_model)
        self.proprio_projection = projection_unless_equal(normed_projection, cond_proprio_dim, d_model)
        self.visual_projection = _projections(num_cond_visuals, cond_visual_dim, d_model)

    def assemble(
        self,
        cond_proprio: Tensor,
        cond_visual: Sequence[Tensor] | None,
        cond_semantic: Sequence[Tensor] | None,
        action: Tensor | None,
    ) -> Tensor:
        """Assemble the sequence ``(batch, tokens, d)``.

        Order: learned tokens, action, semantics from last to first, visuals from last to first, proprioception.

        Args:
            cond_proprio: ``(batch, s, cond_proprio_dim)``.
            cond_visual: ``num_cond_visuals`` tensors ``(batch, s, cond_visual_dim)``; ``s`` may differ.
            cond_semantic: ``num_cond_semantic`` tensors ``(batch, s, cond_semantic_dim)``, or None for no semantics.
            action: ``(batch, s, action_dim)`` with ``use_action``; ignored otherwise.

        Raises:
            ValueError: an argument is missing, or rank, width or number differ from the above.
        """
        check_rank("cond_proprio", cond_proprio, SEQUENCE)
        x = project("cond_proprio", cond_proprio, self.proprio_projection, self.d_model)
        if self.visual_projection is not None:
            visuals = check_given("cond_visual", cond_visual, "the block has visual projections")
            x = self._prepend_each("cond_visual", visuals, self.num_visuals, self.visual_projection, x)
        if cond_semantic is not None:
            x = self._prepend_each("cond_semantic", cond_semantic, self.num_semantics, self.semantic_projection, x)
        if self.action_dim is not None:
            action = check_given("action", action, "use_action is true")
            check_rank("action", action, SEQUENCE)
            x = prepend(project("action", action, self.action_projection, self.d_model), x)
        return prepend_cls(self.cls_token, add_positions(x, self.d_model))

    def _prepend_each(
        self, name: str, items: Sequence[Tensor], count: int | None, projections: nn.ModuleList | None, x: Tensor
    ) -> Tensor:
        if isinstance(items, Tensor):
            raise ValueError(f"{name} must be a list of tensors, got one tensor of shape {tuple(items.shape)}")  # noqa: TRY004
        if count is not None and len(items) != count:
            raise ValueError(f"{name} has {len(items)} tensors; the block was built for {count}")
        for index, item in enumerate(items):
            check_rank(f"{name}[{index}]", item, SEQUENCE)
            projection = None if projections is None else projections[index]
            x = prepend(project(f"{name}[{index}]", item, projection, self.d_model), x)
        return x

    def example_inputs(self) -> list[dict[str, object]]:
        """Return a call with semantics, if the block uses semantics, and a call without."""
        sizes = distinct_sizes(self.d_model, self.proprio_dim, self.visual_dim, self.action_dim, self.semantic_dim)
        inputs: dict[str, object] = {
            "cond_proprio": example(BATCH, next(sizes), self.proprio_dim),
            "cond_visual": [example(BATCH, next(sizes), self.visual_dim) for _ in range(self.num_visuals)],
            "cond_semantic": None,
            "action": None if self.action_dim is None else example(BATCH, next(sizes), self.action_dim),
        }
        if self.semantic_dim is None or self.num_semantics is None:
            return [inputs]
        width = self.d_model if self.semantic_projection is None else self.semantic_dim
        semantics = [example(BATCH, next(sizes), width) for _ in range(self.num_semantics)]
        return [inputs | {"cond_semantic": semantics}, inputs]


class VFPSingleMultimodalBridge(ModalityTokens):
    """The modalities as a sequence of tokens.

    Example:
        >>> import torch
        >>> block = VFPSingleMultimodalBridge(
        ...     cond_proprio_dim=5, cond_visual_dim=6, num_cond_visuals=1, use_cls_token=True, num_cls_token=2,
        ...     use_action=False, action_dim=None, use_cond_semantic=False, use_cond_semantic_projection=False,
        ...     num_cond_semantic=None, cond_semantic_dim=None, transformer_d_model=8,
        ... )
        >>> block(cond_proprio=torch.zeros(3, 1, 5), cond_visual=[torch.zeros(3, 4, 6)]).shape
        torch.Size([3, 7, 8])
    """

    def forward(
        self,
        cond_proprio: Tensor,
        cond_visual: Sequence[Tensor] | None,
        cond_semantic: Sequence[Tensor] | None = None,
        action: Tensor | None = None,
    ) -> Tensor:
        """Return the sequence ``(batch, tokens, d)``; for the arguments see :meth:`assemble`."""
        return self.assemble(cond_proprio, cond_visual, cond_semantic, action)


class VFPSingleInfoEmbedder(ModalityTokens):
    """The modalities as a sequence of tokens, encoded by a transformer.

    Example:
        >>> import torch
        >>> block = VFPSingleInfoEmbedder(
        ...     cond_proprio_dim=5, cond_visual_dim=6, num_cond_visuals=1, use_cls_token=True, num_cls_token=2,
        ...     use_action=False, action_dim=None, use_cond_semantic=False, use_cond_semantic_projection=False,
        ...     num_cond_semantic=None, cond_semantic_dim=None, transformer_d_model=8, transformer_nhead=2,
        ...     transformer_dim_feedforward=16, transformer_dropout=0.0, transformer_activation="gelu",
        ...     transformer_batch_first=True, transformer_num_layers=1,
        ... )
        >>> encoded = block(cond_proprio=torch.zeros(3, 1, 5), cond_visual=[torch.zeros(3, 4, 6)])
        >>> {name: tuple(value.shape) for name, value in encoded.items()}
        {'cls_token': (3, 2, 8), 'encoder_output': (3, 7, 8)}
    """

    def __init__(  # noqa: PLR0913, PLR0917  the config's arguments
        self,
        cond_proprio_dim: int,
        cond_visual_dim: int,
        num_cond_visuals: int,
        use_cls_token: bool,
        num_cls_token: int,
        use_action: bool,
        action_dim: int | None,
        use_cond_semantic: bool,
        use_cond_semantic_projection: bool,
        num_cond_semantic: int | None,
        cond_semantic_dim: int | None,
        transformer_d_model: int,
        transformer_nhead: int,
        transformer_dim_feedforward: int,
        transformer_dropout: float,
        transformer_activation: Activation,
        transformer_batch_first: bool,
        transformer_num_layers: int,
    ) -> None:
        super().__init__(
            cond_proprio_dim=cond_proprio_dim,
            cond_visual_dim=cond_visual_dim,
            num_cond_visuals=num_cond_visuals,
            use_cls_token=use_cls_token,
            num_cls_token=num_cls_token,
            use_action=use_action,
            action_dim=action_dim,
            use_cond_semantic=use_cond_semantic,
            use_cond_semantic_projection=use_cond_semantic_projection,
            num_cond_semantic=num_cond_semantic,
            cond_semantic_dim=cond_semantic_dim,
            transformer_d_model=transformer_d_model,
        )
        self.encoder = TransformerEncoder(
            TransformerArguments(
                d_model=transformer_d_model,
                nhead=transformer_nhead,
                dim_feedforward=transformer_dim_feedforward,
                dropout=transformer_dropout,
                activation=transformer_activation,
                batch_first=transformer_batch_first,
                num_layers=transformer_num_layers,
            )
        )

    def forward(
        self,
        cond_proprio: Tensor,
        cond_visual: Sequence[Tensor] | None,
        cond_semantic: Sequence[Tensor] | None = None,
        action: Tensor | None = None,
    ) -> dict[str, Tensor | None]:
        """Encode the sequence; for the arguments see :meth:`assemble`.

        Returns:
            ``encoder_output (batch, tokens, d)``, and ``cls_token (batch, num_cls_token, d)``: the first tokens of the
            output if the block has learned tokens, else None.
        """
        encoded: Tensor = self.encoder(self.assemble(cond_proprio, cond_visual, cond_semantic, action))
        cls_token = None if self.cls_token is None else encoded[:, : self.num_cls_token]
        return {"cls_token": cls_token, "encoder_output": encoded}


def _projections(count: int | None, features: int | None, width: int) -> nn.ModuleList | None:
    if count is None or features is None or features == width:
        return None
    return nn.ModuleList(normed_projection(features, width) for _ in range(count))
