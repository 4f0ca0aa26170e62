"""Everything a module can be, in blocks of one's own: what arrives at a trainer computes and trains the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from matrix.blocks import BLOCKS, WIDTH
from matrix.same import assert_same_module, assert_same_runs
from matrix.travel import travel, travel_recorded
from model_factory.graph.call_example import decode_call, encode_call
from model_factory.graph.call_form import Recorded
from model_factory.graph.modules import ProgramModule
from model_factory_server.recording.portable import record_call

# Torch's own hints on single arguments, the same for the original.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch")
SEED_OF_BUILD = 5


def make(name: str) -> nn.Module:
    torch.manual_seed(SEED_OF_BUILD)
    return BLOCKS[name]()


def inputs() -> list[torch.Tensor]:
    return [torch.randn(3, WIDTH, requires_grad=True)]


class Server:
    """Records calls as a server does: on a model of its own, built the same way."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls = 0

    def known(self, path: str) -> tuple[Recorded, ...]:  # noqa: ARG002  as of any source
        return ()

    def record(
        self,
        path: str,
        arguments: Mapping[str, Any],
        training: tuple[tuple[str, bool], ...],
        dtype: Any,  # noqa: ARG002  it is always built as it is
        outcomes: tuple[bool | int, ...] = (),
        method: str = "forward",  # noqa: ARG002  of blocks that declare no other
    ) -> Recorded:
        self.calls += 1
        with torch.random.fork_rng():
            return record_call(
                make(self.name), path, decode_call(encode_call(arguments, None, outcomes)), dict(training)
            )


@pytest.mark.parametrize("name", BLOCKS)
def test_block_travels(name: str) -> None:
    original = make(name)
    rebuilt = travel_recorded(original) if name != "Lazy" else travel(original)
    assert_same_module(make(name), rebuilt)  # recording left no trace in what was described
    for module in rebuilt.modules():
        if isinstance(module, ProgramModule):
            module._recorder = Server(name) if name == "Lazy" else None
    assert_same_runs(make(name), rebuilt, inputs)
