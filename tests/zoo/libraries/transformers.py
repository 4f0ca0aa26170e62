"""Models of transformers, from tiny configurations."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import transformers

from zoo.model import BATCH, Model, integers, rows, tensors, together

_VOCABULARY = 50
_LENGTHS = (7, 7, 9)
_TOKENS = {"vocab_size": _VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_ENCODER = {**_WIDTHS, **_TOKENS, "max_position_embeddings": 64}
_DECODER = {**_ENCODER, "num_key_value_heads": 2, "use_cache": False}
_EXPERTS = {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2}
_BOTH = {
    **_TOKENS, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
    "use_cache": False, "decoder_start_token_id": 1,
}  # fmt: skip
_T5 = {
    "vocab_size": _VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1,
    "num_heads": 4, "decoder_start_token_id": 0, "use_cache": False,
}  # fmt: skip
_IMAGE = {"image_size": 32, "patch_size": 8}

_TEXT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Bert": ("BertConfig", "BertModel", _ENCODER),
    "Albert": ("AlbertConfig", "AlbertModel", {**_ENCODER, "embedding_size": 16}),
    "DistilBert": (
        "DistilBertConfig", "DistilBertModel",
        {"vocab_size": _VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    ),
    "DebertaV2": (
        "DebertaV2Config", "DebertaV2Model",
        {**_ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4},
    ),
    "FNet": ("FNetConfig", "FNetModel", {**_ENCODER, "type_vocab_size": 2}),
    "LayoutLM": ("LayoutLMConfig", "LayoutLMModel", _ENCODER),
    "ModernBert": ("ModernBertConfig", "ModernBertModel", {**_ENCODER, "global_attn_every_n_layers": 2}),
    "XLNet": (
        "XLNetConfig", "XLNetModel",
        {"vocab_size": _VOCABULARY, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "use_mems_eval": False},
    ),
    "GPT2": (
        "GPT2Config", "GPT2LMHeadModel",
        {**_TOKENS, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "use_cache": False},
    ),
    "GPT2ForSequenceClassification": (
        "GPT2Config", "GPT2ForSequenceClassification",
        {**_TOKENS, "n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "use_cache": False},
    ),
    "GPTJ": (
        "GPTJConfig", "GPTJForCausalLM",
        {**_TOKENS, "n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4, "use_cache": False},
    ),
    "BLOOM": (
        "BloomConfig", "BloomModel", {**_TOKENS, "hidden_size": 32, "n_layer": 2, "n_head": 4, "use_cache": False}
    ),
    "OPT": ("OPTConfig", "OPTForCausalLM", {**_ENCODER, "ffn_dim": 64, "word_embed_proj_dim": 32, "use_cache": False}),
    "MPT": (
        "MptConfig", "MptModel",
        {"vocab_size": _VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "use_cache": False},
    ),
    "Llama": ("LlamaConfig", "LlamaForCausalLM", _DECODER),
    "Llama+cache": ("LlamaConfig", "LlamaModel", {**_DECODER, "use_cache": True}),
    "Mistral": ("MistralConfig", "MistralModel", {**_DECODER, "sliding_window": 4}),
    "Mixtral": ("MixtralConfig", "MixtralModel", _EXPERTS),
    "Qwen2": ("Qwen2Config", "Qwen2Model", _DECODER),
    "Qwen3": ("Qwen3Config", "Qwen3Model", {**_DECODER, "head_dim": 8}),
    "Gemma3-text": ("Gemma3TextConfig", "Gemma3TextModel", {**_DECODER, "head_dim": 8, "sliding_window": 4}),
    "DeepseekV3": (
        "DeepseekV3Config", "DeepseekV3Model",
        {**_DECODER, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2,
         "topk_group": 1, "moe_intermediate_size": 16, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
         "v_head_dim": 8, "qk_nope_head_dim": 8, "first_k_dense_replace": 1},
    ),
    "gpt-oss": ("GptOssConfig", "GptOssModel", {**_EXPERTS, "head_dim": 8, "sliding_window": 4}),
    "Mamba": (
        "MambaConfig", "MambaModel",
        {**_TOKENS, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4, "use_cache": False},
    ),
    "Mamba2": (
        "Mamba2Config", "Mamba2Model",
        {**_TOKENS, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4, "num_heads": 4, "head_dim": 8,
         "n_groups": 1, "expand": 2, "chunk_size": 4, "use_cache": False},
    ),
    "T5-encoder": ("T5Config", "T5EncoderModel", _T5),
}  # fmt: skip

_PAIRS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Bart": ("BartConfig", "BartForConditionalGeneration", _BOTH),
    "T5": ("T5Config", "T5ForConditionalGeneration", _T5),
}

_VISION: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ViT": ("ViTConfig", "ViTModel", {**_WIDTHS, **_IMAGE}),
    "BEiT": ("BeitConfig", "BeitModel", {**_WIDTHS, **_IMAGE, "use_relative_position_bias": True}),
    "DINOv2": ("Dinov2Config", "Dinov2Model", {**_WIDTHS, **_IMAGE}),
    "DINOv3-vit": ("DINOv3ViTConfig", "DINOv3ViTModel", {**_WIDTHS, **_IMAGE}),
    "SigLIP-vision": ("SiglipVisionConfig", "SiglipVisionModel", {**_WIDTHS, **_IMAGE}),
    "CLIP-vision": ("CLIPVisionConfig", "CLIPVisionModel", {**_WIDTHS, **_IMAGE}),
    "ResNet": (
        "ResNetConfig", "ResNetModel",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
    "ConvNextV2": ("ConvNextV2Config", "ConvNextV2Model", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}),
    "MobileViT": (
        "MobileViTConfig", "MobileViTModel",
        {"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 16, 16, 16], "num_attention_heads": 2},
    ),
    "PoolFormer": (
        "PoolFormerConfig", "PoolFormerModel",
        {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]},
    ),
    "Segformer": (
        "SegformerConfig", "SegformerModel",
        {"depths": [1, 1], "hidden_sizes": [8, 16], "num_attention_heads": [1, 2], "num_encoder_blocks": 2,
         "sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2]},
    ),
    "Swin": (
        "SwinConfig", "SwinModel",
        {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2], "window_size": 2},
    ),
    "Swinv2": (
        "Swinv2Config", "Swinv2Model",
        {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2},
    ),
    "DETR": (
        "DetrConfig", "DetrModel",
        {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
         "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 5,
         "use_timm_backbone": False, "use_pretrained_backbone": False,
         "backbone_config": transformers.ResNetConfig(
             embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"])},
    ),
}  # fmt: skip
_ANY_SIZE = {"ResNet", "ConvNext", "ConvNextV2", "MobileNetV2", "MobileViT", "PoolFormer", "Segformer", "DETR"}

_SPEECH = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": (8, 8),
    "conv_kernel": (8, 3), "conv_stride": (4, 2), "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2, "vocab_size": 20,
}  # fmt: skip


_PARTS = 4
"""Tokens of an image."""


def _merged(config_class: str, model_class: str, **settings: Any) -> torch.nn.Module:
    config = getattr(transformers, config_class)(image_token_index=49, image_token_id=49, **settings)
    return getattr(transformers, model_class)(config)


def _text_and_image(size: int, *, parts: int = _PARTS, extra: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
    """A text that begins with the places of an image."""
    numbers = torch.Generator().manual_seed(size)
    ids = torch.randint(1, 48, (BATCH[size], parts + _LENGTHS[size]), generator=numbers)
    ids[:, :parts] = 49
    pixels = torch.randn(BATCH[size], *extra, 3, 32, 32, generator=numbers)
    return {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}


def _with_token_types(size: int) -> dict[str, torch.Tensor]:
    found = _text_and_image(size, parts=16)
    return {**found, "token_type_ids": torch.zeros_like(found["input_ids"])}


_VISION_AND_LANGUAGE: dict[str, tuple[Any, Any]] = {
    "PaliGemma": (
        partial(
            _merged, "PaliGemmaConfig", "PaliGemmaForConditionalGeneration", projection_dim=32, hidden_size=32,
            text_config={**_DECODER, "model_type": "gemma", "head_dim": 8},
            vision_config={**_WIDTHS, **_IMAGE, "model_type": "siglip_vision_model", "projection_dim": 32,
                           "vision_use_head": False},
        ),
        _with_token_types,
    ),
    "SmolVLM": (
        partial(
            _merged, "SmolVLMConfig", "SmolVLMForConditionalGeneration", scale_factor=2,
            text_config={**_DECODER, "model_type": "llama"}, vision_config={**_WIDTHS, **_IMAGE},
        ),
        partial(_text_and_image, extra=(1,)),
    ),
}  # fmt: skip


def models() -> list[Model]:
    """Return the models."""
    ids = integers(_VOCABULARY, input_ids=(BATCH, _LENGTHS))
    pairs = together(ids, integers(_VOCABULARY, decoder_input_ids=(BATCH, 5)))
    table: dict[str, Any] = {name: (partial(_model, *item), ids) for name, item in _TEXT.items()}
    table |= {name: (partial(_model, *item), pairs) for name, item in _PAIRS.items()}
    for name, item in _VISION.items():
        sides = (64, 64, 96) if name in _ANY_SIZE else 32
        table[name] = partial(_model, *item), tensors(pixel_values=(BATCH, 3, sides, sides))
    table |= {
        "Llama+padding": (partial(_model, *_TEXT["Llama"]), together(ids, _padding)),
        "Bert+padding": (partial(_model, *_TEXT["Bert"]), together(ids, _padding)),
        "CLIP": (_clip, together(ids, tensors(pixel_values=(BATCH, 3, 32, 32)))),
        "wav2vec2": (
            partial(_model, "Wav2Vec2Config", "Wav2Vec2Model", {**_SPEECH, "mask_time_prob": 0.0}),
            tensors(input_values=(BATCH, (400, 400, 480))),
        ),
        "HuBERT": (
            partial(_model, "HubertConfig", "HubertModel", {**_SPEECH, "mask_time_prob": 0.0}),
            tensors(input_values=(BATCH, (400, 400, 480))),
        ),
        "Whisper-encoder": (_whisper, tensors(input_features=(BATCH, 20, 32))),
        "PatchTST": (
            partial(
                _model, "PatchTSTConfig", "PatchTSTModel",
                {"num_input_channels": 3, "context_length": 16, "patch_length": 4, "patch_stride": 4, "d_model": 16,
                 "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 32},
            ),
            tensors(past_values=(BATCH, 16, 3)),
        ),
        "TimeSformer": (
            partial(_model, "TimesformerConfig", "TimesformerModel", {**_WIDTHS, **_IMAGE, "num_frames": 2}),
            tensors(pixel_values=(BATCH, 2, 3, 32, 32)),
        ),
        "DecisionTransformer": (
            partial(
                _model, "DecisionTransformerConfig", "DecisionTransformerModel",
                {"state_dim": 5, "act_dim": 3, "hidden_size": 16, "n_layer": 1, "n_head": 2, "max_ep_len": 20},
            ),
            together(
                tensors(
                    states=(BATCH, 4, 5), actions=(BATCH, 4, 3), rewards=(BATCH, 4, 1), returns_to_go=(BATCH, 4, 1)
                ),
                integers(20, timesteps=(BATCH, 4)),
                integers(2, attention_mask=(BATCH, 4)),
            ),
        ),
    }  # fmt: skip
    table |= _VISION_AND_LANGUAGE
    refuses_gradients = {"transformers/wav2vec2", "transformers/HuBERT"}
    return [replace(item, input_gradients=item.name not in refuses_gradients) for item in rows("transformers", table)]


def _model(config_class: str, model_class: str, config: dict[str, Any]) -> torch.nn.Module:
    settings = getattr(transformers, config_class)(**config)
    return getattr(transformers, model_class)(settings)


def _clip() -> torch.nn.Module:
    text, vision = ({**_ENCODER, "projection_dim": 16}, {**_WIDTHS, **_IMAGE, "projection_dim": 16})
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))


def _whisper() -> torch.nn.Module:
    config = transformers.WhisperConfig(**{**_BOTH, "num_mel_bins": 20, "max_source_positions": 16})
    return transformers.WhisperModel(config).encoder


def _padding(size: int) -> dict[str, torch.Tensor]:
    mask = torch.ones(BATCH[size], _LENGTHS[size], dtype=torch.int64)
    mask[-1, -2:] = 0
    return {"attention_mask": mask}
