"""Layers and networks of torch_geometric, on graphs of three sizes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch_geometric import nn as graphs

from zoo.model import BATCH, Inputs, Model, rows, tensors

_NODES = (6, 8, 9)
_EDGES = (10, 12, 14)


def models() -> list[Model]:
    """Return the models."""
    small = {"in_channels": 4, "hidden_channels": 8, "num_layers": 2, "out_channels": 3}
    graph = _graph
    table: dict[str, tuple[Any, Inputs]] = {
        "GCN": (partial(graphs.GCN, **small), graph),
        "GraphSAGE": (partial(graphs.GraphSAGE, **small), graph),
        "GIN": (partial(graphs.GIN, **small), graph),
        "GAT": (partial(graphs.GAT, **small, heads=2), graph),
        "EdgeCNN": (partial(graphs.EdgeCNN, **small), graph),
        "GCNConv": (partial(graphs.GCNConv, 4, 8), graph),
        "GATv2Conv": (partial(graphs.GATv2Conv, 4, 8, heads=2), graph),
        "TransformerConv": (partial(graphs.TransformerConv, 4, 8, heads=2), graph),
        "GraphConv": (partial(graphs.GraphConv, 4, 8), graph),
        "ChebConv": (partial(graphs.ChebConv, 4, 8, K=2), graph),
        "TAGConv": (partial(graphs.TAGConv, 4, 8, K=2), graph),
        "EdgeConv": (lambda: graphs.EdgeConv(nn.Sequential(nn.Linear(8, 8), nn.ReLU())), graph),
        "GINConv": (lambda: graphs.GINConv(nn.Sequential(nn.Linear(4, 8), nn.ReLU())), graph),
        "PointNetConv": (
            lambda: graphs.PointNetConv(nn.Linear(7, 8), nn.Linear(8, 8)),
            lambda size: graph(size) | tensors(pos=(_NODES, 3))(size),
        ),
        "DenseGCNConv": (
            partial(graphs.DenseGCNConv, 4, 8),
            tensors(x=(BATCH, 5, 4), adj=(BATCH, 5, 5)),
        ),
        "MLP": (partial(graphs.MLP, [4, 8, 3], dropout=0.2), tensors(x=(_NODES, 4))),
        "Linear": (partial(graphs.Linear, 4, 8), tensors(x=(_NODES, 4))),
        "LayerNorm": (partial(graphs.LayerNorm, 4), tensors(x=(_NODES, 4))),
        "BatchNorm": (partial(graphs.BatchNorm, 4), tensors(x=(_NODES, 4))),
        "PairNorm": (graphs.PairNorm, tensors(x=(_NODES, 4))),
    }  # fmt: skip
    return rows("torch_geometric", table)


def _graph(size: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    edges = torch.randint(0, _NODES[size], (2, _EDGES[size]), generator=generator)
    return tensors(x=(_NODES, 4))(size) | {"edge_index": edges}
