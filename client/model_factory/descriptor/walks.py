"""Bounds on torch's walks over the modules of a descriptor: a state dict, ``repr()``, ``train()``, ``eval()``.

Most walks of torch are recursive and enter a shared module once for each path to the module, so a small descriptor can
describe a walk without end.
"""

from __future__ import annotations

from collections.abc import Sequence

from model_factory.descriptor.tree import ModuleNode, ProgramNode
from model_factory.errors import FormatError
from model_factory.limits import MAX_DOCUMENT_BYTES, MAX_MODULES
from model_factory.wording import quoted

MAX_DEPTH = 200
"""Maximum nesting of modules; torch's own walks are recursive."""

MAX_TRAIN_VISITS = 3 * MAX_MODULES
"""Visits of ``train()``, which enters frozen modules again to keep the modules in eval mode."""

MAX_PATH_CHARS = MAX_DOCUMENT_BYTES
"""Characters of the paths of all modules, as a state dict writes paths."""


def check_walks(modules: Sequence[ModuleNode]) -> None:
    """Bound the walks over a table of modules with root 0.

    >>> from model_factory.descriptor.tree import StockNode
    >>> pair = StockNode(type="nn.Sequential", training=True, children=(("0", 1), ("1", 1)))
    >>> check_walks([pair, StockNode(type="nn.ReLU", training=True)])

    Raises:
        FormatError: a module is below itself, not below module 0, or nested too deeply; a frozen module does not exist;
            or a walk takes too long.
    """
    order = _children_first(modules)
    if len(order) != len(modules):
        raise FormatError("a descriptor has modules outside of the tree of module 0")
    visits, chars, train_visits = ([0] * len(modules) for _ in range(3))
    for index in order:
        children = [(name, child) for name, child in modules[index].children if child is not None]
        visits[index] = 1 + sum(visits[child] for _, child in children)
        chars[index] = sum(chars[child] + visits[child] * (len(name) + 1) for name, child in children)
        train_visits[index] = 1 + sum(train_visits[child] for _, child in children)
        train_visits[index] += sum(train_visits[frozen] for frozen in _frozen(modules, index) if frozen != index)
    if visits[0] > MAX_MODULES:
        raise FormatError(f"a walk over the modules of a descriptor takes more than {MAX_MODULES} visits")
    if chars[0] > MAX_PATH_CHARS:
        raise FormatError(f"the paths of a descriptor's modules have more than {MAX_PATH_CHARS} characters")
    if train_visits[0] > MAX_TRAIN_VISITS:
        raise FormatError(f"train() of the modules of a descriptor takes more than {MAX_TRAIN_VISITS} visits")


def _children_first(modules: Sequence[ModuleNode]) -> list[int]:
    """Return the positions of the modules below module 0, each after the module's children."""
    found: list[int] = []
    done, open_ = set[int](), set[int]()
    stack = [(0, False)]
    while stack:
        index, leaving = stack.pop()
        if leaving:
            open_.discard(index)
            done.add(index)
            found.append(index)
        elif index in open_:
            raise FormatError("a module of a descriptor is below itself")
        elif index not in done:
            if len(open_) >= MAX_DEPTH:
                raise FormatError(f"modules of a descriptor are nested more than {MAX_DEPTH} deep")
            open_.add(index)
            stack.append((index, True))
            stack.extend((child, False) for _, child in modules[index].children if child is not None)
    return found


def _frozen(modules: Sequence[ModuleNode], index: int) -> list[int]:
    """Return the positions of the modules that ``train()`` of a module leaves in eval mode."""
    node = modules[index]
    return [_below(modules, index, path) for path in node.frozen] if isinstance(node, ProgramNode) else []


def _below(modules: Sequence[ModuleNode], index: int, path: str) -> int:
    """Return the position of the module at a path below a module."""
    position: int | None = index
    for part in path.split(".") if path else ():
        children = () if position is None else modules[position].children
        position = next((child for name, child in children if name == part), None)
    if position is None:
        raise FormatError(f"a {modules[index].type} keeps the module {quoted(path)} in eval mode, which does not exist")
    return position
