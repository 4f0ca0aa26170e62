"""Transformers of x-transformers, with its options."""

from __future__ import annotations

from functools import partial
from typing import Any

import x_transformers as x
from torch import nn

from zoo.model import BATCH, Inputs, Model, images, integers, rows, tensors

_LENGTHS = (7, 7, 9)
_LAYERS = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8}


def models() -> list[Model]:
    """Return the models."""
    states = tensors(x=(BATCH, _LENGTHS, 32))
    table: dict[str, tuple[Any, Inputs]] = {
        "Decoder": (partial(_language_model, {}), integers(40, x=(BATCH, _LENGTHS))),
        "continuous": (
            lambda: x.ContinuousTransformerWrapper(
                dim_in=5, dim_out=3, max_seq_len=16, attn_layers=x.Encoder(**_LAYERS)
            ),
            tensors(x=(BATCH, _LENGTHS, 5)),
        ),
        "ViT": (
            lambda: x.ViTransformerWrapper(
                image_size=32, patch_size=8, num_classes=10, attn_layers=x.Encoder(**_LAYERS)
            ),
            images(32, name="img"),
        ),
        "Encoder": (lambda: x.Encoder(**_LAYERS), states),
        "AutoregressiveWrapper": (
            lambda: x.AutoregressiveWrapper(_language_model({})), integers(40, x=(BATCH, _LENGTHS))
        ),
        **{
            f"Decoder+{name}": (partial(_language_model, options), integers(40, x=(BATCH, _LENGTHS)))
            for name, options in {
                "rotary": {"rotary_pos_emb": True}, "alibi": {"alibi_pos_bias": True}, "rmsnorm": {"use_rmsnorm": True},
                "qk_norm": {"attn_qk_norm": True},
                "dynamic_pos_bias": {"dynamic_pos_bias": True}, "layer_dropout": {"layer_dropout": 0.2},
                "memory": {"attn_num_mem_kv": 2},
                "flash": {"attn_flash": True}, "talking_heads": {"attn_pre_talking_heads": True},
            }.items()
        },
    }  # fmt: skip
    return rows("x_transformers", table)


def _language_model(options: dict[str, Any]) -> nn.Module:
    return x.TransformerWrapper(num_tokens=40, max_seq_len=16, attn_layers=x.Decoder(**_LAYERS, **options))
