"""Notes reads of a forward from modules: attributes, flags and absent entries are conditions of the program.

A trainer may replace a layer, or set a rate or stride. A program contains the numbers read by the recorded forward.
So each number read from a torch module is noted with the program, and a call with another number needs another program.
``export.torch_patches`` installs the replacements of this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from model_factory.descriptor.stock import is_stock
from model_factory.program.recorded_program import TABLES, is_plain
from model_factory.program.runtime.lookup import plain_read

_TRAINING = "training"
_ENTRIES = ("_parameters", "_buffers", "_modules")


class ModuleReads:
    """Notes reads from the modules below a root."""

    def __init__(self, root: nn.Module, is_forward: Callable[[], bool], sized: Callable[[str, Any], Any]) -> None:
        """Begin without notes.

        Args:
            root: The module whose forward is recorded.
            is_forward: Whether the running code is the forward's own, and not torch's or the recorder's.
            sized: Returns, for the path and value of a torch module's parameter, the parameter with symbolic sizes.
        """
        self.attributes: dict[tuple[str, str], Any] = {}
        """Value by module path and name."""
        self.absent: dict[str, None] = {}
        """Paths of parameters, buffers and children read as ``None`` or missing."""
        self.flags: dict[str, None] = {}
        """Paths of torch modules whose training flag was read."""
        self._paths: Mapping[nn.Module, str] = {module: path for path, module in root.named_modules()}
        self._stock = {module for module in self._paths if is_stock(module)}
        self._is_forward = is_forward
        self._sized = sized

    def note_entries(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a replacement for ``nn.Module.__getattr__``: the lookup of parameters, buffers and children."""

        def get_entry(module: nn.Module, name: str) -> Any:
            try:
                value = original(module, name)
            except AttributeError:
                if self._is_forward() and module in self._paths:  # hasattr, or getattr with a default
                    self.absent[self._path_of(module, name)] = None
                raise
            return self._note_entry(module, name, value) if self._is_forward() else value

        return get_entry

    def note_attributes(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a replacement for ``nn.Module.__getattribute__``."""

        def get_attribute(module: nn.Module, name: str) -> Any:
            value = original(module, name)
            if (name[:1] != "_" or name in TABLES) and self._is_forward():
                self._note_attribute(module, name, value)
            return value

        return get_attribute

    def note_parameters(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a replacement for ``nn.Module.named_parameters``."""

        def named_parameters(module: nn.Module, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
            for name, tensor in original(module, *args, **kwargs):
                owner, _, own = name.rpartition(".")
                inner = module.get_submodule(owner) if self._is_forward() else module
                yield name, self._note_entry(inner, own, tensor) if self._is_forward() else tensor

        return named_parameters

    def _note_entry(self, module: nn.Module, name: str, value: Any) -> Any:
        """Note an empty parameter, buffer or child; return a torch module's tensor with symbolic sizes."""
        if module not in self._paths:
            return value
        path = self._path_of(module, name)
        if value is None and any(name in module.__dict__[table] for table in _ENTRIES):
            self.absent[path] = None
        if isinstance(value, torch.Tensor) and module in self._stock:
            return self._sized(path, value)
        return value

    def _path_of(self, module: nn.Module, name: str) -> str:
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
    """Return pairs of paths to the same module or parameter, for the paths in a program.

    If the owners are the same module as well, the pair has the paths of the owners.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> shared_paths(nn.Sequential(layer, nn.ReLU(), layer), ["0"])
        (('0', '2'),)
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
