"""Encoders of observations and actions for variational policies, and the codebook of a vector-quantised policy."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn

from model_factory_server.constructor.blocks.parts.checks import check_count, check_optional_dim, note_ignored
from model_factory_server.constructor.blocks.parts.example_tensors import BATCH, distinct_sizes, example
from model_factory_server.constructor.blocks.parts.latent_encoder import AllTokensEncoder, LatentEncoder
from model_factory_server.constructor.blocks.parts.transformer import Activation, TransformerArguments

REPLACEMENT_NOISE = 0.02
"""Standard deviation of the noise on a vector that replaces a dead one."""


class EncoderBlock(nn.Module):
    """A :class:`LatentEncoder` under ``.encoder``; subclasses have the arguments of a config."""

    encoder: LatentEncoder

    def forward(
        self,
        cond_proprio: Tensor,
        cond_visual: Tensor,
        cond_semantic: Tensor | None = None,
        action: Tensor | None = None,
        **_ignored: object,
    ) -> Tensor | None:
        """Return latent tokens ``(batch, num_cls_token, d)``, or None without ``use_cls_token``.

        An information encoder returns all tokens ``(batch, tokens, d)``. For the arguments see :class:`LatentEncoder`.
        """
        return self.encoder(cond_proprio, cond_visual, cond_semantic, action)  # type: ignore[no-any-return]

    def example_inputs(self) -> list[dict[str, object]]:
        """Return the example calls of the encoder."""
        return self.encoder.example_inputs()


class VFPSinglePrior(EncoderBlock):
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
        num_cls_token: int | None,
        **ignored: object,
    ) -> None:
        super().__init__()
        note_ignored(type(self).__name__, ignored, refused=("use_action", "action_dim"))
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


class VFPSinglePosterior(EncoderBlock):
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
        num_cls_token: int | None,
        **ignored: object,
    ) -> None:
        super().__init__()
        note_ignored(type(self).__name__, ignored, refused=("use_action",))
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


class CfgVQVAEInfoEncoder(EncoderBlock):
    """All tokens of the observations, encoded; semantics come in the width of the transformer.

    Example:
        >>> import torch
        >>> block = CfgVQVAEInfoEncoder(
        ...     cond_proprio_dim=5, cond_visual_dim=6, use_cond_semantic=False, cond_semantic_dim=None, num_cameras=2,
        ...     transformer_d_model=8, transformer_nhead=2, transformer_dim_feedforward=16, transformer_dropout=0.0,
        ...     transformer_activation="gelu", transformer_batch_first=True, transformer_num_layers=1,
        ... )
        >>> block(cond_proprio=torch.zeros(4, 1, 5), cond_visual=torch.zeros(4, 2, 6, 7)).shape
        torch.Size([4, 15, 8])
    """

    def __init__(  # noqa: PLR0913, PLR0917  the config's arguments
        self,
        cond_proprio_dim: int,
        cond_visual_dim: int,
        use_cond_semantic: bool,
        cond_semantic_dim: int | None,
        num_cameras: int,
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
        refused = ("use_cond_semantic_projection", "use_cls_token", "num_cls_token", "use_action", "action_dim")
        note_ignored(type(self).__name__, ignored, refused=refused)
        self.encoder = AllTokensEncoder(
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
            project_semantic=False,
            num_cameras=num_cameras,
            use_cls_token=False,
            num_cls_token=None,
            action_dim=None,
        )


class VQCodebook(nn.Module):
    """Looks up the nearest of ``num_q_vectors`` learned vectors; replaces unused vectors on request.

    Every combination of ``train`` and ``replacement`` is recorded at the build. In a trainer of several processes, a
    rebuilt block refuses to replace vectors: a program exchanges nothing with other processes.

    Example:
        >>> import torch
        >>> block = VQCodebook(num_q_vectors=4, vec_dim=3)
        >>> block(torch.ones(2, 3), train=False, replacement=False)["q"].tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """

    portable_methods = ("get_min_pairwise_dist",)

    def __init__(self, num_q_vectors: int, vec_dim: int) -> None:
        super().__init__()
        self.num_q_vectors = check_count("num_q_vectors", num_q_vectors)
        self.vec_dim = check_count("vec_dim", vec_dim)
        self.vq_codebook = nn.Embedding(num_q_vectors, vec_dim)
        nn.init.zeros_(self.vq_codebook.weight)

    def forward(self, continuous_vec: Tensor, train: bool, replacement: bool) -> dict[str, Tensor | float | None]:
        """Quantise vectors.

        Args:
            continuous_vec: ``(..., vec_dim)``, of rank 2 or more.
            train: Also returns the extreme distances of the codebook; the mode of the module has no effect.
            replacement: With ``train``, first looks up without gradient, then replaces rarely used vectors by noisy
                copies of others, in place; without ``train``, nothing is looked up.

        Returns:
            ``q (..., vec_dim)``: the nearest vectors, whose gradient reaches these vectors only, or None;
            ``codebook_min_dist``, ``codebook_max_dist``: numbers, 0.0 without ``train``;
            ``num_vecs_replaced``: a number; ``dead_indices``: the rarely used vectors, or None.

        Raises:
            ValueError: ``continuous_vec`` has another rank or width.
        """
        result: dict[str, Tensor | float | None] = {
            "q": None,
            "codebook_min_dist": 0.0,
            "codebook_max_dist": 0.0,
            "num_vecs_replaced": 0,
            "dead_indices": None,
        }
        if not replacement:
            result["q"] = self._look_up(self._check(continuous_vec))[0]
        if train:
            lowest, highest = self._extreme_distances()
            result |= {"codebook_max_dist": highest.item(), "codebook_min_dist": lowest.item()}
        if train and replacement:
            with torch.no_grad():
                result["q"], index = self._look_up(continuous_vec)
                result["num_vecs_replaced"], result["dead_indices"] = self._replace_dead(index)
        return result

    def get_min_pairwise_dist(self) -> float:
        """Return the least Euclidean distance between two vectors of the codebook."""
        return self._extreme_distances()[0].item()

    def _check(self, continuous_vec: Tensor) -> Tensor:
        if continuous_vec.ndim < 2 or continuous_vec.shape[-1] != self.vec_dim:
            raise ValueError(
                f"continuous_vec must be (..., {self.vec_dim}), of rank 2 or more, got {tuple(continuous_vec.shape)}"
            )
        return continuous_vec

    def _look_up(self, continuous_vec: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest vectors ``(..., vec_dim)``, and their indices ``(vectors,)``."""
        with torch.no_grad():
            x = continuous_vec.reshape(-1, self.vec_dim).to(torch.float32)
            weight = self.vq_codebook.weight.to(torch.float32)
            norms = x.square().sum(dim=1, keepdim=True) + weight.square().sum(dim=1)
            index = (norms - 2 * (x @ weight.t())).argmin(dim=1)
        q = self.vq_codebook(index).reshape(continuous_vec.shape).to(continuous_vec.dtype)
        return q, index

    @torch.no_grad()
    def _extreme_distances(self) -> tuple[Tensor, Tensor]:
        weight = self.vq_codebook.weight.to(torch.float32)  # torch has no distances of half precision
        distances = torch.cdist(weight, weight)
        same = torch.eye(self.num_q_vectors, dtype=torch.bool, device=weight.device)
        return distances.masked_fill(same, float("inf")).min(), distances.max()

    def _replace_dead(self, index: Tensor) -> tuple[int, Tensor]:
        """Replace vectors that are used less than an even share; return their number and the indices of the dead."""
        counts = index.new_zeros(self.num_q_vectors).index_add_(0, index, torch.ones_like(index))
        is_distributed = distributed.is_available() and distributed.is_initialized()
        if is_distributed:
            distributed.all_reduce(counts)
        is_dead = counts < counts.sum().div(self.num_q_vectors, rounding_mode="floor").clamp(min=1)
        is_replaced = is_dead & ~is_dead.all()
        replaced = is_replaced.nonzero().flatten()
        weight = self.vq_codebook.weight.data
        made = weight[replaced]
        if not is_distributed or distributed.get_rank() == 0:
            made = self._draw_live(counts, ~is_dead, is_replaced) + REPLACEMENT_NOISE * torch.randn_like(made)
        if is_distributed:
            distributed.broadcast(made, src=0)
        weight[replaced] = made
        return replaced.shape[0], is_dead.nonzero().flatten()

    def _draw_live(self, counts: Tensor, is_live: Tensor, is_replaced: Tensor) -> Tensor:
        """Draw a live vector ``(replaced, vec_dim)`` for each one to replace, by use; without any, draw nothing.

        No decision by values: a program has one branch for each outcome, and fresh vectors reach one outcome only.
        """
        live = is_live.nonzero().flatten()
        shares = counts[live].to(torch.float32)
        row = (shares / shares.sum()).unsqueeze(0)[is_replaced.any().unsqueeze(0)]  # torch draws nothing from no rows
        replaced = is_replaced.nonzero().flatten()
        chosen = torch.multinomial(row, torch.sym_max(replaced.shape[0], 1), replacement=True)  # type: ignore[no-untyped-call]
        choice = torch.zeros_like(counts).masked_scatter(is_replaced, chosen.flatten())
        return self.vq_codebook.weight.data[live[choice[replaced]]]

    def example_inputs(self) -> dict[str, list[dict[str, object]]]:
        """Return look-ups of two ranks, and calls with every combination of ``train`` and ``replacement``."""
        seq = next(distinct_sizes(self.vec_dim, self.num_q_vectors))
        flat, sequence = example(BATCH, self.vec_dim), example(BATCH, seq, self.vec_dim)
        calls: list[dict[str, object]] = [
            {"continuous_vec": vectors, "train": train, "replacement": replacement}
            for vectors in (flat, sequence)
            for train in (False, True)
            for replacement in (False, True)
        ]
        return {"forward": calls, "get_min_pairwise_dist": [{}]}
