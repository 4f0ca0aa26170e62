"""Custom blocks with every property of modules: a trainer's module computes and trains like the original."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from matrix.blocks import BLOCKS, WIDTH
from matrix.portability import rebuilt_elsewhere, rebuilt_with_programs
from matrix.same import assert_same_module, assert_same_runs
from support.recording import InProcessRecorder, ask

# Torch's own hints on single arguments, the same for the original.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch")
SEED_OF_BUILD = 5


def make(name: str) -> nn.Module:
    torch.manual_seed(SEED_OF_BUILD)
    return BLOCKS[name]()


def inputs() -> list[torch.Tensor]:
    return [torch.randn(3, WIDTH, requires_grad=True)]


@pytest.mark.parametrize("name", BLOCKS)
def test_block_is_portable(name: str) -> None:
    original = make(name)
    rebuilt = rebuilt_with_programs(original) if name != "Lazy" else rebuilt_elsewhere(original)
    assert_same_module(make(name), rebuilt)  # the recording has restored the module
    ask(rebuilt, InProcessRecorder(lambda: make(name)) if name == "Lazy" else None)
    assert_same_runs(make(name), rebuilt, inputs)
