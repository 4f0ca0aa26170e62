"""Notes reads of a forward from modules: attributes, flags and absent entries are conditions of the program.

A trainer may replace a layer, or set a rate or stride. A program contains the numbers read by the recorded forward.
So each number read from a torch module is noted with the program, and a call with another number needs another program.
``export.torch_patches`` installs the replacements of this module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any

import torch
from torch import nn

from model_factory.descriptor.stock import is_stock
from model_factory.program.recorded_program import TABLES, is_plain
from model_factory.program.runtime.lookup import join_path, plain_read

TRAINING = "training"
ALL = "__dict__"
_LIBRARIES = ("torch", "model_factory", "model_factory_server")
_BLOCK_LIBRARY = "model_factory_server.constructor.blocks."
_ENTRIES = ("_parameters", "_buffers", "_modules")
_INTERNALS = frozenset(nn.Module().__dict__) - {TRAINING}


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
        self.read_first: set[tuple[str, str]] = set()
        """Class and name of attributes of custom modules, read before an assignment in the same run."""
        self._assigned: set[tuple[int, str]] = set()
        self.custom: dict[tuple[str, str], None] = {}
        """Attributes of custom modules: module path and name; ``__dict__`` is every attribute."""
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
                if self._is_forward():  # hasattr, or getattr with a default
                    self._note_first_read(module, name)
                    if module in self._paths:
                        self.absent[self._path_of(module, name)] = None
                raise
            return self._note_entry(module, name, value) if self._is_forward() else value

        return get_entry

    def note_attributes(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a replacement for ``nn.Module.__getattribute__``."""

        def get_attribute(module: nn.Module, name: str) -> Any:
            value = original(module, name)
            if (name not in _INTERNALS or name in TABLES) and self._is_forward():
                if name != ALL:
                    self._note_first_read(module, name)
                    self._note_attribute(module, name, value)
                elif not is_library(sys._getframe(1)):  # noqa: SLF001  torch's own lookups use the table
                    self.custom[self._paths.get(module, ""), name] = None
            return value

        return get_attribute

    def note_assignments(self, original: Callable[..., None]) -> Callable[..., None]:
        """Return a replacement for ``nn.Module.__setattr__``."""

        def set_attribute(module: nn.Module, name: str, value: Any) -> None:
            original(module, name, value)
            self._assigned.add((id(object.__getattribute__(module, ALL)), name))

        return set_attribute

    def _note_first_read(self, module: nn.Module, name: str) -> None:
        table = object.__getattribute__(module, ALL)
        if name not in _ENTRIES and (id(table), name) not in self._assigned and module not in self._stock:
            self.read_first.add((class_of(module), name))

    def add_of_inner(self, path: str, reads: Iterable[tuple[str, str]]) -> None:
        """Note the attributes that the own program of the inner block at ``path`` depends on."""
        self.custom.update(((join_path(path, inner), name), None) for inner, name in reads)

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
        if path is None or name not in object.__getattribute__(module, ALL):
            return
        if module not in self._stock:
            if name not in _INTERNALS:
                self.custom[path, name] = None
        elif name == TRAINING:
            self.flags[path] = None
        elif (name[:1] != "_" or name in TABLES) and is_plain(noted := plain_read(value)):
            self.attributes[path, name] = noted


def class_of(module: nn.Module) -> str:
    """Name of a module's class, also of a view of the module for a method.

    Example:
        >>> class_of(nn.ReLU())
        'ReLU'
    """
    return type(module).__name__.partition(".")[0]


def is_library(frame: FrameType) -> bool:
    """Whether the code of a frame is torch's or this package's, and not a forward's, as that of the block library."""
    name = str(frame.f_globals.get("__name__", ""))
    return name.partition(".")[0] in _LIBRARIES and not name.startswith(_BLOCK_LIBRARY)


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
