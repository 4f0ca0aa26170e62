"""A trainer with Lightning: the module builds its model in ``configure_model``, on every rank.

Usage: MODEL_FACTORY_SERVER=HOST:PORT python examples/trainers/lightning_app.py
"""

from __future__ import annotations

from pathlib import Path

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from model_factory.factories import PolicyConstructorModelFactory

CONFIG = Path(__file__).with_name("policy.yaml")


class PolicyTraining(lightning.LightningModule):
    """Trains a policy from a server."""

    def __init__(self, config: str, seed: int) -> None:  # noqa: ARG002  read by save_hyperparameters
        super().__init__()
        self.save_hyperparameters()
        self.policy: torch.nn.Module | None = None

    def configure_model(self) -> None:
        """Build the policy once; a loaded checkpoint fills the weights afterwards."""
        if self.policy is None:
            factory = PolicyConstructorModelFactory(seed=self.hparams["seed"])
            self.policy = factory.build({"config_path": self.hparams["config"]})

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Add the build info to the checkpoint."""
        checkpoint["build"] = self.policy.build_info.as_dict()

    def training_step(self, batch: list[Tensor]) -> Tensor:
        """Return the loss of a batch."""
        (observation,) = batch
        loss = (self.policy(observation) - observation[:, :4]).square().mean()
        if self.global_step in {0, 19}:
            print(f"step {self.global_step} loss {loss.item():.3f}")
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser of the policy."""
        return torch.optim.AdamW(self.policy.parameters(), lr=1e-2)


def main() -> None:
    """Train, write a checkpoint, and continue from the checkpoint."""
    torch.manual_seed(0)
    data = DataLoader(TensorDataset(torch.randn(640, 12)), batch_size=32)
    options = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(**options, enable_checkpointing=False, enable_model_summary=False)
    trainer.fit(PolicyTraining(str(CONFIG), seed=7), data)
    trainer.save_checkpoint("checkpoint.ckpt")
    again = PolicyTraining.load_from_checkpoint("checkpoint.ckpt")
    print(f"continues the build of seed {again.policy.build_info.seed}")


if __name__ == "__main__":
    main()
