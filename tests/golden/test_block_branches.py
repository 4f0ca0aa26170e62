"""What blocks do where no golden looks: the branches of their contracts, and their refusals."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_with_programs
from model_factory_server.constructor.blocks import BLOCKS
from model_factory_server.constructor.blocks.parts.checks import check_rank
from model_factory_server.constructor.blocks.parts.embedding import add_positions, embed_time
from model_factory_server.constructor.blocks.parts.example_tensors import BATCH

D = 8
TRANSFORMER = {
    "transformer_d_model": D,
    "transformer_nhead": 2,
    "transformer_dim_feedforward": 16,
    "transformer_dropout": 0.1,
    "transformer_activation": "gelu",
    "transformer_batch_first": True,
    "transformer_num_layers": 1,
}
BRIDGE = {
    "cond_proprio_dim": D,
    "cond_visual_dim": 5,
    "num_cond_visuals": 2,
    "use_cls_token": False,
    "num_cls_token": 1,
    "use_action": False,
    "action_dim": None,
    "use_cond_semantic": False,
    "use_cond_semantic_projection": True,
    "num_cond_semantic": 2,
    "cond_semantic_dim": None,
    "transformer_d_model": D,
}
DECODER = TRANSFORMER | {
    "action_dim": 3,
    "transformer_tgt_is_causal": True,
    "transformer_action_chunk_size": 6,
}
PRIOR = TRANSFORMER | {
    "cond_proprio_dim": 6,
    "cond_visual_dim": 5,
    "use_cond_semantic": False,
    "use_cond_semantic_projection": True,
    "cond_semantic_dim": None,
    "num_cameras": 2,
    "use_cls_token": True,
    "num_cls_token": 3,
}
POSTERIOR = PRIOR | {"action_dim": 3, "use_cond_semantic": True, "cond_semantic_dim": 7}
EMBEDDER = TRANSFORMER | {
    "cond_proprio_dim": 6,
    "cond_visual_dim": 5,
    "use_cls_token": True,
    "num_cls_token": 2,
    "use_action": True,
    "action_dim": 3,
    "use_cond_semantic": True,
    "use_cond_semantic_projection": True,
    "cond_semantic_dim": 7,
}
SEMANTIC_DECODER = DECODER | {"use_cond_semantic": True, "cond_semantic_dim": 5}
PROJECTOR = {"cond_proprio_dim": 5, "transformer_d_model": D}
CODEBOOK = {"num_q_vectors": 4, "vec_dim": 5}
SMALL: dict[str, dict[str, Any]] = {
    "a_decoder": {"embedding_dim": 5, "hidden_dim": 7, "action_dim": 3, "action_chunk": 4},
    "a_encoder": {"embedding_dim": 5, "hidden_dim": 7, "action_dim": 3, "action_chunk": 4},
    "cfg_vqvae_action_decoder": SEMANTIC_DECODER,
    "cfg_vqvae_codebook": CODEBOOK,
    "cfg_vqvae_info_encoder": TRANSFORMER
    | {
        "cond_proprio_dim": 6,
        "cond_visual_dim": 5,
        "use_cond_semantic": True,
        "cond_semantic_dim": 7,
        "num_cameras": 2,
    },
    "cfg_vqvae_posterior": POSTERIOR,
    "cfg_vqvae_prior": PRIOR,
    "cfg_vqvae_proprio_projector": PROJECTOR,
    "conv_bn_act": {"in_channels": 3, "out_channels": 4, "kernel_size": [5, 2], "dilation": 2},
    "dsrl_noise_actor_processor": {"input_img_channel": 5, "input_depth_channel": 3, "output_img_channel": 4},
    "dsrl_noise_latent_actor": {"input_dim": 5, "action_chunk_size": 4, "action_dim": 3, "num_hidden_dim": 7},
    "dsrl_q_function": {"input_dim": 5, "num_hidden_dim": 7},
    "dsrl_q_function_processor": {"input_img_channel": 5, "input_depth_channel": 3, "img_data_keys": ["left"]},
    "mlp": {"dims": [5, 7, 3]},
    "naive_action_decoder": SEMANTIC_DECODER,
    "naive_info_embedder": EMBEDDER,
    "naive_proprio_projector": PROJECTOR,
    "residual_block": {"in_channels": 3, "stride": 2},
    "vfp_gate": {"input_dim": 5, "num_experts": 4, "temperature": 2.0, "top_k": 1},
    "vfp_info_embedder": EMBEDDER,
    "vfp_moe": SEMANTIC_DECODER | {"num_experts": 2},
    "vfp_posterior": POSTERIOR,
    "vfp_prior": PRIOR,
    "vfp_proprio_projector": PROJECTOR,
    "vfp_single_action_decoder": DECODER | {"use_cond_semantic": True, "cond_semantic_dim": D},
    "vfp_single_info_embedder": BRIDGE
    | TRANSFORMER
    | {"use_cls_token": True, "use_action": True, "action_dim": 3, "use_cond_semantic": True, "cond_semantic_dim": 7},
    "vfp_single_multimodal_bridge": BRIDGE | {"cond_visual_dim": D, "cond_proprio_dim": 5},
    "vfp_single_posterior": POSTERIOR,
    "vfp_single_prior": PRIOR,
    "vfp_vqvae_codebook": CODEBOOK,
}


def make(name: str, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return BLOCKS[name](**(SMALL[name] | arguments)).eval()


def calls_of(block: nn.Module) -> list[dict[str, Any]]:
    """The example calls of the forward."""
    given = block.example_inputs()
    return given["forward"] if isinstance(given, dict) else given


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def positions(count: int, width: int) -> Tensor:
    """The contract's formula, number by number."""
    rows = []
    for p in range(count):
        angles = [p * math.exp(-math.log(10000) * (channel - channel % 2) / width) for channel in range(width)]
        rows.append([math.cos(a) if channel % 2 else math.sin(a) for channel, a in enumerate(angles)])
    return torch.tensor(rows).unsqueeze(0)


class Captured(nn.Module):
    """Stands in for a transformer and keeps what it was given; returns the first argument."""

    def forward(self, *args: Tensor) -> Tensor:
        self.args = args
        return args[0]


# Every block


def test_every_block_is_tried_here() -> None:
    assert SMALL.keys() == BLOCKS.keys()


@pytest.mark.parametrize("name", BLOCKS)
def test_example_inputs_run_and_draw_no_random_numbers(name: str) -> None:
    block = make(name)
    before = torch.get_rng_state()
    calls = block.example_inputs()
    assert torch.equal(torch.get_rng_state(), before)
    assert calls
    for call in calls_of(block):
        block(**call)


@pytest.mark.parametrize("name", [name for name in BLOCKS if name.startswith(("vfp", "naive", "cfg"))])
def test_example_inputs_have_distinct_sizes(name: str) -> None:
    """Two sizes that happen to be equal could be taken for one when the block is recorded."""
    given = {size for key, size in SMALL[name].items() if key.endswith(("_dim", "d_model", "num_cameras"))}
    for call in calls_of(make(name)):
        values = [item for value in call.values() for item in (value if isinstance(value, list) else [value])]
        tensors = [value for value in values if isinstance(value, Tensor)]
        assert {tensor.shape[0] for tensor in tensors} == {BATCH}
        free = [size for tensor in tensors for size in tensor.shape[1:] if size not in given and size != 1]
        assert len(free) == len(set(free))
        assert BATCH not in free


def converted(value: Any, convert: Any) -> Any:
    if isinstance(value, list):
        return [convert(item) for item in value]
    if isinstance(value, dict):
        return {key: convert(item) for key, item in value.items()}
    return convert(value) if isinstance(value, Tensor) else value


@pytest.mark.parametrize("name", BLOCKS)
def test_one_sample_gives_its_part_of_the_batch(name: str) -> None:
    block = make(name)
    for call in calls_of(block):
        if call.get("replacement") or call.get("use_noise"):
            continue  # the batch decides what is replaced; noise is another in each call
        whole = block(**call)
        single = block(**{key: converted(value, lambda t: t[1:]) for key, value in call.items()})
        if isinstance(whole, dict):
            for key, value in whole.items():
                close(single[key], value[1:] if isinstance(value, Tensor) else value)
        else:
            close(single, whole[1:])


@pytest.mark.parametrize("name", BLOCKS)
def test_bfloat16_weights_and_inputs(name: str) -> None:
    block = make(name).to(torch.bfloat16)
    for call in calls_of(block):
        result = block(**{key: converted(value, lambda t: t.to(torch.bfloat16)) for key, value in call.items()})
        for value in result.values() if isinstance(result, dict) else [result]:
            assert not isinstance(value, Tensor) or value.dtype in (torch.bfloat16, torch.int64)


@pytest.mark.parametrize("name", BLOCKS)
def test_autocast(name: str) -> None:
    block = make(name).train()
    for call in calls_of(block):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            block(**call)


# Embeddings


@pytest.mark.parametrize("width", [8, 7])
def test_positions(width: int) -> None:
    close(add_positions(torch.ones(2, 5, width), width), 1 + positions(5, width).expand(2, -1, -1))


def test_positions_are_computed_in_float32() -> None:
    tokens = torch.zeros(1, 300, 8, dtype=torch.bfloat16)
    close(add_positions(tokens, 8), positions(300, 8).to(torch.bfloat16))


def test_time_embedding() -> None:
    times = [0.25, 7.0]
    rows = []
    for time in times:
        angles = [time * math.exp(-math.log(10000) * k / 3) for k in range(4)]
        rows.append([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
    close(embed_time(torch.tensor(times), 8), torch.tensor(rows))


# Embedder and bridge


def test_bridge_puts_each_modality_in_front_and_adds_positions() -> None:
    block = make(
        "vfp_single_multimodal_bridge",
        **BRIDGE | {"use_action": True, "action_dim": D, "use_cond_semantic": True, "cond_semantic_dim": D},
    )
    proprio, action = randn(2, 3, D), randn(2, 4, D)
    visual, semantic = [randn(2, 5, 5), randn(2, 6, 5)], [randn(2, 1, D), randn(2, 2, D)]
    projected = [block.visual_projection[index](item) for index, item in enumerate(visual)]
    tokens = torch.cat([action, semantic[1], semantic[0], projected[1], projected[0], proprio], dim=1)
    close(block(proprio, visual, semantic, action), tokens + positions(tokens.shape[1], D))


def test_modalities_of_full_width_have_no_projection() -> None:
    wide = {"cond_visual_dim": D, "use_action": True, "action_dim": D, "use_cond_semantic": True}
    block = make("vfp_single_multimodal_bridge", **BRIDGE | wide | {"cond_semantic_dim": D})
    names = ("proprio", "visual", "semantic", "action")
    assert [getattr(block, f"{name}_projection") for name in names] == [None] * 4
    assert not block.state_dict()


def test_visuals_of_full_width_are_left_out() -> None:
    block = make("vfp_single_multimodal_bridge", **BRIDGE | {"cond_visual_dim": D})
    proprio = randn(2, 3, D)
    close(block(proprio, [randn(2, 4, D)] * 2), proprio + positions(3, D))
    close(block(proprio, None), proprio + positions(3, D))


def test_cls_tokens_come_first_and_have_no_position() -> None:
    block = make("vfp_single_multimodal_bridge", **BRIDGE | {"use_cls_token": True, "num_cls_token": 2})
    assert block.cls_token.shape == (2, D)
    assert 0 < block.cls_token.std() < 0.04
    out = block(randn(2, 3, D), [randn(2, 4, 5), randn(2, 6, 5)])
    assert out.shape == (2, 15, D)
    close(out[:, :2], block.cls_token.expand(2, -1, -1))


def test_info_embedder_encodes_the_sequence_and_returns_its_first_tokens() -> None:
    block = make("vfp_single_info_embedder", **BRIDGE | TRANSFORMER | {"use_cls_token": True, "num_cls_token": 2})
    inputs = {"cond_proprio": randn(2, 3, D), "cond_visual": [randn(2, 4, 5), randn(2, 6, 5)]}
    out = block(**inputs)
    close(out["encoder_output"], block.encoder.encoder(block.assemble(**inputs, cond_semantic=None, action=None)))
    close(out["cls_token"], out["encoder_output"][:, :2])


def test_info_embedder_without_cls_tokens_returns_none() -> None:
    block = make("vfp_single_info_embedder", use_cls_token=False, num_cls_token=None)
    assert block(**block.example_inputs()[0])["cls_token"] is None


def test_semantics_are_used_by_value_even_where_the_block_has_no_layers_for_them() -> None:
    block = make("vfp_single_multimodal_bridge", **BRIDGE | {"cond_visual_dim": D})
    proprio, semantic = randn(2, 3, D), randn(2, 2, D)
    close(block(proprio, [], [semantic]), torch.cat([semantic, proprio], dim=1) + positions(5, D))


def test_unprojected_semantics_are_made_wide_by_the_caller() -> None:
    used = {"use_cond_semantic": True, "use_cond_semantic_projection": False, "cond_semantic_dim": 7}
    block = make("vfp_single_multimodal_bridge", **BRIDGE | {"cond_visual_dim": D} | used)
    assert block.semantic_projection is None
    assert block(randn(2, 3, D), None, [randn(2, 1, D)] * 2).shape == (2, 5, D)
    with pytest.raises(ValueError, match=r"cond_semantic\[0\] is 7 wide.*must be 8 wide"):
        block(randn(2, 3, D), None, [randn(2, 1, 7)] * 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cond_proprio": randn(2, D)}, "cond_proprio has rank 2, shape (2, 8); allowed ranks: 3 (batch, seq, feat"),
        ({"cond_visual": None}, "cond_visual must be given"),
        ({"cond_visual": randn(2, 4, 5)}, "cond_visual must be a list of tensors"),
        ({"cond_visual": [randn(2, 4, 5)]}, "cond_visual has 1 tensors; the block was built for 2"),
        ({"cond_visual": [randn(2, 4, 5), randn(2, 5)]}, "cond_visual[1] has rank 2"),
        ({"cond_semantic": [randn(2, 1, 7)] * 3}, "cond_semantic has 3 tensors; the block was built for 2"),
        ({"action": None}, "action must be given, since use_action is true"),
        ({"action": randn(2, 3)}, "action has rank 2"),
    ],
)
def test_embedder_refuses(changes: dict[str, Any], message: str) -> None:
    block = make("vfp_single_info_embedder")
    with pytest.raises(ValueError, match=re.escape(message)):
        block(**block.example_inputs()[0] | changes)


# Decoders


@pytest.mark.parametrize("name", ["vfp_single_action_decoder", "vfp_moe", "naive_action_decoder"])
def test_decoder_memory_is_semantics_time_memory(name: str) -> None:
    block = make(name, use_cond_semantic=True, cond_semantic_dim=5)
    one = block.experts[1] if name == "vfp_moe" else block
    one.decoder = Captured()
    time, noise, memory, semantics = randn(2), randn(2, 6, 3), randn(2, 4, D), randn(2, 2, 5)
    block(time, noise, memory, semantics)
    tgt, seen = one.decoder.args
    close(tgt, one.noise_projection(noise))
    close(seen[:, :2], one.semantic_projection(semantics))
    close(seen[:, 2], one.time_mlp(embed_time(time, D)))
    close(seen[:, 3:], memory + positions(4, D) if name == "naive_action_decoder" else memory)


@pytest.mark.parametrize("name", ["vfp_single_action_decoder", "vfp_moe", "naive_action_decoder"])
def test_decoder_call_forms(name: str) -> None:
    block = make(name, use_cond_semantic=True, cond_semantic_dim=5)
    time, noise, memory, semantics = randn(2), randn(2, 6, 3), randn(2, 4, D), randn(2, 5)
    expected = block(time, noise, memory, semantics)
    close(block(time, noise, memory, semantics.unsqueeze(1)), expected)
    close(block(time.unsqueeze(1), noise, memory, semantics), expected)
    close(block(time, noise, memory, semantics, further=1), expected)
    if name == "vfp_single_action_decoder":
        assert not torch.allclose(block(time, noise, memory, None), expected)
    else:
        with pytest.raises(ValueError, match="discrete_semantic_input must be given, since use_cond_semantic is true"):
            block(time, noise, memory, None)
        unused = make(name, use_cond_semantic=False, cond_semantic_dim=None)
        close(unused(time, noise, memory, semantics), unused(time, noise, memory))


def test_semantics_of_full_width_pass_through() -> None:
    block = make("vfp_single_action_decoder", use_cond_semantic=True, cond_semantic_dim=D)
    assert block.semantic_projection is None
    block.decoder = Captured()
    semantics = randn(2, D)
    block(randn(2), randn(2, 6, 3), randn(2, 4, D), semantics)
    close(block.decoder.args[1][:, 0], semantics)


def test_experts_are_stacked_after_the_batch() -> None:
    block = make("vfp_moe", num_experts=3)
    call = block.example_inputs()[0]
    out = block(**call)
    assert out.shape[:2] == (2, 3)
    close(out[:, 2], block.experts[2](**call))


@pytest.mark.parametrize("name", ["vfp_single_action_decoder", "vfp_moe", "vfp_single_prior"])
def test_an_activation_may_be_a_module(name: str) -> None:
    """The layers compute with it; torch itself forgets that of a decoder layer when it copies one."""
    inputs = make(name).example_inputs()[0]
    activations = ("gelu", nn.GELU(), "relu", nn.ReLU())
    blocks = [make(name, transformer_activation=activation) for activation in activations]
    outputs = [block(**inputs) for block in blocks]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[2], outputs[3])
    assert not torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[1], copy.deepcopy(blocks[1])(**inputs))
    twin = rebuilt_with_programs(blocks[1])
    assert torch.equal(outputs[1], twin(**inputs))
    assert torch.equal(outputs[1], copy.deepcopy(twin)(**inputs))


@pytest.mark.parametrize(
    ("block", "inputs"),
    [
        (BLOCKS["mlp"](dims=[5, 7, 6], activation=nn.BatchNorm1d(7)), randn(4, 5)),
        (BLOCKS["mlp"](dims=[5, 6], final_activation=nn.Unflatten(1, [2, 3])), randn(4, 5)),
        (BLOCKS["conv_bn_act"](4, 6, padding=1, norm=nn.LayerNorm([6, 8, 8])), randn(2, 4, 8, 8)),
        (BLOCKS["conv_bn_act"](3, 4, 16, 16, norm=nn.InstanceNorm2d(4)), randn(2, 3, 32, 32)),
    ],
)
def test_what_a_config_puts_into_a_block_may_refuse_its_examples(block: nn.Module, inputs: Tensor) -> None:
    """The block is portable all the same, with programs for the possible calls."""
    twin = rebuilt_with_programs(block)
    if list(twin._programs):  # type: ignore[arg-type]  # of rank 2
        assert torch.equal(twin(inputs), block(inputs))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("chunk", [6, 4, 9])
def test_causal_decoder_does_not_look_ahead(causal: bool, chunk: int) -> None:
    block = make("vfp_single_action_decoder", transformer_tgt_is_causal=causal)
    noise, later = randn(2, chunk, 3), randn(2, chunk, 3)
    later[:, -1] *= -1
    memory = randn(2, 4, D)
    first, second = (block(randn(2), item, memory)[:, :-1] for item in (noise, later))
    assert torch.allclose(first, second, atol=1e-6) == causal
    assert "decoder.tgt_causal_mask" in block.state_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time": randn(2, 1, 1)}, "time has rank 3"),
        ({"time": randn(2, 3)}, "time of rank 2 must be (batch, 1), got (2, 3)"),
        ({"noise": randn(2, 3)}, "noise has rank 2"),
        ({"memory_input": randn(2, D)}, "memory_input has rank 2"),
        ({"memory_input": randn(2, 4, 5)}, "memory_input is 5 wide"),
        ({"discrete_semantic_input": randn(8)}, "discrete_semantic_input has rank 1"),
        ({"discrete_semantic_input": randn(2, 5)}, "discrete_semantic_input is 5 wide"),
    ],
)
def test_decoder_refuses(changes: dict[str, Any], message: str) -> None:
    block = make("vfp_single_action_decoder")
    with pytest.raises(ValueError, match=re.escape(message)):
        block(**block.example_inputs()[0] | changes)


# Prior and posterior


@pytest.mark.parametrize("visual_dim", [5, D])
def test_visuals_of_every_rank(visual_dim: int) -> None:
    block = make("vfp_single_prior", cond_visual_dim=visual_dim)
    assert (block.encoder.visual_projection is None) == (visual_dim == D)
    clip, proprio = randn(2, 2, 3, visual_dim, 4, 6), randn(2, 7, 6)
    block.encoder.encoder = Captured()
    block(proprio, clip)
    (seen,) = block.encoder.encoder.args
    tokens = []
    for camera in range(2):
        for time in range(3):
            for row in range(4):
                for column in range(6):
                    token = clip[:, camera, time, :, row, column]
                    tokens.append(token if visual_dim == D else block.encoder.visual_projection[camera](token))
    x = torch.cat([torch.stack(tokens, dim=1), block.encoder.proprio_projection(proprio)], dim=1)
    close(seen[:, 3:], x + positions(x.shape[1], D))
    block(proprio, clip[:, :, 0])
    image = block.encoder.encoder.args[0]
    block(proprio, clip[:, :, 0].flatten(3))
    close(block.encoder.encoder.args[0], image)


def test_posterior_order_and_first_tokens() -> None:
    block = make("vfp_single_posterior", cond_proprio_dim=D, cond_visual_dim=D, action_dim=D, cond_semantic_dim=D)
    assert list(dict(block.encoder.named_parameters(recurse=False))) == ["cls_token"]
    assert [name for name, _ in block.encoder.named_children()] == ["encoder"]
    proprio, action, semantic = randn(2, 3, D), randn(2, 4, D), randn(2, D)
    block.encoder.encoder = Captured()
    out = block(proprio, torch.zeros(2, 2, D, 1), semantic, action)
    tokens = torch.cat([action, semantic.unsqueeze(1), torch.zeros(2, 2, D), proprio], dim=1)
    close(block.encoder.encoder.args[0][:, 3:], tokens + positions(10, D))
    close(out, block.encoder.cls_token.expand(2, -1, -1))


def test_semantics_of_both_ranks() -> None:
    block = make("vfp_single_posterior")
    call = block.example_inputs()[0]
    semantic = call.pop("cond_semantic")
    close(block(**call, cond_semantic=semantic.unsqueeze(1)), block(**call, cond_semantic=semantic))
    assert block(**call, cond_semantic=randn(2, 4, 7)).shape == (2, 3, D)


@pytest.mark.parametrize(
    "name",
    [
        "vfp_info_embedder",
        "vfp_single_multimodal_bridge",
        "vfp_single_info_embedder",
        "vfp_single_prior",
        "vfp_single_posterior",
    ],
)
def test_examples_of_semantics_that_the_caller_makes_wide(name: str) -> None:
    used = {"use_cond_semantic": True, "use_cond_semantic_projection": False, "cond_semantic_dim": 7}
    block = make(name, **used)
    for inputs in block.example_inputs():
        block(**inputs)


def test_semantics_without_projection() -> None:
    block = make("vfp_single_posterior", use_cond_semantic_projection=False, cond_semantic_dim=D)
    assert block.encoder.semantic_projection is None


def test_prior_ignores_what_it_does_not_use() -> None:
    block = make("vfp_single_prior")
    call = block.example_inputs()[0]
    close(block(**call | {"action": randn(2, 4, 9), "cond_semantic": randn(2, 9)}), block(**call))


def test_latents_without_cls_tokens_are_none() -> None:
    block = make("vfp_single_prior", use_cls_token=False)
    assert block.encoder.cls_token is None
    assert block(**block.example_inputs()[0]) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cond_proprio": randn(2, 6)}, "cond_proprio has rank 2"),
        ({"cond_visual": None}, "cond_visual must be a tensor, got NoneType"),
        ({"cond_visual": randn(2, 5, 4)}, "cond_visual has rank 3"),
        ({"cond_visual": randn(2, 3, 5, 4)}, "cond_visual is of 3 cameras"),
        ({"cond_semantic": None}, "cond_semantic must be given, since use_cond_semantic is true"),
        ({"cond_semantic": randn(2, 1, 1, 7)}, "cond_semantic has rank 4"),
        ({"action": None}, "action must be given"),
        ({"action": randn(2, 3)}, "action has rank 2"),
    ],
)
def test_posterior_refuses(changes: dict[str, Any], message: str) -> None:
    block = make("vfp_single_posterior")
    with pytest.raises(ValueError, match=re.escape(message)):
        block(**block.example_inputs()[0] | changes)


# The small ones


def test_mlp_layers() -> None:
    block = make("mlp", dims=[5, 7, 6, 3], dropout=0.5, bias=False, final_activation=nn.Tanh())
    names = [type(layer).__name__ for layer in block.net]
    assert names == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear", "Tanh"]
    assert block.net[1] is block.net[4]
    assert all(layer.bias is None for layer in block.net if isinstance(layer, nn.Linear))


def test_mlp_takes_its_first_dim_from_the_first_input() -> None:
    block = make("mlp", dims=[None, 7, 3])
    assert isinstance(block.net[0], nn.LazyLinear)
    assert block.example_inputs() == []
    block(randn(2, 9))
    assert block.net[0].in_features == 9
    assert block.example_inputs()[0]["x"].shape == (2, 9)


def test_conv_takes_its_channels_from_the_first_input() -> None:
    block = make("conv_bn_act", in_channels=None)
    assert isinstance(block.conv, nn.LazyConv2d)
    assert block.example_inputs() == []
    block(randn(2, 6, 11, 12))
    assert block.conv.in_channels == 6


@pytest.mark.parametrize(
    ("arguments", "has_bias"),
    [
        ({}, True),
        ({"norm": nn.Identity()}, False),
        ({"norm": nn.Identity(), "bias": True}, True),
        ({"bias": False}, False),
    ],
)
def test_conv_has_a_bias_unless_a_norm_is_given(arguments: dict[str, Any], has_bias: bool) -> None:
    block = make("conv_bn_act", **arguments)
    assert (block.conv.bias is not None) == has_bias
    assert isinstance(block.norm, nn.Identity if "norm" in arguments else nn.BatchNorm2d)


def test_conv_arguments() -> None:
    act = nn.SiLU()
    block = make("conv_bn_act", in_channels=4, groups=2, stride=2, padding="valid", act=act)
    assert (block.conv.groups, block.conv.stride, block.conv.padding) == (2, (2, 2), "valid")
    assert block.act is act


@pytest.mark.parametrize(("out", "stride", "identity"), [(None, 1, True), (3, 1, True), (3, 2, False), (4, 1, False)])
def test_residual_skip(out: int | None, stride: int, identity: bool) -> None:
    block = make("residual_block", out_channels=out, stride=stride)
    assert isinstance(block.skip, nn.Identity) == identity
    if not identity:
        assert block.skip.conv.kernel_size == (1, 1)
    x = randn(2, 3, 7, 9)
    expected = torch.relu(block.main2(block.main1(x)) + block.skip(x))
    close(block(x.clone()), expected)


def test_residual_act_is_the_last_one_only() -> None:
    act = nn.Tanh()
    block = make("residual_block", act=act)
    assert block.act is act
    assert isinstance(block.main1.act, nn.ReLU)
    assert isinstance(block.main2.act, nn.Identity)


def test_q_function_is_the_mean_of_its_ensemble() -> None:
    block = make("dsrl_q_function", num_ensemble=2)
    x = randn(4, 5)
    single = [
        output(hidden(x))
        for hidden, output in zip(block.q_ensembles_hidden_layers, block.q_ensembles_output_layers, strict=True)
    ]
    close(block(x), (single[0] + single[1]) / 2)


def test_processors_join_depth_images_proprioception_and_actions() -> None:
    block = make("dsrl_q_function_processor", img_data_keys=["right", "left"])
    data = {"left": randn(2, 5, 3, 4), "right": randn(2, 5, 2, 2), "head_depth": randn(2, 3, 4, 2)}
    data |= {"proprio": randn(2, 3, 4), "action": randn(2, 2, 3), "other": randn(1)}
    parts = [block.depth_latent_vec_proj["head_depth"](data["head_depth"])]
    parts += [block.img_latent_vec_proj[key](data[key]) for key in ("right", "left")]
    flat = [part.flatten(1) for part in [*parts, data["proprio"], data["action"]]]
    assert block(dict(data)).equal(torch.cat(flat, dim=1))
    with pytest.raises(KeyError, match="proprio"):
        block({key: value for key, value in data.items() if key != "proprio"})
    with pytest.raises(ValueError, match=r"data\['left'\] has rank 3"):
        block(data | {"left": randn(5, 3, 4)})


def test_processors_need_a_camera() -> None:
    assert make("dsrl_noise_actor_processor", depth_data_keys=[]).example_inputs()
    block = make("dsrl_noise_actor_processor", depth_data_keys=[], img_data_keys=[])
    assert block.example_inputs() == []
    with pytest.raises(TypeError, match="are both empty"):
        block({"proprio": randn(2, 3, 4)})


@pytest.mark.parametrize("name", ["dsrl_q_function", "dsrl_noise_latent_actor"])
def test_networks_store_and_restore_their_state(name: str) -> None:
    block, other = make(name), make(name)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    block.deserialize(other.serialize())
    assert next(block.parameters()).equal(next(other.parameters()))
    with pytest.raises(RuntimeError, match="Missing key"):
        block.deserialize({})


@pytest.mark.parametrize("name", ["dsrl_q_function", "dsrl_noise_latent_actor"])
def test_xavier_initialisation(name: str) -> None:
    linears = [module for module in make(name, num_hidden_dim=64).modules() if isinstance(module, nn.Linear)]
    for layer in linears:
        bound = math.sqrt(6 / (layer.in_features + layer.out_features))
        assert 0.8 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()


def test_encoder_takes_flat_actions() -> None:
    block = make("a_encoder")
    action = randn(2, 4, 3)
    close(block(action.flatten(1)), block(action))


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("a_encoder", randn(2, 1, 4, 3), "action has rank 4"),
        ("a_decoder", randn(5), "embedding has rank 1"),
        ("dsrl_q_function", randn(2, 3, 5), "flattened_tensor has rank 3"),
        ("dsrl_noise_latent_actor", randn(5), "flattened_tensor has rank 1"),
    ],
)
def test_small_blocks_refuse_other_ranks(name: str, inputs: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(name)(inputs)


def test_rank_error_lists_all_that_is_allowed() -> None:
    with pytest.raises(ValueError, match=re.escape("x has rank 1, shape (3,); allowed ranks: 2 (a, b) or 3 (a, b, c)")):
        check_rank("x", randn(3), {2: "(a, b)", 3: "(a, b, c)"})


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mlp", {"dims": [3]}, "dims must be a list of at least two widths"),
        ("mlp", {"dims": "35"}, "dims must be a list"),
        ("mlp", {"dims": [3, None]}, "dims[1] must be a positive integer, got None"),
        ("mlp", {"dims": [3, True]}, "dims[1] must be a positive integer, got True"),
        ("mlp", {"activation": "relu"}, "activation must be a module"),
        ("conv_bn_act", {"kernel_size": 0}, "kernel_size must be an integer, 1 or more, or a list of two, got 0"),
        ("conv_bn_act", {"kernel_size": [3]}, "kernel_size must be"),
        ("conv_bn_act", {"kernel_size": True}, "kernel_size must be"),
        ("conv_bn_act", {"stride": "2"}, "stride must be"),
        ("conv_bn_act", {"stride": [1, 0]}, "stride must be"),
        ("conv_bn_act", {"padding": -1}, "padding must be an integer, 0 or more"),
        ("conv_bn_act", {"padding": None}, "padding must be"),
        ("conv_bn_act", {"dilation": 1.5}, "dilation must be"),
        ("conv_bn_act", {"groups": "2"}, "groups must be a positive integer"),
        ("mlp", {"final_activation": "relu"}, "final_activation must be a module"),
        ("mlp", {"dropout": 1.5}, "dropout must be a number from 0 to 1"),
        ("conv_bn_act", {"in_channels": 0}, "in_channels must be a positive integer"),
        ("conv_bn_act", {"out_channels": None}, "out_channels must be a positive integer"),
        ("conv_bn_act", {"norm": "batch"}, "norm must be a module"),
        ("conv_bn_act", {"act": "relu"}, "act must be a module"),
        ("residual_block", {"in_channels": None}, "in_channels must be a positive integer"),
        ("residual_block", {"act": "relu"}, "act must be a module"),
        ("dsrl_q_function", {"init_method": "kaiming"}, "init_method must be one of xavier, got 'kaiming'"),
        ("dsrl_q_function", {"num_ensemble": 0}, "num_ensemble must be"),
        ("dsrl_noise_latent_actor", {"num_layers": 0}, "num_layers must be"),
        ("dsrl_noise_actor_processor", {"img_data_keys": "head"}, "img_data_keys must be a list of texts, got 'head'"),
        ("dsrl_q_function_processor", {"action_key": 3}, "action_key must be a text, got 3"),
        ("a_encoder", {"embedding_dim": -1}, "embedding_dim must be"),
        ("a_decoder", {"hidden_dim": 1.5}, "hidden_dim must be"),
        ("vfp_single_info_embedder", {"use_action": False}, "use_action is false, so action_dim must be None, got 3"),
        ("vfp_single_info_embedder", {"action_dim": None}, "use_action is true, so action_dim must be a number"),
        ("vfp_single_info_embedder", {"num_cond_semantic": None}, "num_cond_semantic must be"),
        ("vfp_single_info_embedder", {"num_cls_token": None}, "num_cls_token must be"),
        ("vfp_single_info_embedder", {"transformer_dropout": -0.1}, "transformer_dropout must be"),
        ("vfp_single_multimodal_bridge", {"cond_semantic_dim": 7}, "use_cond_semantic is false"),
        ("vfp_single_action_decoder", {"cond_semantic_dim": None}, "use_cond_semantic is true"),
        ("vfp_single_action_decoder", {"transformer_d_model": 7, "transformer_nhead": 7}, "must be even"),
        ("vfp_single_action_decoder", {"transformer_d_model": 2}, "at least 4"),
        ("vfp_single_action_decoder", {"transformer_action_chunk_size": 0}, "transformer_action_chunk_size must be"),
        ("vfp_moe", {"use_cond_semantic": False}, "use_cond_semantic is false"),
        ("vfp_moe", {"num_experts": 0}, "num_experts must be"),
        ("vfp_single_prior", {"use_cond_semantic": True}, "use_cond_semantic is true"),
        ("vfp_single_prior", {"transformer_nhead": 3}, "transformer_d_model must be divisible by transformer_nhead"),
        ("vfp_single_prior", {"transformer_activation": "tanh"}, "transformer_activation must be one of relu, gelu"),
        ("vfp_single_prior", {"num_cls_token": 0}, "num_cls_token must be"),
        ("vfp_single_prior", {"use_cls_token": "no"}, "use_cls_token must be true or false, got 'no'"),
        ("vfp_single_prior", {"use_cond_semantic": "false"}, "use_cond_semantic must be true or false, got 'false'"),
        ("vfp_single_prior", {"use_cond_semantic_projection": None}, "use_cond_semantic_projection must be true or"),
        ("vfp_single_prior", {"transformer_batch_first": "true"}, "transformer_batch_first must be true or false"),
        ("vfp_single_info_embedder", {"use_action": 1}, "use_action must be true or false, got 1"),
        ("vfp_single_action_decoder", {"transformer_tgt_is_causal": "no"}, "transformer_tgt_is_causal must be true or"),
        ("mlp", {"bias": "false"}, "bias must be true or false, got 'false'"),
        ("conv_bn_act", {"bias": 0}, "bias must be true or false, got 0"),
        ("vfp_single_posterior", {"action_dim": None}, "action_dim must be a positive integer, got None"),
        ("vfp_single_posterior", {"num_cameras": 0}, "num_cameras must be"),
        ("vfp_prior", {"use_action": False}, "use_action is no argument of VFPSinglePrior"),
        ("vfp_prior", {"action_dim": None}, "action_dim is no argument of VFPSinglePrior"),
        ("vfp_posterior", {"use_action": True}, "use_action is no argument of VFPSinglePosterior"),
        ("cfg_vqvae_info_encoder", {"use_cls_token": False}, "use_cls_token is no argument of CfgVQVAEInfoEncoder"),
        ("cfg_vqvae_info_encoder", {"cond_semantic_dim": None}, "use_cond_semantic is true, so cond_semantic_dim must"),
        ("vfp_info_embedder", {"action_dim": None}, "use_action is true, so action_dim must be a number"),
        ("vfp_proprio_projector", {"cond_proprio_dim": 0}, "cond_proprio_dim must be"),
        ("vfp_gate", {"num_experts": 0}, "num_experts must be"),
        ("vfp_vqvae_codebook", {"vec_dim": 0}, "vec_dim must be"),
    ],
)
def test_constructors_refuse(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make(name, **arguments)
