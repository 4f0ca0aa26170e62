"""Networks of torchrl. A forward that takes ``*inputs`` is called by a block with named arguments, as agents do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torchrl import modules

from zoo.model import BATCH, Inputs, Model, rows, tensors


class Caller(nn.Module):
    """Calls a network with one or two tensors by position."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        """Call the network."""
        return self.network(x) if y is None else self.network(x, y)


def models() -> list[Model]:
    """Return the models."""
    small = {"in_features": 5, "out_features": 3, "num_cells": [16, 16]}
    agents = {"n_agent_inputs": 5, "n_agent_outputs": 3, "n_agents": 2, "depth": 2, "num_cells": 16}
    rnn = {"input_size": 5, "hidden_size": 8, "batch_first": True}
    rows_of_states = tensors(input=(BATCH, (4, 4, 6), 5))
    called: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
        "MLP": (lambda: modules.MLP(**small), tensors(x=(BATCH, 5))),
        "MLP+dropout": (lambda: modules.MLP(**small, dropout=0.2), tensors(x=(BATCH, 5))),
        "ConvNet": (lambda: modules.ConvNet(in_features=3, num_cells=[8, 8]), tensors(x=(BATCH, 3, 36, 36))),
        "Conv3dNet": (lambda: modules.Conv3dNet(in_features=3, num_cells=[4, 4]), tensors(x=(BATCH, 3, 8, 12, 12))),
        "MultiAgentMLP": (
            lambda: modules.MultiAgentMLP(**agents, centralized=False, share_params=False), tensors(x=(BATCH, 2, 5))
        ),
        "MultiAgentMLP+shared": (
            lambda: modules.MultiAgentMLP(**agents, centralized=True, share_params=True), tensors(x=(BATCH, 2, 5))
        ),
        "QMixer": (lambda: modules.QMixer((6,), 8, 3, "cpu"), tensors(x=(BATCH, 3, 1), y=(BATCH, 6))),
        "VDNMixer": (lambda: modules.VDNMixer(3, "cpu"), tensors(x=(BATCH, 3, 1))),
        "NormalParamExtractor": (modules.NormalParamExtractor, tensors(x=(BATCH, 6))),
        "DistributionalDQNnet": (modules.DistributionalDQNnet, tensors(x=(BATCH, 7, 4))),
        "DreamerV3MLP": (lambda: modules.DreamerV3MLP(5, 3, depth=1, num_cells=16), tensors(x=(BATCH, 5))),
        "RSSMPosterior": (
            lambda: modules.RSSMPosterior(hidden_dim=8, state_dim=4, rnn_hidden_dim=6, obs_embed_dim=10),
            tensors(x=(BATCH, 6), y=(BATCH, 10)),
        ),
    }  # fmt: skip
    table: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
        "NoisyLinear": (lambda: modules.NoisyLinear(5, 3), tensors(input=(BATCH, 5))),
        "ConsistentDropout": (lambda: modules.ConsistentDropout(0.5), tensors(x=(BATCH, 5))),
        "BatchRenorm1d": (lambda: modules.BatchRenorm1d(5), tensors(x=(BATCH, 5))),
        "ObsEncoder": (
            lambda: modules.ObsEncoder(channels=4, num_layers=2, in_channels=3), tensors(observation=(BATCH, 3, 32, 32))
        ),
        "GRUCell": (lambda: modules.GRUCell(5, 8), tensors(input=(BATCH, 5))),
        "GRU": (lambda: modules.GRU(**rnn), rows_of_states),
        "LSTM": (lambda: modules.LSTM(**rnn), rows_of_states),
        "DecisionTransformer": (
            lambda: modules.DecisionTransformer(
                5, 3, {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_inner": 32, "activation": "relu", "n_positions": 64,
                       "resid_pdrop": 0.1, "attn_pdrop": 0.1}
            ),
            tensors(observation=(BATCH, 4, 5), action=(BATCH, 4, 3), return_to_go=(BATCH, 4, 1)),
        ),
    }  # fmt: skip
    table |= {name: ((lambda make=make: Caller(make())), inputs) for name, (make, inputs) in called.items()}
    return rows("torchrl", table)
