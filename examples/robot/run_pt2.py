"""Runs a policy exported with `model-factory export --format pt2`. Needs torch, and nothing of model-factory.

Usage: python run_pt2.py policy.pt2 [--steps N]
"""

from __future__ import annotations

import argparse
import time

import torch


def main() -> None:
    """Load the program, and call it as a control loop does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()

    program = torch.export.load(arguments.program)
    policy = program.module()
    _, example = program.example_inputs  # shapes of the export, by the names of the forward's parameters
    observation = {  # the robot's sensors go here; a batch of 1
        name: torch.zeros_like(value[:1]) if isinstance(value, torch.Tensor) else value
        for name, value in example.items()
    }
    with torch.inference_mode():
        started = time.perf_counter()
        for _ in range(arguments.steps):
            actions = policy(**observation)
        seconds = time.perf_counter() - started
    print(f"actions {actions.flatten().tolist()}")
    print(f"{1000 * seconds / arguments.steps:.2f} ms per step")


if __name__ == "__main__":
    main()
