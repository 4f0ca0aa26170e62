"""Branches of the blocks of the mixture, naive and cfg policies: tokens, gate, codebook, unknown arguments."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from golden.test_block_branches import SMALL, Captured, D, close, make, positions, randn
from matrix.portability import rebuilt_with_programs
from matrix.same import same
from matrix.test_distributed import one_of_several_processes
from model_factory.errors import CallSignatureError, ConfigError
from model_factory_server.constructor import Permissions, default_registry, instantiate
from model_factory_server.constructor.blocks import BLOCKS

PROJECTORS = ("vfp_proprio_projector", "naive_proprio_projector", "cfg_vqvae_proprio_projector")
IGNORING = sorted(
    name
    for name in BLOCKS
    if name.endswith(("action_decoder", "prior", "posterior", "info_encoder"))
    or name in ("vfp_info_embedder", "naive_info_embedder")
)


# Embedder and encoder


@pytest.mark.parametrize("name", ["vfp_info_embedder", "naive_info_embedder"])
def test_embedder_tokens(name: str) -> None:
    block = make(name)
    block.encoder = Captured()
    proprio, visual, semantic, action = randn(2, 3, 6), randn(2, 4, 5), randn(2, 2, 7), randn(2, 6, 3)
    out = block(proprio, visual, semantic, action, further=1)
    tokens = torch.cat(
        [
            block.action_projection(action),
            block.semantic_projection(semantic),
            block.visual_projection(visual),
            block.proprio_projection(proprio),
        ],
        dim=1,
    )
    close(out["encoder_output"][:, 2:], tokens + positions(15, D))
    close(out["cls_token"], block.cls_token.expand(2, -1, -1))


def test_embedder_passes_modalities_of_full_width_through() -> None:
    block = make("vfp_info_embedder", cond_proprio_dim=D, cond_visual_dim=D, action_dim=D, cond_semantic_dim=D)
    assert {name.partition(".")[0] for name in block.state_dict()} == {"cls_token", "encoder"}
    block.encoder = Captured()
    items = [randn(2, 6, D), randn(2, 2, D), randn(2, 4, D), randn(2, 3, D)]
    action, semantic, visual, proprio = items
    close(block(proprio, visual, semantic, action)["encoder_output"][:, 2:], torch.cat(items, 1) + positions(15, D))


def test_embedder_ignores_what_it_does_not_use() -> None:
    unused = {"use_cond_semantic": False, "cond_semantic_dim": None, "use_action": False, "action_dim": None}
    block = make("vfp_info_embedder", **unused, use_cls_token=False, num_cls_token=None)
    proprio, visual = randn(2, 3, 6), randn(2, 4, 5)
    assert block(proprio, visual)["cls_token"] is None
    assert same(block(proprio, visual, randn(2, 9), randn(2, 4, 9)), block(proprio, visual))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cond_visual": [randn(2, 4, 5)]}, "cond_visual must be a tensor, got list"),
        ({"cond_semantic": None}, "cond_semantic must be given, since use_cond_semantic is true"),
        ({"action": None}, "action must be given, since use_action is true"),
        ({"action": randn(2, 3)}, "action has rank 2"),
    ],
)
def test_embedder_refuses(changes: dict[str, Any], message: str) -> None:
    block = make("vfp_info_embedder")
    with pytest.raises(ValueError, match=re.escape(message)):
        block(**block.example_inputs()[0] | changes)


def test_info_encoder_returns_all_tokens() -> None:
    block = make("cfg_vqvae_info_encoder")
    block.encoder.encoder = Captured()
    proprio, visual, semantic = randn(2, 3, 6), randn(2, 2, 5, 4), randn(2, D)
    visuals = [block.encoder.visual_projection[camera](visual[:, camera].mT) for camera in range(2)]
    tokens = torch.cat([semantic.unsqueeze(1), *visuals, block.encoder.proprio_projection(proprio)], dim=1)
    close(block(proprio, visual, semantic, None), tokens + positions(12, D))
    with pytest.raises(ValueError, match="cond_semantic is 7 wide"):
        block(proprio, visual, randn(2, 7))


# Projectors


@pytest.mark.parametrize("name", PROJECTORS)
def test_projector_tokens(name: str) -> None:
    block = make(name)
    proprio, clip = randn(2, 3, 5), randn(2, 3, 4, D, 6, 7)
    tokens = clip.permute(0, 1, 2, 4, 5, 3).reshape(2, 504, D)
    close(block(proprio, clip, further=1), torch.cat([tokens, block.proprio_projection(proprio)], dim=1))


def test_projector_passes_proprioception_of_full_width_through() -> None:
    block = make("vfp_proprio_projector", cond_proprio_dim=D)
    assert not block.state_dict()
    proprio = randn(2, 3, D)
    close(block(proprio, randn(2, 3, D, 4))[:, 12:], proprio)
    with pytest.raises(ValueError, match="cond_visual is 5 wide"):
        block(proprio, randn(2, 3, 5, 4))


# Gate


def test_gate_weights() -> None:
    block = make("vfp_gate")
    x = randn(3, 5)
    logits = block.model(x)
    close(block(x), torch.softmax(logits / 2, dim=-1))
    close(block.train()(x.unsqueeze(1), iterations=7, training=True), block(x, use_noise=True))
    torch.manual_seed(1)
    noisy = block(x, training=True, use_noise=True)
    torch.manual_seed(1)
    close(noisy, torch.softmax((logits + torch.randn_like(logits)) / 2, dim=-1))
    with pytest.raises(ValueError, match=re.escape("must be (batch, 1, features), got (3, 2, 5)")):
        block(randn(3, 2, 5))


def test_gate_inference_names_the_best_expert_of_one_sample() -> None:
    gate = make("vfp_gate")
    rebuilt = rebuilt_with_programs(gate)
    samples = torch.randn(20, 1, 5, generator=torch.Generator().manual_seed(0))
    chosen = [gate.inference(sample) for sample in samples]
    assert chosen == [int(gate(sample).argmax()) for sample in samples]
    assert [rebuilt.inference(sample) for sample in samples] == chosen
    assert len(set(chosen)) > 1


# Codebook


def filled() -> nn.Module:
    block = make("vfp_vqvae_codebook")
    assert not block.vq_codebook.weight.any()
    block.vq_codebook.weight.data.copy_(randn(4, 5))
    return block


def test_look_up_is_the_nearest_vector_and_its_gradient_stays_in_the_codebook() -> None:
    block = filled()
    x = randn(2, 3, 5).requires_grad_()
    out = block(x, train=False, replacement=False)
    vectors = block.vq_codebook.weight
    index = torch.cdist(x.reshape(-1, 5), vectors).argmin(1)
    close(out["q"], vectors[index].reshape(2, 3, 5))
    assert list(out.values())[1:] == [0.0, 0.0, 0, None]
    out["q"].sum().backward()
    assert x.grad is None
    assert vectors.grad.any(dim=1).tolist() == [row in index for row in range(4)]


def test_distances_of_the_codebook() -> None:
    block = filled()
    distances = torch.pdist(block.vq_codebook.weight)
    out = block(randn(3, 5), train=True, replacement=False)
    close(out["codebook_min_dist"], distances.min().item())
    close(out["codebook_max_dist"], distances.max().item())
    assert block.get_min_pairwise_dist() == out["codebook_min_dist"]
    assert out["q"].requires_grad


def expected_replacement(block: nn.Module, x: Tensor) -> tuple[list[int], Tensor]:
    """The contract, step by step."""
    weight = block.vq_codebook.weight.data.clone()
    counts = torch.bincount(torch.cdist(x, weight).argmin(1), minlength=4)
    threshold = max(int(counts.sum() / 4), 1)
    dead, live = (counts < threshold).nonzero().flatten(), (counts >= threshold).nonzero().flatten()
    if len(dead) and len(live):
        shares = counts[live] / counts[live].sum()
        chosen = live[torch.multinomial(shares, len(dead), replacement=True)]
        weight[dead] = weight[chosen] + 0.02 * torch.randn(len(dead), 5)
    return dead.tolist(), weight


@pytest.mark.parametrize("samples", ["few", "many", "each vector", "none"])
def test_replacement(samples: str) -> None:
    """Also on a trainer, where the one program was recorded with the fresh codebook."""
    rebuilt = rebuilt_with_programs(make("vfp_vqvae_codebook"))
    original = filled()
    rebuilt.load_state_dict(original.state_dict())
    x = {"few": randn(3, 5), "many": randn(90, 5), "none": torch.zeros(0, 5)}.get(samples, original.vq_codebook.weight)
    x = x.detach().clone()
    before = original.vq_codebook.weight.data.clone()
    torch.manual_seed(3)
    dead, weight = expected_replacement(original, x)
    drawn = torch.rand(1)
    for block in (original, *([rebuilt] if samples != "none" else [])):  # an empty batch is another call signature
        torch.manual_seed(3)
        out = block(x, train=True, replacement=True)
        assert torch.equal(torch.rand(1), drawn)
        assert out["dead_indices"].tolist() == dead
        assert out["num_vecs_replaced"] == (0 if samples == "none" else len(dead))
        close(block.vq_codebook.weight.data, weight)
        assert not out["q"].requires_grad
        close(out["q"], before[torch.cdist(x, before).argmin(1)])
    assert same(block.state_dict(), original.state_dict())
    assert bool(dead) == (samples != "each vector")


def test_replacement_with_several_processes() -> None:
    """The original exchanges counts and vectors; a program cannot, and says so."""
    rebuilt, original = rebuilt_with_programs(make("vfp_vqvae_codebook")), filled()
    x = randn(3, 5)
    torch.manual_seed(3)
    dead, weight = expected_replacement(original, x)
    with one_of_several_processes():
        with pytest.raises(CallSignatureError, match="no program for the call"):
            rebuilt(x, train=True, replacement=True)
        rebuilt(x, train=True, replacement=False)
        torch.manual_seed(3)
        assert original(x, train=True, replacement=True)["dead_indices"].tolist() == dead
    close(original.vq_codebook.weight.data, weight)


def test_replacement_without_training_does_nothing() -> None:
    block = filled()
    before = copy.deepcopy(block.state_dict())
    assert list(block(randn(3, 5), train=False, replacement=True).values()) == [None, 0.0, 0.0, 0, None]
    assert same(block.state_dict(), before)


@pytest.mark.parametrize("shape", [(5,), (3, 4)])
def test_look_up_refuses(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"continuous_vec must be (..., 5), of rank 2 or more, got {shape}")):
        filled()(randn(*shape), train=False, replacement=False)


# Unknown arguments


@pytest.mark.parametrize("name", IGNORING)
def test_transformer_blocks_ignore_unknown_arguments(name: str, caplog: pytest.LogCaptureFixture) -> None:
    spec = {"_type_": name, **SMALL[name], "no_such_argument": 3}
    block = instantiate(spec, default_registry(), Permissions())
    assert block.state_dict().keys() == make(name).state_dict().keys()
    (record,) = caplog.records
    assert record.getMessage().endswith("ignores arguments without a meaning for this block: no_such_argument")


@pytest.mark.parametrize("name", ["vfp_moe", "vfp_gate", "vfp_vqvae_codebook", *PROJECTORS])
def test_other_blocks_refuse_unknown_arguments(name: str) -> None:
    spec = {"_type_": name, **SMALL[name], "no_such_argument": 3}
    with pytest.raises(ConfigError, match="no_such_argument"):
        instantiate(spec, default_registry(), Permissions())


# Every one of them, on a trainer


def each_class() -> list[Any]:
    """A name of each class; a posterior is recorded for many calls."""
    names = {BLOCKS[name]: name for name in BLOCKS if name.startswith(("vfp", "naive", "cfg"))}
    slow = "vfp_single_posterior"
    return [pytest.param(name, marks=pytest.mark.slow) if name == slow else name for name in names.values()]


@pytest.mark.parametrize("name", each_class())
def test_every_example_has_a_program(name: str) -> None:
    """A trainer needs no further recording, and gets the same numbers in both modes."""
    block = make(name)
    rebuilt = rebuilt_with_programs(block)
    given = block.example_inputs()
    for mode in (False, True):
        for method, calls in (given if isinstance(given, dict) else {"forward": given}).items():
            for call in calls:
                results = []
                for model in (block, rebuilt):
                    model.train(mode)
                    torch.manual_seed(2)
                    results.append(getattr(model, method)(**copy.deepcopy(call)))
                assert same(*results)
    assert same(block.state_dict(), rebuilt.state_dict())
