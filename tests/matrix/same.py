"""Comparison of a rebuilt module with the one it was described from: everything bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from model_factory.graph.modules import ProgramModule

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
    named = [
        [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        for module in (original, rebuilt)
    ]
    assert ties(named[0]) == ties(named[1])
    assert ties(list(ours.items())) == ties(list(theirs.items()))
    assert_same_state(original, rebuilt)


def assert_same_node(module: nn.Module, rebuilt: nn.Module, path: str) -> None:
    stock = not isinstance(rebuilt, ProgramModule)
    if stock and not type(module).__name__.startswith("Parametrized"):
        assert type(rebuilt) is type(module), path
        assert same(plain(module), plain(rebuilt)), (path, plain(module), plain(rebuilt))
    elif stock:
        assert type(rebuilt).__mro__[1:] == type(module).__mro__[1:], path
    assert rebuilt.training == module.training, path
    for table in ("_parameters", "_buffers"):
        tensors, others = getattr(module, table), getattr(rebuilt, table)
        assert list(tensors) == list(others), path
        for name, tensor in tensors.items():
            assert same_tensor(tensor, others[name]), f"{path}.{name}"
    assert module._non_persistent_buffers_set == rebuilt._non_persistent_buffers_set, path


def plain(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in module.__dict__.items() if name not in INTERNALS | DERIVED}


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
    return bool(one == other or (one != one and other != other))


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
    return torch.equal(one.detach().contiguous().view(-1).view(torch.uint8), other.detach().contiguous().view(-1).view(torch.uint8)) if one.numel() else True
