"""The page of the block library names every block, and no other, with whether the block can be built."""

from __future__ import annotations

import re
from pathlib import Path

from model_factory_server.constructor import default_registry
from model_factory_server.constructor.blocks.parts.refused_blocks import REFUSED_BLOCKS

PAGE = Path(__file__).parents[3] / "docs" / "block-library.md"


def rows() -> list[tuple[list[str], str]]:
    """The blocks of each experiment, and whether they are built."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text(encoding="utf-8").partition("## Blocks")[0].splitlines()
        if line.startswith("| ") and "`" in line
    ]
    return [(re.findall(r"`(\w+)`", blocks), builds) for _, blocks, builds, _ in cells]


def test_every_block_is_in_one_experiment() -> None:
    named = [name for blocks, _ in rows() for name in blocks]
    assert sorted(named) == sorted(block.name for block in default_registry().blocks() if block.origin == "builtin")


def test_the_page_says_which_blocks_are_refused() -> None:
    refused = [name for blocks, builds in rows() for name in blocks if builds == "no"]
    assert sorted(refused) == sorted(REFUSED_BLOCKS)
    assert {builds for _, builds in rows()} == {"yes", "no"}
    below = PAGE.read_text(encoding="utf-8").partition("## Blocks")[2]
    assert all(f"`{name}`" in below for name in REFUSED_BLOCKS)
