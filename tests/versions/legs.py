"""The environments of ``make versions``: which versions a client is tried with, and who has them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """One environment of a trainer."""

    name: str
    """Name on the command line and in ``docs/versions.md``."""
    why: str
    """Who has this environment."""
    python: str
    """Command of the interpreter; the running interpreter where this machine lacks the command."""
    requirements: tuple[str, ...]
    """Requirements for pip beside the client."""


LEGS = {
    leg.name: leg
    for leg in (
        Leg(
            name="oldest",
            why="the lower bounds of `pyproject.toml`",
            python="python3.10",
            requirements=(
                *("torch==2.4.1", "numpy==1.26.4", "protobuf==5.29.1", "grpcio==1.83.2", "grpcio-status==1.71.0"),
                *("grpcio-health-checking==1.71.0", "safetensors==0.7.0", "PyYAML==6.0", "blake3==1.0.0"),
                "tqdm==4.66.0",
            ),
        ),
        Leg(
            name="lerobot",
            why="LeRobot 0.3 allows torch below 2.8",
            python="python3.11",
            requirements=("torch==2.7.1", "numpy==2.2.6", "protobuf>=6.33,<7", "grpcio==1.84.2"),
        ),
        Leg(
            name="openpi",
            why="openpi has torch 2.8 and NumPy 1",
            python="python3.11",
            requirements=("torch==2.8.0", "numpy==1.26.4", "protobuf>=6.33,<7"),
        ),
        Leg(
            name="newest",
            why="the newest release of each package, and the torch of the server",
            python="python3.11",
            requirements=("torch==2.13.0", "numpy>=2.4", "protobuf>=7"),
        ),
    )
}
"""Environments by name, from the oldest to the newest torch."""
