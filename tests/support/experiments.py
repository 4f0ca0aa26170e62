"""Small experiments with the structure of experiments in use: components, wiring, and the loss of a training step.

A component is a graph with one module, whose arguments are references into ``params``, and one node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from support.compare import loss_of

BATCH = 2
STEPS = 5
ACTION, CHUNK, WIDTH, PROPRIO, VISUAL, SEMANTIC, CAMERAS = 6, 8, 16, 12, 20, 10, 2
RESNET_MAP = (2, 2)  # of an image of 40 x 48 pixels

Models = Mapping[str, Any]

TRANSFORMER = {
    "transformer_d_model": WIDTH,
    "transformer_nhead": 4,
    "transformer_dim_feedforward": 32,
    "transformer_dropout": 0.1,
    "transformer_activation": "gelu",
    "transformer_batch_first": True,
    "transformer_num_layers": 2,
}
SENSES = {
    "cond_proprio_dim": PROPRIO,
    "cond_visual_dim": VISUAL,
    "use_cond_semantic": True,
    "use_cond_semantic_projection": True,
    "cond_semantic_dim": SEMANTIC,
}
LATENT = TRANSFORMER | SENSES | {"num_cameras": CAMERAS, "use_cls_token": True, "num_cls_token": 3}
EMBEDDER = TRANSFORMER | SENSES | {"use_cls_token": False, "num_cls_token": 1, "use_action": False, "action_dim": None}
PROJECTOR = {"cond_proprio_dim": PROPRIO, "transformer_d_model": WIDTH}
CODEBOOK = {"num_q_vectors": 9, "vec_dim": WIDTH}
DECODER = TRANSFORMER | {
    "action_dim": ACTION,
    "transformer_action_chunk_size": CHUNK,
    "transformer_tgt_is_causal": True,
    "use_cond_semantic": False,
    "cond_semantic_dim": None,
}
CAMERA_KEYS = ["head", "left", "right"]

SENSE_INPUTS = ("cond_proprio", "cond_visual", "cond_semantic", "action")
DECODER_INPUTS = ("time", "noise", "memory_input", "discrete_semantic_input")


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Components and a training step."""

    components: Mapping[str, Mapping[str, Any]]
    """Configs by name."""
    loss: Callable[[Models, Callable[..., Tensor]], Tensor]
    """The loss of the models, with a maker of random tensors for the batch."""


def component(block: str, inputs: tuple[str, ...], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A config of one block, as experiments write it."""
    spec = {"_type_": block, **{name: f"${{params.{name}}}" for name in arguments}}
    node = {"name": "result", "call": "module:block", "kwargs": {name: f"${name}" for name in inputs}}
    graph = {"inputs": list(inputs), "modules": {"block": spec}, "nodes": [node], "outputs": ["$result"]}
    return {"schema_version": 1, "params": dict(arguments), "model": {"graph": graph | {"return": "single"}}}


def _senses(random: Callable[..., Tensor]) -> dict[str, Any]:
    return {
        "cond_proprio": random(BATCH, STEPS, PROPRIO),
        "cond_visual": random(BATCH, CAMERAS, VISUAL, 2, 3),
        "cond_semantic": random(BATCH, SEMANTIC),
    }


def _embedded(embedder: Any, senses: Mapping[str, Any]) -> Tensor:
    visual = senses["cond_visual"].flatten(3).transpose(2, 3).flatten(1, 2)
    output = embedder(**{**senses, "cond_visual": visual}, action=None)
    embedded: Tensor = output["encoder_output"]
    return embedded


def _denoised(decoder: Any, memory: Tensor, random: Callable[..., Tensor]) -> Tensor:
    result: Tensor = decoder(
        time=random(BATCH).sigmoid(),
        noise=random(BATCH, CHUNK, ACTION),
        memory_input=memory,
        discrete_semantic_input=None,
    )
    return result


def _autoencoder_loss(models: Models, random: Callable[..., Tensor]) -> Tensor:
    actions = random(BATCH, CHUNK, ACTION)
    decoded = models["action_decoder"](models["action_encoder"](actions)["embedding"])["action"]
    return (decoded - actions).square().mean()


def _actor_and_critic_loss(models: Models, random: Callable[..., Tensor]) -> Tensor:
    features = {key: random(BATCH, 16, *RESNET_MAP) for key in CAMERA_KEYS}
    data = {**features, "head_depth": random(BATCH, 12, 3, 3), "proprio": random(BATCH, 4, 5)}
    noise = models["noise_actor"](models["noise_processor"](data))
    values = models["q_function"](models["q_processor"]({**data, "action": noise}))
    return values.square().mean() - noise.square().mean()


def _mixture_loss(models: Models, random: Callable[..., Tensor]) -> Tensor:
    senses, actions = _senses(random), random(BATCH, CHUNK, ACTION)
    latent = models["posterior"](**senses, action=actions)
    prior = models["prior"](**senses, action=None)
    codes = models["codebook"](latent.flatten(0, 1), train=True, replacement=False)["q"].view_as(latent)
    memory = torch.cat([_embedded(models["info_embedder"], senses), codes], dim=1)
    weights = models["gate"](latent.mean(dim=1), iterations=0, training=True, use_noise=True)
    chosen = (weights[..., None, None] * _denoised(models["moe_action_decoder"], memory, random)).sum(dim=1)
    projected = models["proprio_projector"](random(BATCH, STEPS, PROPRIO), random(BATCH, CAMERAS, WIDTH, 2, 3))
    return loss_of([chosen - actions, latent - prior, projected])


def _naive_loss(models: Models, random: Callable[..., Tensor]) -> Tensor:
    memory = _embedded(models["info_embedder"], _senses(random))
    projected = models["proprio_projector"](random(BATCH, STEPS, PROPRIO), random(BATCH, CAMERAS, WIDTH, 2, 3))
    return loss_of(_denoised(models["action_decoder"], torch.cat([memory, projected], dim=1), random))


def _quantised_loss(models: Models, random: Callable[..., Tensor]) -> Tensor:
    senses, actions = _senses(random), random(BATCH, CHUNK, ACTION)
    latent = models["posterior"](**senses, action=actions)
    prior = models["prior"](**senses, action=None)
    codes = models["codebook"](latent.flatten(0, 1), train=True, replacement=False)["q"].view_as(latent)
    encoded = models["info_encoder"](**{**senses, "cond_semantic": random(BATCH, 3, WIDTH)}, action=None)
    projected = models["proprio_projector"](random(BATCH, STEPS, PROPRIO), random(BATCH, CAMERAS, WIDTH, 2, 3))
    memory = torch.cat([codes, encoded, projected], dim=1)
    return loss_of([_denoised(models["action_decoder"], memory, random) - actions, latent - prior])


def _residual_loss(models: Models, random: Callable[..., Tensor]) -> Tensor:
    images = {key: random(BATCH, 3, 40, 48).sigmoid() for key in CAMERA_KEYS}
    state, action = {**images, "proprio": random(BATCH, 3, 2)}, random(BATCH, 2, 5)
    return loss_of(models["residual_actor"](state, action))


_PROCESSOR = {
    "proprio_key": "proprio",
    "depth_data_keys": ["head_depth"],
    "img_data_keys": CAMERA_KEYS,
    "input_img_channel": 16,
    "input_depth_channel": 12,
    "output_img_channel": 3,
    "output_depth_channel": 4,
}
_FEATURES = 3 * 3 * 4 + 4 * 9 + 20  # of three cameras, of depth and of proprioception
_ACTOR = {"action_chunk_size": 3, "action_dim": ACTION, "num_layers": 2, "num_hidden_dim": 32, "dropout": 0.1}
_CRITIC = {"num_ensemble": 3, "num_layers": 2, "num_hidden_dim": 32, "dropout": 0.1}
_AUTOENCODER = {
    "final_activation": "sigmoid",
    "embedding_dim": 8,
    "hidden_dim": 32,
    "action_dim": ACTION,
    "action_chunk": CHUNK,
}

EXPERIMENTS: Mapping[str, Experiment] = {
    "mutual information": Experiment(
        components={
            "action_encoder": component("a_encoder", ("action",), _AUTOENCODER),
            "action_decoder": component("a_decoder", ("embedding",), _AUTOENCODER),
        },
        loss=_autoencoder_loss,
    ),
    "dsrl": Experiment(
        components={
            "noise_processor": component("dsrl_noise_actor_processor", ("data",), _PROCESSOR),
            "q_processor": component("dsrl_q_function_processor", ("data",), _PROCESSOR | {"action_key": "action"}),
            "noise_actor": component(
                "dsrl_noise_latent_actor", ("flattened_tensor",), _ACTOR | {"input_dim": _FEATURES}
            ),
            "q_function": component(
                "dsrl_q_function", ("flattened_tensor",), _CRITIC | {"input_dim": _FEATURES + 3 * ACTION}
            ),
        },
        loss=_actor_and_critic_loss,
    ),
    "mixture": Experiment(
        components={
            "info_embedder": component("vfp_info_embedder", SENSE_INPUTS, EMBEDDER),
            "prior": component("vfp_prior", SENSE_INPUTS, LATENT),
            "posterior": component("vfp_posterior", SENSE_INPUTS, LATENT | {"action_dim": ACTION}),
            "codebook": component("vfp_vqvae_codebook", ("continuous_vec", "train", "replacement"), CODEBOOK),
            "gate": component(
                "vfp_gate",
                ("input", "iterations", "training", "use_noise"),
                {"input_dim": WIDTH, "num_experts": 4, "temperature": 5, "top_k": 3},
            ),
            "proprio_projector": component("vfp_proprio_projector", SENSE_INPUTS[:2], PROJECTOR),
            "moe_action_decoder": component("vfp_moe", DECODER_INPUTS, DECODER | {"num_experts": 4}),
        },
        loss=_mixture_loss,
    ),
    "naive": Experiment(
        components={
            "info_embedder": component("naive_info_embedder", SENSE_INPUTS, EMBEDDER),
            "proprio_projector": component("naive_proprio_projector", SENSE_INPUTS[:2], PROJECTOR),
            "action_decoder": component("naive_action_decoder", DECODER_INPUTS, DECODER),
        },
        loss=_naive_loss,
    ),
    "cfg_vqvae": Experiment(
        components={
            "prior": component("cfg_vqvae_prior", SENSE_INPUTS, LATENT),
            "posterior": component("cfg_vqvae_posterior", SENSE_INPUTS, LATENT | {"action_dim": ACTION}),
            "codebook": component("cfg_vqvae_codebook", ("continuous_vec", "train", "replacement"), CODEBOOK),
            "info_encoder": component(
                "cfg_vqvae_info_encoder",
                SENSE_INPUTS,
                TRANSFORMER
                | {name: value for name, value in SENSES.items() if name != "use_cond_semantic_projection"}
                | {"cond_semantic_dim": WIDTH, "num_cameras": CAMERAS},
            ),
            "proprio_projector": component("cfg_vqvae_proprio_projector", SENSE_INPUTS[:2], PROJECTOR),
            "action_decoder": component("cfg_vqvae_action_decoder", DECODER_INPUTS, DECODER),
        },
        loss=_quantised_loss,
    ),
}
"""Experiments on blocks without files of the operator; the experiments with one flow-matching expert are in
``tests/configs``."""

_RESIDUAL = {
    "img_resize": False,
    "action_key": "action",
    "proprio_key": "proprio",
    "depth_data_keys": [],
    "img_data_keys": CAMERA_KEYS,
    "input_img_channel": 512,
    "input_depth_channel": 16,
    "output_img_channel": 3,
    "output_depth_channel": 2,
    "input_dim": 3 * 3 * 4 + 6 + 10,
    "num_layers": 2,
    "num_hidden_dim": 32,
    "dropout": 0.0,
}
RESFIT = Experiment(
    components={
        "residual_actor": component("resfit_residual_actor", ("state", "action"), _RESIDUAL | {"action_dim": ACTION})
    },
    loss=_residual_loss,
)
"""Residual fine-tuning, on a ResNet-34 with weights of the operator's hub folder."""
