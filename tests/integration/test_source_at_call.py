"""Blocks without examples and without a signature: a call of the trainer shows that a block needs source code."""

from __future__ import annotations

import copy
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model_factory import RemoteModelFactory, load, save
from model_factory.cli.main import main
from model_factory.errors import NotPortableError, SourceError
from model_factory.program.runtime.program_module import ProgramModule
from model_factory_server import PolicyConstructorModelFactory
from model_factory_server.settings.server_settings import BackendSettings
from support.checkouts import imported, write_checkout
from support.compare import assert_same, assert_same_runs, assert_same_state, train
from support.configs import layers
from support.folders import TEST_PLUGINS
from support.server import ServerProcess, running_server

SEED = 7
WIDTH = 6
MakeRemote = Callable[..., RemoteModelFactory]
LINEAR = {"_type_": "nn.Linear", "in_features": WIDTH, "out_features": WIDTH}
RANKS = {"config": layers(LINEAR, {"_type_": "ranks", "width": WIDTH})}


@pytest.fixture(scope="module")
def source_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TEST_PLUGINS), prepend=os.pathsep)
        store = tmp_path_factory.mktemp("source") / "store"
        with running_server(store, "--plugin", "unrehearsed", "--share-source") as process:
            yield process


@pytest.fixture
def remote(source_server: ServerProcess, make_remote: MakeRemote) -> RemoteModelFactory:
    return make_remote(source_server.address, seed=SEED, trust_source=True)


@pytest.fixture
def original(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, Any]], nn.Module]]:
    monkeypatch.syspath_prepend(TEST_PLUGINS)
    yield PolicyConstructorModelFactory(seed=SEED, plugins=["unrehearsed"]).build  # type: ignore[misc]
    del sys.modules["unrehearsed"]


def inputs(batch: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(batch, WIDTH, generator=torch.Generator().manual_seed(batch))}


def ranks(model: nn.Module) -> Any:
    return model.graph_modules["layer1"]  # type: ignore[index]


def test_a_block_becomes_source_at_its_first_call(remote: RemoteModelFactory, original: Any) -> None:
    built, expected = remote.build(RANKS), original(RANKS)
    assert isinstance(ranks(built), ProgramModule)
    for training in (False, True):
        for batch in (2, 5):
            assert_same_runs(built.train(training), expected.train(training), inputs(batch))
    assert ranks(built).calls == ranks(expected).calls == 4
    assert type(ranks(built)).__name__ == "Ranks"
    assert type(ranks(built)).__module__.startswith("_model_factory_source_")
    assert type(ranks(built).step).__module__ == type(ranks(built)).__module__
    assert isinstance(ranks(built).split, ProgramModule), "a library's layer stays a program"
    assert_same_state(built, expected)
    assert list(dict(built.named_modules())) == list(dict(expected.named_modules()))


def test_what_the_trainer_did_before_the_call_stays(remote: RemoteModelFactory, original: Any) -> None:
    """An optimiser over the parameters, hooks, flags, and attributes of the block."""
    results = []
    for model in (remote.build(RANKS), original(RANKS)):
        block, seen = ranks(model), []
        block.scale = 3.0
        block.norm.eval()
        block.norm.weight.requires_grad_(False)
        block.register_forward_hook(lambda _block, _args, result, seen=seen: seen.append(result.detach().clone()))
        results.append((train(model, inputs(4), steps=3), dict(model.state_dict()), seen))
    assert len(results[0][2]) == 3
    assert_same(*results)


def test_copies_become_source_on_their_own(remote: RemoteModelFactory, original: Any) -> None:
    first = remote.build(RANKS)
    second = copy.deepcopy(first)
    assert_same_runs(first, original(RANKS), inputs(3))
    assert isinstance(ranks(second), ProgramModule)
    assert_same_runs(second, original(RANKS), inputs(3))
    assert ranks(first).step is not ranks(second).step
    assert_same_runs(copy.deepcopy(second), second, inputs(4))


def test_another_process_needs_no_second_recording(
    remote: RemoteModelFactory, source_server: ServerProcess, make_remote: MakeRemote, original: Any
) -> None:
    """The server has the answer in its store: the job of the first call is the only one."""
    remote.build(RANKS)(**inputs(2))
    jobs = len(re.findall("record .*OK", source_server.log))
    again = make_remote(source_server.address, seed=SEED, trust_source=True).build(RANKS)
    assert_same_runs(again, original(RANKS), inputs(2))
    assert len(re.findall("record .*OK", source_server.log)) == jobs


def test_a_method_needs_source(remote: RemoteModelFactory, original: Any) -> None:
    config = {"config": layers({"_type_": "codes", "width": WIDTH})}
    built, expected = remote.build(config), original(config)
    assert_same_runs(built, expected, inputs(3))
    block, own = built.graph_modules["layer0"], expected.graph_modules["layer0"]
    assert isinstance(block, ProgramModule)
    assert_same(block.code(**inputs(4)), own.code(**inputs(4)))
    assert type(block).__name__ == "Codes"
    assert_same_runs(built, expected, inputs(5))


def test_a_called_model_is_saved_with_its_source(remote: RemoteModelFactory, tmp_path: Path, original: Any) -> None:
    built = remote.build(RANKS)
    built(**inputs(2))
    save(built, tmp_path / "policy.mf")
    expected = original(RANKS)
    expected(**inputs(2))
    assert_same_runs(load(tmp_path / "policy.mf", trust_source=True), expected, inputs(3))


# Trust


def test_no_code_runs_without_trust(source_server: ServerProcess, make_remote: MakeRemote, original: Any) -> None:
    built = make_remote(source_server.address, seed=SEED).build(RANKS)
    before = set(sys.modules)
    with pytest.raises(SourceError) as caught:
        built(**inputs(2))
    text = str(caught.value)
    assert "graph_modules.layer1 (Ranks): the forward decides by the values of a tensor (unrehearsed.py:" in text
    assert "graph_modules.layer1.step (Step): part of a Ranks, which is sent as source code" in text
    assert "no code was run" in text
    assert isinstance(ranks(built), ProgramModule)
    assert not [name for name in sys.modules.keys() - before if name.startswith("_model_factory_source_")]
    (digest,) = re.findall(r"The bundle is ([0-9a-f]{64})", text)
    trusting = make_remote(source_server.address, seed=SEED, trust_source=[digest]).build(RANKS)
    assert_same_runs(trusting, original(RANKS), inputs(2))


def test_the_lock_of_a_config_with_a_signature_holds(
    source_server: ServerProcess,
    make_remote: MakeRemote,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    original: Any,
) -> None:
    config = RANKS["config"] | {"signature": {"x": {"shape": [2, WIDTH]}}}
    (tmp_path / "policy.yaml").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "without.yaml").write_text(json.dumps(RANKS["config"]))
    with redirect_stdout(StringIO()) as said:
        assert main(["trust", "without.yaml", "--server", source_server.address, "-o", "without.lock"]) == 0
    assert "without: needs no source code, as far as known\n" in said.getvalue()
    assert "  graph_modules.layer1 (Ranks): may need source at its first call; a `signature:`" in said.getvalue()
    with redirect_stdout(StringIO()) as said:
        assert main(["trust", "policy.yaml", "--server", source_server.address]) == 0
    assert "first call" not in said.getvalue()
    built = make_remote(source_server.address, seed=SEED, trust_source="model-factory.lock").build(RANKS)
    assert isinstance(ranks(built), ProgramModule)
    assert_same_runs(built, original(RANKS), inputs(3))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"_type_": "holds"}, "cannot be sent as source code: the model .Holds.*'order'"),
        ({"_type_": "local", "width": 2}, "its class is at the top level of a file of the operator"),
    ],
)
def test_some_blocks_cannot_be_sent_at_all(remote: RemoteModelFactory, spec: dict[str, Any], message: str) -> None:
    built = remote.build({"config": layers(spec)})
    with pytest.raises(NotPortableError, match=message):
        built(torch.ones(3))
    assert isinstance(built.graph_modules["layer0"], ProgramModule)


def test_a_server_that_shares_no_source_says_so(
    start_server: Callable[..., ServerProcess], make_remote: MakeRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TEST_PLUGINS), prepend=os.pathsep)
    server = start_server(None, "--plugin", "unrehearsed")
    built = make_remote(server.address, seed=SEED, trust_source=True).build(RANKS)
    with pytest.raises(
        NotPortableError, match=r"layer1 \(Ranks\): the forward decides.*allows source with --share-source"
    ):
        built(**inputs(2))


# A mounted checkout


def test_a_block_of_a_checkout_becomes_source_without_a_signature(
    start_server: Callable[..., ServerProcess], make_remote: MakeRemote, tmp_path: Path
) -> None:
    checkout = write_checkout(tmp_path / "checkout")
    options = ("--backend", "policy_constructor", "--backend-path", str(checkout), "--share-source")
    remote = make_remote(start_server(None, *options).address, seed=SEED, trust_source=True)
    config = {"config": layers(LINEAR, {"_type_": "ranked", "width": WIDTH})}
    built = remote.build(config)
    with imported(checkout):
        settings = BackendSettings(name="policy_constructor", path=checkout)
        expected = PolicyConstructorModelFactory(seed=SEED, backend=settings).build(config)
        for training in (False, True):
            assert_same_runs(built.train(training), expected.train(training), inputs(3))
        assert train(built, inputs(4)) == train(expected, inputs(4))
    assert built.graph_modules["layer1"].calls == expected.graph_modules["layer1"].calls
    assert not [name for name in sys.modules if name.startswith("model_constructor")]
