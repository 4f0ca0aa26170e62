"""Prior and posterior of a variational policy: observations (and actions) to latent tokens."""

from __future__ import annotations

from torch import Tensor, nn

from model_factory_server.constructor.blocks.parts.checks import check_count, check_optional_dim
from model_factory_server.constructor.blocks.parts.latent_encoder import LatentEncoder
from model_factory_server.constructor.blocks.parts.transformer import Activation, TransformerArguments


class VFPSinglePrior(nn.Module):
    """Latent tokens from observations."""

    def __init__(  # noqa: PLR0913, PLR0917  the config's arguments
        self,
        cond_proprio_dim: int,
        cond_visual_dim: int,
        transformer_d_model: int,
        transformer_nhead: int,
        transformer_dim_feedforward: int,
        transformer_dropout: float,
        transformer_activation: Activation,
        transformer_batch_first: bool,
        transformer_num_layers: int,
        use_cond_semantic: bool,
        use_cond_semantic_projection: bool,
        cond_semantic_dim: int | None,
        num_cameras: int,
        use_cls_token: bool,
        num_cls_token: int,
    ) -> None:
        super().__init__()
        self.encoder = LatentEncoder(
            TransformerArguments(
                d_model=transformer_d_model,
                nhead=transformer_nhead,
                dim_feedforward=transformer_dim_feedforward,
                dropout=transformer_dropout,
                activation=transformer_activation,
                batch_first=transformer_batch_first,
                num_layers=transformer_num_layers,
            ),
            proprio_dim=cond_proprio_dim,
            visual_dim=cond_visual_dim,
            semantic_dim=check_optional_dim(
                "use_cond_semantic", use_cond_semantic, "cond_semantic_dim", cond_semantic_dim
            ),
            project_semantic=use_cond_semantic_projection,
            num_cameras=num_cameras,
            use_cls_token=use_cls_token,
            num_cls_token=num_cls_token,
            action_dim=None,
        )

    def forward(
        self,
        cond_proprio: Tensor,
        cond_visual: Tensor,
        cond_semantic: Tensor | None = None,
        action: Tensor | None = None,
    ) -> Tensor:
        """Return latent tokens ``(batch, num_cls_token, d)``; the arguments are those of :class:`LatentEncoder`."""
        return self.encoder(cond_proprio, cond_visual, cond_semantic, action)  # type: ignore[no-any-return]

    def example_inputs(self) -> list[dict[str, object]]:
        """Return the encoder's example calls."""
        return self.encoder.example_inputs()


class VFPSinglePosterior(nn.Module):
    """Latent tokens from observations and the action chunk."""

    def __init__(  # noqa: PLR0913, PLR0917  the config's arguments
        self,
        cond_proprio_dim: int,
        cond_visual_dim: int,
        transformer_d_model: int,
        transformer_nhead: int,
        transformer_dim_feedforward: int,
        transformer_dropout: float,
        transformer_activation: Activation,
        transformer_batch_first: bool,
        transformer_num_layers: int,
        action_dim: int,
        use_cond_semantic: bool,
        use_cond_semantic_projection: bool,
        cond_semantic_dim: int | None,
        num_cameras: int,
        use_cls_token: bool,
        num_cls_token: int,
    ) -> None:
        super().__init__()
        self.encoder = LatentEncoder(
            TransformerArguments(
                d_model=transformer_d_model,
                nhead=transformer_nhead,
                dim_feedforward=transformer_dim_feedforward,
                dropout=transformer_dropout,
                activation=transformer_activation,
                batch_first=transformer_batch_first,
                num_layers=transformer_num_layers,
            ),
            proprio_dim=cond_proprio_dim,
            visual_dim=cond_visual_dim,
            semantic_dim=check_optional_dim(
                "use_cond_semantic", use_cond_semantic, "cond_semantic_dim", cond_semantic_dim
            ),
            project_semantic=use_cond_semantic_projection,
            num_cameras=num_cameras,
            use_cls_token=use_cls_token,
            num_cls_token=num_cls_token,
            action_dim=check_count("action_dim", action_dim),
        )

    def forward(
        self,
        cond_proprio: Tensor,
        cond_visual: Tensor,
        cond_semantic: Tensor | None = None,
        action: Tensor | None = None,
    ) -> Tensor:
        """Return latent tokens ``(batch, num_cls_token, d)``; the arguments are those of :class:`LatentEncoder`."""
        return self.encoder(cond_proprio, cond_visual, cond_semantic, action)  # type: ignore[no-any-return]

    def example_inputs(self) -> list[dict[str, object]]:
        """Return the encoder's example calls."""
        return self.encoder.example_inputs()
