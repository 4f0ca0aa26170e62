"""What a forward reads of modules besides calling them: conditions of the forward's program.

A trainer may replace a layer, or set its rate or stride. A program holds the numbers that the forward found, so each
number from a torch module is noted with the program, and a call that finds another number is no call of that program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from model_factory.descriptor.stock import is_stock
from model_factory.graph.call_form import CHILDREN, is_plain

_TRAINING = "training"
_TABLES = ("_parameters", "_buffers", "_modules")


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
        """Paths of parameters, buffers and children that were None."""
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
            value = fallback(module, name)
            return self._note_entry(module, name, value) if self._is_forward() else value

        def get_attribute(module: nn.Module, name: str) -> Any:
            value = plain(module, name)
            if (name[:1] != "_" or name == CHILDREN) and self._is_forward():
                self._note_attribute(module, name, value)
            return value

        with (
            patch.object(nn.Module, "__getattr__", get_entry),
            patch.object(nn.Module, "__getattribute__", get_attribute, create=True),
        ):
            yield

    def _note_entry(self, module: nn.Module, name: str, value: Any) -> Any:
        """Note a parameter, buffer or child that is None; return a torch module's tensor with readable sizes."""
        path = self._paths.get(module)
        if path is None:
            return value
        at = f"{path}.{name}" if path else name
        if value is None and any(name in module.__dict__[table] for table in _TABLES):
            self.absent[at] = None
        if isinstance(value, torch.Tensor) and module in self._stock:
            return self._sized(at, value)
        return value

    def _note_attribute(self, module: nn.Module, name: str, value: Any) -> None:
        path = self._paths.get(module)
        if path is None or module not in self._stock or name not in module.__dict__:
            return
        if name == _TRAINING:
            self.flags[path] = None
        elif name == CHILDREN:
            self.attributes[path, name] = tuple(value)
        elif is_plain(value):
            self.attributes[path, name] = value
