"""Runs a policy exported with `model-factory export --format onnx`. Needs onnxruntime and numpy only.

Usage: python run_onnx.py policy.onnx [--steps N]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import onnxruntime

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


def main() -> None:
    """Load the program, and call it as a control loop does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()

    policy = onnxruntime.InferenceSession(arguments.program, providers=["CPUExecutionProvider"])
    observation = {}  # the robot's sensors go here; named axes, such as the batch, have size 1
    for item in policy.get_inputs():
        sizes = [axis if isinstance(axis, int) else 1 for axis in item.shape]
        observation[item.name] = np.zeros(sizes, DTYPES[item.type])
    started = time.perf_counter()
    for _ in range(arguments.steps):
        actions = policy.run(None, observation)[0]
    seconds = time.perf_counter() - started
    print(f"actions {actions.flatten().tolist()}")
    print(f"{1000 * seconds / arguments.steps:.2f} ms per step")


if __name__ == "__main__":
    main()
