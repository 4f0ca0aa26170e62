"""A plain training loop.

Usage: MODEL_FACTORY_SERVER=HOST:PORT python examples/trainers/plain.py

Without the variable, the model is built in this process, if model-factory-server is installed.
"""

from __future__ import annotations

from pathlib import Path

import torch

from model_factory.factories import PolicyConstructorModelFactory

CONFIG = Path(__file__).with_name("policy.yaml")


def main() -> None:
    """Build, train, and write a checkpoint with the build info."""
    factory = PolicyConstructorModelFactory(seed=7)
    factory.wait(timeout=120)  # for a server that starts together with the trainer
    policy = factory.build({"config_path": CONFIG})

    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    for step in range(20):
        observation = torch.randn(32, 12)
        loss = (policy(observation) - observation[:, :4]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in {0, 19}:
            print(f"step {step} loss {loss.item():.3f}")
    torch.save({"model": policy.state_dict(), "build": policy.build_info.as_dict()}, "checkpoint.pt")


if __name__ == "__main__":
    main()
