"""One rank of a data-parallel training step over gloo; run as a script."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from model_factory import RemoteModelFactory
from support.cases import CASES
from support.compare import loss_of


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--case", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--server", help="build from here; else the folder has a pickled model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{arguments.folder / 'rendezvous'}",
        rank=arguments.rank,
        world_size=arguments.ranks,
    )
    try:
        save_file(_step(arguments), arguments.folder / f"rank{arguments.rank}.safetensors")
    finally:
        distributed.destroy_process_group()


def _step(arguments: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Gradients, state after one AdamW step and the loss."""
    model = DistributedDataParallel(_model(arguments))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(arguments.rank)
    loss = loss_of(model(**CASES[arguments.case].inputs(2, 4, seed=arguments.rank)))
    loss.backward()
    gradients = {f"grad/{name}": item.grad for name, item in model.module.named_parameters() if item.grad is not None}
    optimizer.step()
    return (
        gradients
        | {f"state/{name}": item for name, item in model.module.state_dict().items()}
        | {"loss": loss.detach()}
    )


def _model(arguments: argparse.Namespace) -> nn.Module:
    if arguments.server is None:
        return pickle.loads((arguments.folder / "model.pickle").read_bytes())  # noqa: S301  written by the test
    factory = RemoteModelFactory(arguments.server, seed=arguments.seed, cache_dir=arguments.folder / "cache")
    name = arguments.case
    return factory.build({name: CASES[name].config})[name]


if __name__ == "__main__":
    main()
