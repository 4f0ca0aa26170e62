"""Comparison of a rebuilt module with the one it was described from: everything bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from model_factory.descriptor.attributes import described
from model_factory.descriptor.stock import is_stock, stock_type
from model_factory.errors import FormatError
from model_factory.program.runtime.graph_model import GraphModel
from model_factory.program.runtime.program_module import ProgramModule

SEED = 11
INTERNALS = frozenset(nn.Module().__dict__)
# Made again by the rebuild: lists of the weights themselves, and handles to hooks.
DERIVED = frozenset({"_flat_weights", "_flat_weight_refs", "_load_hook", "_initialize_hook"})

Inputs = Callable[[], Sequence[Any]]


def assert_same_module(original: nn.Module, rebuilt: nn.Module) -> None:
    """Types, attributes, flags, tensors, ties and state dict agree."""
    ours, theirs = (dict(module.named_modules(remove_duplicate=False)) for module in (original, rebuilt))
    assert list(ours) == list(theirs)
    for path, module in ours.items():
        assert_same_node(module, theirs[path], path)
    assert ties(tensors(original)) == ties(tensors(rebuilt))
    assert ties(list(ours.items())) == ties(list(theirs.items()))
    assert_same_state(original, rebuilt)


def assert_same_node(module: nn.Module, rebuilt: nn.Module, path: str) -> None:
    if isinstance(rebuilt, ProgramModule):
        assert not is_stock(module)
        assert repr(rebuilt).partition("(")[0] == type(module).__name__, path
        assert_same_attributes(module, rebuilt, path)
    elif isinstance(module, GraphModel):
        assert isinstance(rebuilt, GraphModel)
        assert rebuilt.inputs == module.inputs
        assert rebuilt.runner.program == module.runner.program
    elif type(module).__name__.startswith("Parametrized"):
        assert type(rebuilt).__mro__[1:] == type(module).__mro__[1:], path
    else:
        assert type(rebuilt) is stock_type(module), path
        assert same(plain(module), plain(rebuilt)), (path, plain(module), plain(rebuilt))
    assert rebuilt.training == module.training, path
    for table in ("_parameters", "_buffers"):
        tensors, others = getattr(module, table), getattr(rebuilt, table)
        assert list(tensors) == list(others), path
        for name, tensor in tensors.items():
            assert same_tensor(tensor, others[name]), f"{path}.{name}"
    assert module._non_persistent_buffers_set == rebuilt._non_persistent_buffers_set, path


def assert_same_attributes(module: nn.Module, rebuilt: nn.Module, path: str) -> None:
    """What can be read off a block: all its tensors and its plain data, but for names that mean something else now."""
    for name, value in plain(module).items():
        if isinstance(value, Tensor):
            assert same_tensor(value, getattr(rebuilt, name)), f"{path}.{name}"
        elif name in rebuilt.__dict__:
            assert same(value, getattr(rebuilt, name)), f"{path}.{name}"
        elif not hasattr(nn.Module, name):
            with pytest.raises(FormatError):
                described(value)


def plain(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in module.__dict__.items() if name not in INTERNALS | DERIVED}


def tensors(module: nn.Module) -> list[tuple[str, object]]:
    """Every parameter, buffer and plain tensor by every path."""
    return [
        (f"{path}.{name}", value)
        for path, item in module.named_modules(remove_duplicate=False)
        for table in (item._parameters, item._buffers, item.__dict__)
        for name, value in table.items()
        if isinstance(value, Tensor)
    ]


def ties(named: Sequence[tuple[str, object]]) -> list[list[str]]:
    """Names that lead to the same object."""
    groups: dict[int, list[str]] = {}
    for name, item in named:
        groups.setdefault(id(item), []).append(name)
    return list(groups.values())


def assert_same_state(original: nn.Module, rebuilt: nn.Module) -> None:
    ours, theirs = original.state_dict(), rebuilt.state_dict()
    assert list(ours) == list(theirs)
    assert ours._metadata == theirs._metadata  # type: ignore[attr-defined]
    assert all(same_tensor(value, theirs[name]) for name, value in ours.items())


def assert_same_runs(original: nn.Module, rebuilt: nn.Module, inputs: Inputs) -> None:
    """Outputs, gradients, buffers and the random numbers drawn agree in train and eval mode."""
    for mode in (True, False):
        expected, actual = (observe(module.train(mode), inputs) for module in (original, rebuilt))
        for what, value in expected.items():
            assert same(value, actual[what]), f"{what} differ with training={mode}"


def observe(module: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Everything that can be seen of one forward and backward."""
    torch.manual_seed(SEED)
    args = list(inputs())
    floats = [item for item in pytree.tree_leaves(args) if isinstance(item, Tensor) and item.requires_grad]
    torch.manual_seed(SEED + 1)
    outputs = pytree.tree_leaves(module(*args))
    loss = sum(item.abs().double().sum() for item in outputs if isinstance(item, Tensor) and item.requires_grad)
    module.zero_grad()
    if isinstance(loss, Tensor):
        loss.backward()
    return {
        "outputs": [item.detach() if isinstance(item, Tensor) else item for item in outputs],
        "gradients": {name: dense(item.grad) for name, item in module.named_parameters()},
        "gradients of the inputs": [item.grad for item in floats],
        "states": dict(module.state_dict()),
        "random numbers": torch.rand(2),
    }


def dense(gradient: Tensor | None) -> Tensor | None:
    return gradient.to_dense() if gradient is not None else None


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same types all the way down; nan equals nan."""
    if isinstance(one, Tensor):
        return same_tensor(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other) if isinstance(one, float) else bool(one == other)  # nan is nan, -0.0 is not 0.0


def same_tensor(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    if type(one) is not type(other) or one.dtype != other.dtype or one.requires_grad != other.requires_grad:
        return False
    if one.__dict__ != other.__dict__:
        return False
    if is_lazy(one):
        return True
    if one.shape != other.shape:
        return False
    return not one.numel() or torch.equal(_bits(one), _bits(other))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().resolve_conj().contiguous().view(-1).view(torch.uint8)
