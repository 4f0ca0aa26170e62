"""Folders of plug-ins."""

from __future__ import annotations

from pathlib import Path

EXAMPLE_PLUGINS = Path(__file__).parents[2] / "examples" / "plugins"
TEST_PLUGINS = Path(__file__).with_name("plugins")
