"""Every class of ``torch.nn`` and every kind of block: a model from a file equals the saved model, bit for bit."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

import model_factory
from matrix.blocks import BLOCKS, WIDTH
from matrix.cases import SEED_OF_BUILD, Case
from matrix.portability import rebuilt_with_programs
from matrix.same import assert_same_module, assert_same_runs
from matrix.test_torch_nn import ROWS

# Torch's own hints on single arguments, the same for the original.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch")


@pytest.mark.parametrize(("name", "case"), ROWS)
def test_class_from_a_file(name: str, case: Case, tmp_path: Path) -> None:
    torch.manual_seed(SEED_OF_BUILD)
    original = case.build(name)
    model_factory.save(original, tmp_path / "model.mf")
    loaded = model_factory.load(tmp_path / "model.mf")
    assert_same_module(original, loaded)
    if case.inputs is not None:
        assert_same_runs(original, loaded, case.inputs)
        assert_same_module(original, loaded)  # also after a forward has given lazy modules their shapes


@pytest.mark.parametrize("name", [name for name in BLOCKS if name != "Lazy"])
def test_block_from_a_file(name: str, tmp_path: Path) -> None:
    torch.manual_seed(SEED_OF_BUILD)
    original = BLOCKS[name]()
    rebuilt = rebuilt_with_programs(original)
    model_factory.save(rebuilt, tmp_path / "model.mf")
    loaded = model_factory.load(tmp_path / "model.mf")
    assert_same_module(original, loaded)
    assert_same_runs(rebuilt, loaded, lambda: [torch.randn(3, WIDTH, requires_grad=True)])
    model_factory.save(loaded.train(rebuilt.training), tmp_path / "again.mf")
    model_factory.save(rebuilt, tmp_path / "model.mf")  # after the run
    assert (tmp_path / "again.mf").read_bytes() == (tmp_path / "model.mf").read_bytes()


@pytest.mark.usefixtures("with_server_package")
@pytest.mark.parametrize("name", ["Frozen", "TiedParameters", "Parametrized", "SequentialOfBlocks"])
def test_block_of_this_process(name: str, tmp_path: Path) -> None:
    """A model with its own classes is recorded as a server records the model; the model itself stays as it is."""
    original = BLOCKS[name]()
    original(torch.randn(3, WIDTH)).sum().backward()
    gradients = [parameter.grad for parameter in original.parameters()]
    model_factory.save(original, tmp_path / "model.mf")
    assert all(parameter.grad is kept for parameter, kept in zip(original.parameters(), gradients, strict=True))
    loaded = model_factory.load(tmp_path / "model.mf")
    assert_same_module(original, loaded)
    assert_same_runs(original, loaded, lambda: [torch.randn(3, WIDTH, requires_grad=True)])


@pytest.fixture
def with_server_package() -> None:
    importlib.import_module("model_factory_server.in_process")  # as the in-process factory does
