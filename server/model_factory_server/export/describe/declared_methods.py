"""Methods besides ``forward`` that a class declares as portable."""

from __future__ import annotations

from torch import nn

from model_factory.errors import NotPortableError
from model_factory.program.runtime.program_module import ProgramModule

PORTABLE_METHODS = "portable_methods"
"""The class attribute: names of methods, ``("encode", "decode")``."""


def declared_methods(module: nn.Module, where: str) -> tuple[str, ...]:
    """The methods of a module that its class declares as portable.

    Raises:
        NotPortableError: the declaration names something that is no method, or that rebuilt modules have already.
    """
    names = getattr(type(module), PORTABLE_METHODS, ())
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise NotPortableError(f"{where}: {PORTABLE_METHODS} is {names!r}. Remedy: make it a tuple of method names")
    for name in names:
        if not callable(getattr(type(module), name, None)):
            raise NotPortableError(f"{where}: {PORTABLE_METHODS} names {name!r}, which is no method of the class")
        if hasattr(ProgramModule, name):
            raise NotPortableError(
                f"{where}: {PORTABLE_METHODS} names {name!r}, which every nn.Module has or the rebuilt one needs. "
                "Remedy: rename the method; forward travels without being named"
            )
    return tuple(names)
