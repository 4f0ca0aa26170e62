"""The documents of every kind of block are valid by the schemas of ``docs/formats``."""

from __future__ import annotations

import pytest
import torch

from matrix.blocks import BLOCKS
from model_factory.describe.describe import describe
from model_factory.descriptor.codec import encode_descriptor, encode_programs
from model_factory_server.export.exporter import record_model
from support.schemas import check


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize("name", BLOCKS)
def test_documents_are_valid(name: str) -> None:
    torch.manual_seed(0)
    block = BLOCKS[name]()
    check("descriptor", encode_descriptor(describe(block)))
    if name != "Lazy":  # has no program before its first call
        check("programs", encode_programs(record_model(block)))
