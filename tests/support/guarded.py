"""The guarded server of the attacks: plug-ins that misbehave, tight bounds, and a text that must be seen nowhere."""

from __future__ import annotations

from pathlib import Path

CANARY = "canary-7f3a91"
"""A secret in the environment of the server."""

PLUGINS = Path(__file__).parents[1] / "attacks" / "plugins"
"""Folder of the plug-ins that misbehave."""

BOUNDS = {
    "--max-weights-bytes": "1MiB",
    "--max-modules": "50",
    "--max-values": "400",
    "--max-nesting": "12",
    "--max-config-bytes": "32KiB",
    "--max-request-bytes": "256KiB",
    "--max-components": "9",
    "--max-memory-bytes": "2GiB",
    "--max-blob-bytes": "3MiB",
    "--plan-timeout": "20",
    "--build-timeout": "25",
    "--build-cpu-timeout": "2",
    "--max-queue": "6",
    "--max-rpcs": "8",
    "--keepalive-interval": "1",
    "--keepalive-timeout": "2",
    "--min-ping-interval": "0.3",
    "--stall-timeout": "2",
}
"""Options of the server."""
