"""A trainer with a config of Hydra: the component config is a part of the application's config.

Usage: MODEL_FACTORY_SERVER=HOST:PORT python examples/trainers/hydra_app.py width=128 train.steps=50
"""

from __future__ import annotations

import hydra
import torch
from omegaconf import DictConfig

from model_factory.factories import PolicyConstructorModelFactory


@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Build and train."""
    policy = PolicyConstructorModelFactory(seed=cfg.seed).build({"config": cfg.policy})
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=cfg.train.lr)
    for step in range(cfg.train.steps):
        observation = torch.randn(32, 12)
        loss = (policy(observation) - observation[:, :4]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in {0, cfg.train.steps - 1}:
            print(f"step {step} loss {loss.item():.3f}")
    print(f"width {policy.graph_modules['layer1'].in_features}")


if __name__ == "__main__":
    main()
