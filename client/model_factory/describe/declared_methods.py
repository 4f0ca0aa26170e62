"""Methods besides ``forward``, declared as portable by a class or by a config."""

from __future__ import annotations

from torch import nn

from model_factory.errors import NotPortableError
from model_factory.program.runtime.program_module import is_free

PORTABLE_METHODS = "portable_methods"
"""The attribute with the names, for example ``("encode", "decode")``: of a class, or of one module, from a config."""


def declared_methods(module: nn.Module, where: str) -> tuple[str, ...]:
    """The methods declared as portable by a module's class, or by the spec of a config (``_methods_``).

    Raises:
        NotPortableError: a declared name is not a method, or is taken in rebuilt modules.

    Example:
        >>> class Autoencoder(nn.Module):
        ...     portable_methods = ("encode",)
        ...     def encode(self, x):
        ...         return x
        >>> declared_methods(Autoencoder(), "the model")
        ('encode',)
    """
    names = getattr(module, PORTABLE_METHODS, ())
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise NotPortableError(f"{where}: {PORTABLE_METHODS} is {names!r}. Remedy: make it a tuple of method names")
    for name in names:
        if not callable(getattr(type(module), name, None)):
            raise NotPortableError(
                f"{where}: {PORTABLE_METHODS} names {name!r}, which is not a method of the class. Remedy: "
                "correct the name"
            )
        if not is_free(name):
            raise NotPortableError(
                f"{where}: {PORTABLE_METHODS} names {name!r}, a name that rebuilt modules have already. Remedy: rename "
                "the method; forward is portable without being named"
            )
    return tuple(names)
