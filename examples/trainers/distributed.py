"""Data-parallel training, under torchrun or Slurm.

Usage: torchrun --standalone --nproc-per-node 2 examples/trainers/distributed.py
       srun python examples/trainers/distributed.py   (in a job; see distributed.sbatch)

Every rank builds the model with the same seed. The server builds once, one rank of each node downloads, and all ranks
of a node map the same weights.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from model_factory import BuildInfo
from model_factory.factories import PolicyConstructorModelFactory

CONFIG = Path(__file__).with_name("policy.yaml")


def main() -> None:
    """Start the process group, train, and end the group after the last use of the model."""
    start()
    train(dist.get_rank())
    dist.barrier()  # a group with work in progress can hang at its end
    dist.destroy_process_group()


def train(rank: int) -> None:
    """Build on every rank, train together, and write a checkpoint on rank 0."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    policy = PolicyConstructorModelFactory(seed=7, device=device).build({"config_path": CONFIG})
    check_equal_builds(BuildInfo.of(policy))
    model = DistributedDataParallel(policy)

    torch.manual_seed(rank)  # other data on every rank
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(20):
        observation = torch.randn(32, 12, device=device)
        loss = (model(observation) - observation[:, :4]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0 and step in {0, 19}:
            print(f"step {step} loss {loss.item():.3f}", flush=True)
    if rank == 0:
        torch.save({"model": policy.state_dict(), "build": BuildInfo.of(model).as_dict()}, "checkpoint.pt")


def start() -> None:
    """Start the process group; Slurm's variables become those of torchrun."""
    slurm = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
    for name, source in slurm.items():
        if name not in os.environ:
            os.environ[name] = os.environ[source]
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def check_equal_builds(info: BuildInfo) -> None:
    """Stop if ranks have built different models, for example during an upgrade of the server."""
    weights: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(weights, info.weights)
    if len(set(weights)) > 1:
        raise SystemExit(f"the ranks have different weights: {weights}")


if __name__ == "__main__":
    main()
