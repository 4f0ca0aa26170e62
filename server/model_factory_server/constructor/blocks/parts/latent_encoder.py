"""The encoder of prior and posterior of a variational policy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model_factory_server.constructor.blocks.parts.checks import check_count, check_flag, check_given, check_rank
from model_factory_server.constructor.blocks.parts.embedding import add_positions
from model_factory_server.constructor.blocks.parts.example_tensors import BATCH, distinct_sizes, example
from model_factory_server.constructor.blocks.parts.projections import (
    project,
    projection_unless_equal,
    silu_projection,
)
from model_factory_server.constructor.blocks.parts.tokens import (
    SEQUENCE,
    camera_tokens,
    make_cls_token,
    prepend,
    prepend_cls,
    semantic_sequence,
)
from model_factory_server.constructor.blocks.parts.transformer import TransformerArguments, TransformerEncoder


class LatentEncoder(nn.Module):
    """The encoder of the prior (``action_dim`` None) or of the posterior."""

    def __init__(  # noqa: PLR0913  the config's arguments
        self,
        arguments: TransformerArguments,
        *,
        proprio_dim: int,
        visual_dim: int,
        semantic_dim: int | None,
        project_semantic: bool,
        num_cameras: int,
        use_cls_token: bool,
        num_cls_token: int | None,
        action_dim: int | None,
    ) -> None:
        super().__init__()
        d_model = self.d_model = arguments.d_model
        self.proprio_dim = check_count("cond_proprio_dim", proprio_dim)
        self.visual_dim = check_count("cond_visual_dim", visual_dim)
        self.semantic_dim = semantic_dim
        self.action_dim = action_dim
        self.num_cameras = check_count("num_cameras", num_cameras)
        self.num_cls_token = num_cls_token

        self.cls_token = make_cls_token(use_cls_token, num_cls_token, d_model)
        self.action_projection = projection_unless_equal(silu_projection, action_dim, d_model)
        is_projected = check_flag("use_cond_semantic_projection", project_semantic)
        projected_semantic_dim = semantic_dim if is_projected else None
        self.semantic_projection = projection_unless_equal(silu_projection, projected_semantic_dim, d_model)
        self.proprio_projection = projection_unless_equal(silu_projection, proprio_dim, d_model)
        self.visual_projection = (
            None
            if visual_dim == d_model
            else nn.ModuleList(silu_projection(visual_dim, d_model) for _ in range(num_cameras))
        )
        self.encoder = TransformerEncoder(arguments)

    def forward(
        self, cond_proprio: Tensor, cond_visual: Tensor, cond_semantic: Tensor | None, action: Tensor | None
    ) -> Tensor | None:
        """Encode ``[learned tokens, action, semantics, visual, proprioception]``.

        Args:
            cond_proprio: ``(batch, s, cond_proprio_dim)``.
            cond_visual: ``(batch, n, c, s)``, ``(batch, n, c, h, w)`` or ``(batch, n, t, c, h, w)`` with ``n``
                cameras and ``c = cond_visual_dim``.
            cond_semantic: ``(batch, f)`` or ``(batch, k, f)`` with ``use_cond_semantic``; ignored otherwise.
            action: ``(batch, s, action_dim)`` for the posterior; ignored by the prior.

        Returns:
            The tokens of :meth:`_select`.

        Raises:
            ValueError: an argument is missing, or rank, width or number of cameras differ from the above.
        """
        check_rank("cond_proprio", cond_proprio, SEQUENCE)
        proprio = project("cond_proprio", cond_proprio, self.proprio_projection, self.d_model)
        x = torch.cat((*self._visual_tokens(cond_visual), proprio), dim=1)
        if self.semantic_dim is not None:
            cond_semantic = check_given("cond_semantic", cond_semantic, "use_cond_semantic is true")
            semantics = semantic_sequence("cond_semantic", cond_semantic)
            x = prepend(project("cond_semantic", semantics, self.semantic_projection, self.d_model), x)
        if self.action_dim is not None:
            action = check_given("action", action, "the posterior encodes actions")
            check_rank("action", action, SEQUENCE)
            x = prepend(project("action", action, self.action_projection, self.d_model), x)
        x = prepend_cls(self.cls_token, add_positions(x, self.d_model))
        return self._select(self.encoder(x))

    def _select(self, encoded: Tensor) -> Tensor | None:
        """Return the outputs ``(batch, num_cls_token, d)`` of the learned tokens; None without learned tokens."""
        return None if self.cls_token is None else encoded[:, : self.num_cls_token]

    def _visual_tokens(self, cond_visual: Tensor) -> list[Tensor]:
        """Return the tokens ``(batch, tokens, d)`` of each camera."""
        visual = camera_tokens("cond_visual", cond_visual)
        if cond_visual.shape[1] != self.num_cameras:
            raise ValueError(
                f"cond_visual is of {cond_visual.shape[1]} cameras (axis 1); the block was built for {self.num_cameras}"
            )
        projections = [None] * self.num_cameras if self.visual_projection is None else self.visual_projection
        return [
            project("cond_visual", visual[:, camera], projection, self.d_model)
            for camera, projection in enumerate(projections)
        ]

    def example_inputs(self) -> list[dict[str, object]]:
        """Return a call for each rank of the visuals, and a call with semantics ``(batch, k, f)`` if used."""
        sizes = distinct_sizes(
            self.d_model, self.proprio_dim, self.visual_dim, self.semantic_dim, self.action_dim, self.num_cameras
        )
        cameras, channels = (BATCH, self.num_cameras), self.visual_dim
        seq, time, height, width = (next(sizes) for _ in range(4))
        images = example(*cameras, channels, height, width)
        is_made_wide = self.semantic_dim is not None and self.semantic_projection is None
        semantic_width = self.d_model if is_made_wide else self.semantic_dim
        semantic = None if semantic_width is None else example(BATCH, semantic_width)
        common: dict[str, object] = {
            "cond_proprio": example(BATCH, next(sizes), self.proprio_dim),
            "cond_semantic": semantic,
            "action": None if self.action_dim is None else example(BATCH, next(sizes), self.action_dim),
        }
        visuals = (images, example(*cameras, channels, seq), example(*cameras, time, channels, height, width))
        calls = [common | {"cond_visual": visual} for visual in visuals]
        if semantic_width is not None:
            calls.append(calls[0] | {"cond_semantic": example(BATCH, next(sizes), semantic_width)})
        return calls


class AllTokensEncoder(LatentEncoder):
    """A :class:`LatentEncoder` that returns the outputs ``(batch, tokens, d)`` of all tokens."""

    def _select(self, encoded: Tensor) -> Tensor:
        return encoded
