"""A trainer with Hugging Face accelerate.

Usage: MODEL_FACTORY_SERVER=HOST:PORT accelerate launch examples/trainers/accelerate_app.py
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

from model_factory import BuildInfo
from model_factory.factories import PolicyConstructorModelFactory

CONFIG = Path(__file__).with_name("policy.yaml")


def main() -> None:
    """Build, train, and write the state of the training and the build info."""
    accelerator = Accelerator()
    policy = PolicyConstructorModelFactory(seed=7).build({"config_path": CONFIG})
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    data = DataLoader(TensorDataset(torch.randn(640, 12)), batch_size=32)
    model, optimizer, data = accelerator.prepare(policy, optimizer, data)
    for step, (observation,) in enumerate(data):
        loss = (model(observation) - observation[:, :4]).square().mean()
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        if step in {0, len(data) - 1}:
            accelerator.print(f"step {step} loss {loss.item():.3f}")
    accelerator.save_state("state")
    if accelerator.is_main_process:
        Path("state", "build_info.json").write_text(json.dumps(BuildInfo.of(model).as_dict()), encoding="utf-8")


if __name__ == "__main__":
    main()
