"""Program modules that get classes from source code: all or none, and only with the tensors of the build."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from model_factory.describe.describe import describe
from model_factory.descriptor.codec import decode_descriptor, encode_descriptor
from model_factory.descriptor.rebuild import give_source_classes, rebuild
from model_factory.descriptor.tree import Descriptor, SourceClass, SourceNode
from model_factory.digest import Blob
from model_factory.errors import FormatError, SourceError
from model_factory.program.runtime.program_module import ProgramModule


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

    def twice(self, x: torch.Tensor) -> torch.Tensor:
        return self(self(x))


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.scale = 2.0
        self.table = torch.ones(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner.twice(x) * self.scale * self.table


CLASSES = {"Outer": Outer, "Inner": Inner}


def sources(block: nn.Module) -> Descriptor:
    """The descriptor that a server sends."""
    found = {
        module: SourceClass(module="blocks", qualname=type(module).__name__, reason="values decide")
        for module in block.modules()
        if type(module).__name__ in CLASSES
    }
    return decode_descriptor(encode_descriptor(describe(block, found, Blob.of(b"the source"))))


def find_class(item: SourceClass) -> Any:
    if item.qualname not in CLASSES:
        raise SourceError("no such class")
    return CLASSES[item.qualname]


@pytest.fixture
def block() -> Outer:
    torch.manual_seed(0)
    return Outer()


@pytest.fixture
def built(block: Outer) -> Any:
    tensors = {**block.state_dict(), "table": block.table}
    return rebuild(describe(block), {name: value.clone() for name, value in tensors.items()})


def test_modules_get_their_classes_and_keep_everything_else(block: Outer, built: Any) -> None:
    weight, table = built.inner.layer.weight, built.table
    built.scale = 3.0
    built.inner.eval()
    give_source_classes(built, sources(block), find_class)
    assert (type(built), type(built.inner)) == (Outer, Inner)
    assert built.inner.layer.weight is weight
    assert built.table is table
    assert built.scale == 3.0
    assert built.training
    assert not built.inner.training
    x = torch.ones(3, 2)
    block.scale = 3.0
    assert built(x).equal(block(x))
    for copied in (copy.deepcopy(built), pickle.loads(pickle.dumps(built))):  # noqa: S301  of this process
        assert copied(x).equal(block(x))
    assert vars(built).keys() == vars(block).keys()


def test_a_replaced_module_is_left_alone(block: Outer, built: Any) -> None:
    built.inner = nn.Identity()
    give_source_classes(built, sources(block), find_class)
    assert type(built) is Outer
    assert type(built.inner) is nn.Identity


def broken(block: nn.Module, index: int, **changes: Any) -> Descriptor:
    descriptor = sources(block)
    nodes = list(descriptor.modules)
    nodes[index] = replace(nodes[index], **changes)
    return replace(descriptor, modules=tuple(nodes))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"attributes": {"forward": 1}}, FormatError),
        ({"attributes": {"_parameters": {}}}, FormatError),
        ({"source": SourceClass(module="blocks", qualname="Unknown", reason="")}, SourceError),
    ],
)
def test_a_malformed_node_changes_nothing(
    block: Outer, built: Any, changes: dict[str, Any], error: type[Exception]
) -> None:
    descriptor = sources(block)
    (index,) = (at for at, node in enumerate(descriptor.modules) if at and isinstance(node, SourceNode))
    with pytest.raises(error):
        give_source_classes(built, broken(block, index, **changes), find_class)
    assert isinstance(built, ProgramModule)
    assert isinstance(built.inner, ProgramModule)


def test_a_tensor_has_to_be_of_the_build(block: Outer, built: Any) -> None:
    block.more = torch.ones(1)
    with pytest.raises(FormatError, match="has a tensor 'more' that the build does not have"):
        give_source_classes(built, sources(block), find_class)


def test_only_classes_of_modules(block: Outer, built: Any) -> None:
    with pytest.raises(FormatError, match="is not the class of a module"):
        give_source_classes(built, sources(block), lambda _item: dict)
