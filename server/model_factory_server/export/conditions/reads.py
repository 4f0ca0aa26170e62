"""What a forward reads of modules besides calling them: conditions of the forward's program.

A trainer may replace a layer, or set its rate or stride. A program holds the numbers that the forward found, so each
number from a torch module is noted with the program, and a call that finds another number is no call of that program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from model_factory.descriptor.stock import is_stock
from model_factory.program.recorded_program import TABLES, is_plain
from model_factory.program.runtime.lookup import plain_read

_TRAINING = "training"
_ENTRIES = ("_parameters", "_buffers", "_modules")


class ModuleReads:
    """Notes what a forward reads of the modules below ``root``."""

    def __init__(self, root: nn.Module, is_forward: Callable[[], bool], sized: Callable[[str, Any], Any]) -> None:
        """Make an empty note.

        Args:
            root: The module whose forward is recorded.
            is_forward: Whether the code that reads is the forward's own, and not torch's or the recorder's.
            sized: Returns in place of a torch module's parameter, at a path, the one with sizes that can be read.
        """
        self.attributes: dict[tuple[str, str], Any] = {}
        """Value by module path and name."""
        self.absent: dict[str, None] = {}
        """Paths of parameters, buffers and children that were None, or not there."""
        self.flags: dict[str, None] = {}
        """Paths of torch modules whose training flag was read."""
        self._paths: Mapping[nn.Module, str] = {module: path for path, module in root.named_modules()}
        self._stock = {module for module in self._paths if is_stock(module)}
        self._is_forward = is_forward
        self._sized = sized

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note while this is entered."""
        fallback: Any = nn.Module.__getattr__
        plain: Any = nn.Module.__getattribute__

        def get_entry(module: nn.Module, name: str) -> Any:
            try:
                value = fallback(module, name)
            except AttributeError:
                if self._is_forward() and module in self._paths:  # hasattr, or getattr with a default
                    self.absent[self._at(module, name)] = None
                raise
            return self._note_entry(module, name, value) if self._is_forward() else value

        def get_attribute(module: nn.Module, name: str) -> Any:
            value = plain(module, name)
            if (name[:1] != "_" or name in TABLES) and self._is_forward():
                self._note_attribute(module, name, value)
            return value

        named: Any = nn.Module.named_parameters

        def named_parameters(module: nn.Module, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
            for name, tensor in named(module, *args, **kwargs):
                owner, _, own = name.rpartition(".")
                inner = module.get_submodule(owner) if self._is_forward() else module
                yield name, self._note_entry(inner, own, tensor) if self._is_forward() else tensor

        with (
            patch.object(nn.Module, "named_parameters", named_parameters),
            patch.object(nn.Module, "__getattr__", get_entry),
            patch.object(nn.Module, "__getattribute__", get_attribute, create=True),
        ):
            yield

    def _note_entry(self, module: nn.Module, name: str, value: Any) -> Any:
        """Note a parameter, buffer or child that is None; return a torch module's tensor with readable sizes."""
        if module not in self._paths:
            return value
        at = self._at(module, name)
        if value is None and any(name in module.__dict__[table] for table in _ENTRIES):
            self.absent[at] = None
        if isinstance(value, torch.Tensor) and module in self._stock:
            return self._sized(at, value)
        return value

    def _at(self, module: nn.Module, name: str) -> str:
        path = self._paths[module]
        return f"{path}.{name}" if path else name

    def _note_attribute(self, module: nn.Module, name: str, value: Any) -> None:
        path = self._paths.get(module)
        if path is None or module not in self._stock or name not in module.__dict__:
            return
        if name == _TRAINING:
            self.flags[path] = None
        elif is_plain(noted := plain_read(value)):
            self.attributes[path, name] = noted


def shared_paths(root: nn.Module, used: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return pairs of paths at which there is one module or parameter, for the paths that a program uses.

    Where the owners are one module as well, the pair is that of the owners.
    """
    paths: dict[int, list[str]] = {}
    objects: dict[str, int] = {}
    for kind in (root.named_modules, root.named_parameters, root.named_buffers):
        for path, item in kind(remove_duplicate=False):
            paths.setdefault(id(item), []).append(path)
            objects[path] = id(item)
    pairs: dict[tuple[str, str], None] = {}
    for path in used:
        for other in paths.get(objects.get(path, 0), ()):
            if other != path:
                pairs[_owners_of(path, other, objects)] = None
    return tuple(pairs)


def _owners_of(path: str, other: str, objects: Mapping[str, int]) -> tuple[str, str]:
    while True:
        (owner, _, name), (other_owner, _, other_name) = path.rpartition("."), other.rpartition(".")
        if name != other_name or not owner or not other_owner or objects.get(owner) != objects.get(other_owner):
            return path, other
        path, other = owner, other_owner
