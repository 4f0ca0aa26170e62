"""Any bytes in the place of a model file: the saved model, or an error of this package; never a crash."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from matrix.blocks import BLOCKS, WIDTH
from matrix.portability import rebuilt_with_programs
from model_factory.errors import ModelFactoryError
from model_factory.model_file.load import load
from model_factory.model_file.save import save
from property.amount import EXAMPLES

CHANGES = st.lists(
    st.tuples(st.sampled_from(["set", "remove", "insert", "cut"]), st.floats(0, 1), st.integers(0, 255)),
    min_size=1,
    max_size=4,
)


@cache
def saved() -> tuple[bytes, nn.Module]:
    model = rebuilt_with_programs(BLOCKS["SequentialOfBlocks"]()).eval()
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "model.mf")
        return (Path(folder) / "model.mf").read_bytes(), model


def changed(data: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    found = bytearray(data)
    for how, where, value in changes:
        place = int(where * (len(found) - 1)) if found else 0
        if how == "set":
            found[place : place + 1] = bytes([value])
        elif how == "remove":
            del found[place : place + value]
        elif how == "insert":
            found[place:place] = bytes([value])
        else:
            del found[place:]
    return bytes(found)


@settings(max_examples=EXAMPLES, deadline=None)
@given(CHANGES)
def test_a_damaged_file_is_refused_or_unchanged(changes: list[tuple[str, float, int]]) -> None:
    data, model = saved()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.mf"
        path.write_bytes(changed(data, changes))
        try:
            loaded = load(path)
        except ModelFactoryError:
            return
    x = torch.ones(2, WIDTH)
    assert isinstance(loaded, nn.Module)
    assert torch.equal(loaded.eval()(x), model(x))
