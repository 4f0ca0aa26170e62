"""``signature:`` in a config of the built-in backend: what is recorded, and lazy modules, before the first call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from model_factory import RemoteModelFactory
from model_factory.errors import CallSignatureError, GraphExecutionError
from model_factory_server import PolicyConstructorModelFactory
from support.compare import assert_same_runs, assert_same_state
from support.server import ServerProcess

MakeRemote = Callable[..., RemoteModelFactory]


def config(first: int | None, **changes: Any) -> dict[str, Any]:
    layers = [
        {"_type_": "mlp", "dims": [first, 8, 4], "dropout": 0.25},
        {"_type_": "nn.LazyBatchNorm1d"} if first is None else {"_type_": "nn.Identity"},
    ]
    return {"config": {"schema_version": 1, "model": {"sequential": {"layers": layers}}} | changes}


def test_calls_of_the_signature_need_no_server(
    start_server: Callable[..., ServerProcess], make_remote: MakeRemote
) -> None:
    """The block's own examples have ranks 2 and 3."""
    server = start_server()
    factory = make_remote(server.address)
    known = factory.build(config(6, signature={"x": {"shape": [2, 3, 4, 6]}}))
    unknown = factory.build(config(6))
    local = PolicyConstructorModelFactory(seed=7).build(config(6))
    assert server.stop() == 0
    factory.close()
    for training in (False, True):
        assert_same_runs(known.train(training), local.train(training), {"x": torch.randn(5, 1, 2, 6)})
    with pytest.raises((CallSignatureError, GraphExecutionError), match="no program exists for this call signature"):
        unknown(torch.randn(5, 1, 2, 6))


def test_lazy_modules_are_given_their_shapes(make_remote: MakeRemote) -> None:
    """DDP refuses parameters without a shape; the run that shapes them leaves nothing else behind."""
    shaped = config(None, signature={"x": {"shape": [2, 6]}})
    remote, local = make_remote().build(shaped), PolicyConstructorModelFactory(seed=7).build(shaped)
    types = [type(module) for module in remote.modules()]
    assert nn.LazyLinear not in types
    assert nn.LazyBatchNorm1d not in types
    assert remote.training
    assert not remote.graph_modules["layer1"].num_batches_tracked
    assert_same_state(remote, local)
    assert_same_runs(remote, local, {"x": torch.randn(5, 6)})
    # The second seed builds weights alone: they have to fit the descriptor that the first one left.
    assert_same_state(make_remote(seed=8).build(shaped), PolicyConstructorModelFactory(seed=8).build(shaped))


def test_without_signature_lazy_modules_stay_lazy(make_remote: MakeRemote) -> None:
    model = make_remote().build(config(None))
    assert nn.LazyLinear in [type(module) for module in model.modules()]


def test_index_inputs(make_remote: MakeRemote) -> None:
    layers = [{"_type_": "nn.Embedding", "num_embeddings": 5, "embedding_dim": 6}, {"_type_": "mlp", "dims": [6, 2]}]
    signature = {"x": {"shape": [2, 3, 2], "dtype": "int64"}}
    spec = {"config": {"schema_version": 1, "model": {"sequential": {"layers": layers}}, "signature": signature}}
    remote, local = make_remote().build(spec), PolicyConstructorModelFactory(seed=7).build(spec)
    assert_same_runs(remote, local, {"x": torch.tensor([[[4, 0]]])})
