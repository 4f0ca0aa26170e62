"""Models of the transformers library as a plug-in of model-factory: ``--plugin transformers_models``.

A plug-in can register any function that returns an ``nn.Module``. These models are built from a configuration, with new
weights and without a download; for pretrained weights, replace the constructor by ``from_pretrained(FOLDER)``.

The models return a ``ModelOutput``. A trainer gets a plain record with the same fields: ``out.last_hidden_state``,
``out["last_hidden_state"]``, ``out[0]``. The caches of language models for text generation are not portable, so
``use_cache`` is off.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

VISION = {
    "hf.vit": ("ViTConfig", "ViTModel"),
    "hf.dinov2": ("Dinov2Config", "Dinov2Model"),
    "hf.siglip_vision": ("SiglipVisionConfig", "SiglipVisionModel"),
    "hf.resnet": ("ResNetConfig", "ResNetModel"),
}
TEXT = {
    "hf.gpt2": ("GPT2Config", "GPT2Model"),
    "hf.bert": ("BertConfig", "BertModel"),
    "hf.llama": ("LlamaConfig", "LlamaModel"),
}
"""Name in a model config -> the classes of the transformers library."""


def vision_model(config_class: str, model_class: str, /, **config: Any) -> nn.Module:
    """Build a model of images ``(batch, channels, height, width)``; ``config`` holds fields of the configuration."""
    model, settings = _model(config_class, model_class, config)
    size = getattr(settings, "image_size", 64)
    model.example_inputs = lambda: [{"pixel_values": torch.zeros(2, settings.num_channels, size, size)}]
    return model


def text_model(config_class: str, model_class: str, /, **config: Any) -> nn.Module:
    """Build a model of token ids ``(batch, tokens)``; ``config`` holds fields of the configuration."""
    model, settings = _model(config_class, model_class, {"use_cache": False} | config)
    model.example_inputs = lambda: _token_batches(settings.vocab_size)
    return model


def _token_batches(vocabulary: int) -> list[dict[str, Tensor]]:
    """Return token ids without a mask, with a mask of ones (which the model ignores), and with padding."""
    ids = torch.arange(14).view(2, 7) % vocabulary
    padded = torch.ones_like(ids)
    padded[-1, -2:] = 0
    return [{"input_ids": ids} | mask for mask in ({}, {"attention_mask": ids * 0 + 1}, {"attention_mask": padded})]


def _model(config_class: str, model_class: str, config: dict[str, Any]) -> tuple[Any, Any]:
    import transformers  # noqa: PLC0415  takes seconds, and other models need no transformers

    settings = getattr(transformers, config_class)(**config)
    return getattr(transformers, model_class)(settings), settings


def register(registry: Any) -> None:
    """Register the models under the names for configs."""
    for names, make in ((VISION, vision_model), (TEXT, text_model)):
        for name, classes in names.items():
            registry.register_module(name, partial(make, *classes))
