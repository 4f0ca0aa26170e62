"""Prior and posterior of a variational policy: latent tokens from observations and actions."""

from __future__ import annotations

from torch import Tensor, nn

from model_factory_server.constructor.blocks.parts.checks import check_count, check_optional_dim
from model_factory_server.constructor.blocks.parts.latent_encoder import LatentEncoder
from model_factory_server.constructor.blocks.parts.transformer import Activation, TransformerArguments


class VFPSinglePrior(nn.Module):
    """Latent tokens from observations.

    Example:
        >>> import torch
        >>> block = VFPSinglePrior(
        ...     cond_proprio_dim=5, cond_visual_dim=6, transformer_d_model=8, transformer_nhead=2,
        ...     transformer_dim_feedforward=16, transformer_dropout=0.0, transformer_activation="gelu",
        ...     transformer_batch_first=True, transformer_num_layers=1, use_cond_semantic=False,
        ...     use_cond_semantic_projection=False, cond_semantic_dim=None, num_cameras=2, use_cls_token=True,
        ...     num_cls_token=3,
        ... )
        >>> block(cond_proprio=torch.zeros(4, 1, 5), cond_visual=torch.zeros(4, 2, 6, 7)).shape
        torch.Size([4, 3, 8])
    """

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
        """Return latent tokens ``(batch, num_cls_token, d)``; for the arguments see :class:`LatentEncoder`."""
        return self.encoder(cond_proprio, cond_visual, cond_semantic, action)  # type: ignore[no-any-return]

    def example_inputs(self) -> list[dict[str, object]]:
        """Return the example calls of the encoder."""
        return self.encoder.example_inputs()


class VFPSinglePosterior(nn.Module):
    """Latent tokens from observations and the action chunk.

    Example:
        >>> import torch
        >>> block = VFPSinglePosterior(
        ...     cond_proprio_dim=5, cond_visual_dim=6, transformer_d_model=8, transformer_nhead=2,
        ...     transformer_dim_feedforward=16, transformer_dropout=0.0, transformer_activation="gelu",
        ...     transformer_batch_first=True, transformer_num_layers=1, action_dim=2, use_cond_semantic=False,
        ...     use_cond_semantic_projection=False, cond_semantic_dim=None, num_cameras=2, use_cls_token=True,
        ...     num_cls_token=3,
        ... )
        >>> action = torch.zeros(4, 9, 2)
        >>> block(cond_proprio=torch.zeros(4, 1, 5), cond_visual=torch.zeros(4, 2, 6, 7), action=action).shape
        torch.Size([4, 3, 8])
    """

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
        """Return latent tokens ``(batch, num_cls_token, d)``; for the arguments see :class:`LatentEncoder`."""
        return self.encoder(cond_proprio, cond_visual, cond_semantic, action)  # type: ignore[no-any-return]

    def example_inputs(self) -> list[dict[str, object]]:
        """Return the example calls of the encoder."""
        return self.encoder.example_inputs()
