"""Models of a library that trainers lack: transformers', built from their configuration by examples/plugins."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from model_factory import RemoteModelFactory
from model_factory.program.runtime.named_results import Record
from model_factory.program.runtime.program_module import ProgramModule
from model_factory_server import PolicyConstructorModelFactory
from support.compare import assert_same, assert_same_runs, assert_same_state, loss_of
from support.coverage import assert_on_page
from support.server import ServerProcess

SEED = 7
VOCABULARY = 50
MakeRemote = Callable[..., RemoteModelFactory]

_WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_VISION = {**_WIDTHS, "image_size": 32, "patch_size": 8}
_TEXT = {**_WIDTHS, "vocab_size": VOCABULARY, "max_position_embeddings": 32, "intermediate_size": 64}
SPECS: dict[str, dict[str, Any]] = {
    "vit": {"_type_": "hf.vit", **_VISION, "intermediate_size": 64},
    "dinov2": {"_type_": "hf.dinov2", **_VISION, "num_hidden_layers": 1},
    "siglip_vision": {"_type_": "hf.siglip_vision", **_VISION, "num_hidden_layers": 1, "intermediate_size": 64},
    "resnet": {
        "_type_": "hf.resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic",
    },
    "gpt2": {
        "_type_": "hf.gpt2", "vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 32, "n_layer": 1, "n_head": 4,
        "bos_token_id": 1, "eos_token_id": 1,
    },
    "bert": {"_type_": "hf.bert", **_TEXT},
    "llama": {"_type_": "hf.llama", **_TEXT, "num_hidden_layers": 1, "num_key_value_heads": 2},
}  # fmt: skip
TEXT = ("gpt2", "bert", "llama")


def config() -> dict[str, Any]:
    """One model of all seven, so that the library is imported once."""
    steps = [
        {"call": f"module:{name}", "args": ["$ids" if name in TEXT else "$images"], "out": {"last_hidden_state": name}}
        for name in SPECS
    ]
    graph = {"inputs": ["images", "ids"], "modules": SPECS, "steps": steps, "outputs": {name: name for name in SPECS}}
    return {"config": {"schema_version": 1, "model": {"graph": graph}}}


def inputs(name: str, batch: int, size: int, mask: str = "") -> dict[str, torch.Tensor]:
    """Images of 32 by 32, larger where the model takes any; or ``size`` tokens and a mask."""
    generator = torch.Generator().manual_seed(batch + size)
    if name not in TEXT:
        height, width = (32 + size, 35) if name == "resnet" else (32, 32)
        return {"pixel_values": torch.randn(batch, 3, height, width, generator=generator)}
    ids = torch.randint(0, VOCABULARY, (batch, size), generator=generator)
    lengths = torch.arange(size - batch + 1, size + 1)
    masks = {"ones": torch.ones_like(ids), "padding": (torch.arange(size) < lengths[:, None]).long()}
    return {"input_ids": ids} | ({"attention_mask": masks[mask]} if mask else {})


def masks_of(name: str) -> tuple[str, ...]:
    return ("", "ones", "padding") if name in TEXT else ("",)


@pytest.fixture(scope="module")
def remote(plugin_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[nn.Module]:
    """The seven, built where nothing of the library can be imported."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("transformers", "transformers_models"):
            patch.setitem(sys.modules, module, None)
        factory = RemoteModelFactory(plugin_server.address, seed=SEED, cache_dir=tmp_path_factory.mktemp("library"))
        models = factory.build(config()).graph_modules
    yield models
    factory.close()


@pytest.fixture
def local(remote: nn.Module, local_with_plugins: PolicyConstructorModelFactory) -> nn.Module:
    """The originals, with the weights that the rebuilt ones have by now."""
    originals = local_with_plugins.build(config()).graph_modules
    originals.load_state_dict(remote.state_dict())
    return originals


def test_they_are_built_as_in_process(remote: nn.Module, local_with_plugins: PolicyConstructorModelFactory) -> None:
    originals = local_with_plugins.build(config()).graph_modules
    assert_same_state(remote.eval(), originals.eval())
    assert_on_page("hf", remote)
    for name, original in originals.items():
        ours = remote[name]
        assert isinstance(ours, ProgramModule)
        assert repr(ours).startswith(type(original).__name__)
        stock = {path for path, module in original.named_modules() if type(module).__module__.startswith("torch.nn")}
        assert all(type(ours.get_submodule(path)) is type(original.get_submodule(path)) for path in stock)


@pytest.mark.parametrize("name", SPECS)
def test_each_runs_as_the_original(
    name: str, remote: nn.Module, local: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs, gradients, buffers and random numbers, at sizes not recorded, without asking the server for more."""
    monkeypatch.setattr(remote[name], "_recorder", None)
    for training in (False, True):
        ours, theirs = remote[name].train(training), local[name].train(training)
        for batch, size in ((2, 5), (3, 9)):
            for mask in masks_of(name):
                assert_same_runs(ours, theirs, inputs(name, batch, size, mask))


@pytest.mark.parametrize("name", ["vit", "llama"])
def test_outputs_are_reached_as_the_originals(name: str, remote: nn.Module, local: nn.Module) -> None:
    given = inputs(name, 2, 5)
    ours, theirs = (model[name].eval()(**given) for model in (remote, local))
    assert type(ours) is Record
    assert list(ours) == list(theirs)
    assert_same(ours.last_hidden_state, theirs.last_hidden_state)
    assert_same(ours["last_hidden_state"], theirs["last_hidden_state"])
    assert_same(ours[0], theirs[0])
    assert_same(ours[:], theirs[:])
    assert_same(ours.to_tuple(), theirs.to_tuple())
    assert ours.attentions is theirs.attentions is None
    assert "attentions" not in ours
    assert "attentions" not in theirs
    with pytest.raises(AttributeError, match="no field 'logits'; it has last_hidden_state"):
        _ = ours.logits


class Classifier(nn.Module):
    """A head of the trainer's own on a backbone."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(32, 4)

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(**inputs).last_hidden_state[:, 0])


def fine_tune(backbone: nn.Module, name: str, steps: int = 12) -> list[float]:
    torch.manual_seed(4)
    model = Classifier(backbone.train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    labels = torch.arange(4)
    losses = []
    for step in range(steps):
        mask = masks_of(name)[step % len(masks_of(name))]
        loss = nn.functional.cross_entropy(model(**inputs(name, 4, 6, mask)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_fine_tuning_has_the_originals_losses(name: str, remote: nn.Module, local: nn.Module) -> None:
    losses = fine_tune(remote[name], name)
    assert losses == fine_tune(local[name], name)
    assert losses[-1] < 0.5 * losses[0]
    assert_same_state(remote[name], local[name])


def test_ddp_finds_the_tensors_in_a_record(remote: nn.Module, local: nn.Module, tmp_path: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        gradients = []
        for model in (remote["bert"].train(), local["bert"].train()):
            wrapped = DistributedDataParallel(model, find_unused_parameters=True)
            torch.manual_seed(2)
            for mask in ("", "padding"):
                model.zero_grad()
                loss_of(wrapped(**inputs("bert", 2, 5, mask))).backward()
            gradients.append({key: item.grad for key, item in model.named_parameters()})
        assert_same(*gradients)
    finally:
        distributed.destroy_process_group()


def test_a_form_that_was_not_recorded_is_asked_for(remote: nn.Module, local: nn.Module) -> None:
    """A larger image: the position embeddings are interpolated, which the recorded program does not do."""
    images = {"pixel_values": torch.randn(2, 3, 40, 48)}
    known = len(remote["dinov2"]._programs)
    assert_same_runs(remote["dinov2"].eval(), local["dinov2"].eval(), images)
    assert len(remote["dinov2"]._programs) == known + 1


BRANCHING = {
    "config": {
        "schema_version": 1,
        "model": {
            "graph": {
                "inputs": ["image"],
                "modules": {"block": {"_type_": "normalised", "features": 6}},
                "steps": [{"call": "module:block", "args": ["$image"], "out": "y"}],
                "outputs": ["y"],
            }
        },
    }
}


def test_a_block_that_decides_by_values(
    plugin_server: ServerProcess, make_remote: MakeRemote, local_with_plugins: PolicyConstructorModelFactory
) -> None:
    """Each side is recorded when the trainer first takes it, and kept for the next process of the node."""
    ours = make_remote(plugin_server.address).build(BRANCHING)
    theirs = local_with_plugins.build(BRANCHING)
    images = torch.rand(4, 3, 6, generator=torch.Generator().manual_seed(0))
    for training in (True, False):
        for scale in (1, 255, 1, 300):
            assert_same_runs(ours.train(training), theirs.train(training), {"image": images * scale})
    block = ours.graph_modules["block"]
    assert {ready.recorded.program.outcomes() for ready in block._programs} == {(True,), (False,)}
    again = make_remote(plugin_server.address).build(BRANCHING).graph_modules["block"]
    monitored = again._recorder.record
    again._recorder.record = None  # both sides are in the node's cache
    try:
        for scale in (255, 1):
            again(images[:2] * scale)
    finally:
        again._recorder.record = monitored
