"""Trains a flow-matching policy whose networks a server builds.

Usage: python examples/flow_policy/train.py [--server HOST:PORT] [--steps N]

Without --server, the script starts a local server. The trainer holds data, losses, an optimiser and a small projection.
The data is synthetic: the actions are a smooth function of the proprioception.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from model_factory import RemoteModelFactory

CONFIGS = Path(__file__).parent / "configs"
COMPONENTS = {
    "observation_encoder": "observation_encoder.yaml",
    "velocity_decoder": "velocity_decoder.yaml",
    "prior": "prior.yaml",
    "posterior": "posterior.yaml",
}
BATCH, FRAMES, TOKENS, CHUNK = 2, 4, 6, 40


def main() -> None:
    """Build, train, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", metavar="HOST:PORT", help="address (default: a local server)")
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    with nullcontext(arguments.server) if arguments.server else own_server() as address:
        print(f"server       {address}")
        train(address, arguments.steps)


def own_server():
    """Start a local server in another process."""
    from model_factory_server import local_server  # noqa: PLC0415

    return local_server()


def train(address: str, steps: int) -> None:
    """Build the four networks on the server and train them together."""
    torch.manual_seed(0)
    started = time.monotonic()
    models = RemoteModelFactory(address, base_dir=CONFIGS).build(COMPONENTS)
    print(f"built        {len(models)} models in {time.monotonic() - started:.1f} s")
    for name, model in models.items():
        print(f"  {name:<20} {sum(item.numel() for item in model.parameters()):>12,} parameters")
    policy = nn.ModuleDict(models)
    policy["to_memory"] = nn.Linear(768, 512)
    policy.train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4)
    batch = demonstrations()
    for step in range(steps):
        started = time.monotonic()
        flow, latent = losses(policy, batch)
        optimizer.zero_grad(set_to_none=True)
        (flow + latent).backward()
        optimizer.step()
        seconds = time.monotonic() - started
        print(f"step {step + 1:>2}/{steps}   flow {flow.item():.4f}   latent {latent.item():.4f}   {seconds:.1f} s")


def losses(policy: nn.ModuleDict, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the flow-matching loss, and the squared distance between prior and posterior."""
    proprio, camera, semantic, action = (batch[name] for name in ("proprio", "camera", "semantic", "action"))
    posterior = policy["posterior"](proprio, camera.unsqueeze(1), semantic, action)
    prior = policy["prior"](proprio=proprio, camera=camera.unsqueeze(1), semantic=semantic, action=None)
    tokens = camera.transpose(1, 2)
    semantics = [semantic.unsqueeze(1)] * 3
    observed = policy["observation_encoder"](proprio, [tokens] * 3, semantics, None)
    memory = torch.cat([policy["to_memory"](posterior), observed], dim=1)
    noise = torch.randn_like(action)
    moment = torch.rand(action.shape[0])
    between = torch.lerp(noise, action, moment[:, None, None])
    velocity = policy["velocity_decoder"](moment, between, memory, None)
    return (velocity - (action - noise)).square().mean(), (prior - posterior.detach()).square().mean()


def demonstrations() -> dict[str, Tensor]:
    """Return a synthetic batch: actions are a smooth function of the proprioception."""
    proprio = torch.randn(BATCH, FRAMES, 48)
    phase = torch.linspace(0, 3, CHUNK)[None, :, None]
    action = torch.sin(phase + proprio[:, -1:, :24])
    return {
        "proprio": proprio,
        "camera": torch.randn(BATCH, 1024, TOKENS),
        "semantic": torch.randn(BATCH, 3072),
        "action": action,
    }


if __name__ == "__main__":
    main()
