"""Methods besides ``forward``, declared as portable by a class: their names, and modules with a method as forward."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from model_factory.errors import NotPortableError
from model_factory.program.recorded_program import FORWARD
from model_factory.program.runtime.program_module import is_free

PORTABLE_METHODS = "portable_methods"
"""The class attribute with the names, for example ``("encode", "decode")``."""


def declared_methods(module: nn.Module, where: str) -> tuple[str, ...]:
    """The methods declared as portable by a module's class.

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
    names = getattr(type(module), PORTABLE_METHODS, ())
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


def as_forward(module: nn.Module, method: str) -> nn.Module:
    """Return a view of ``module`` with ``method`` as forward: the same tensors, children, flags and attributes.

    Example:
        >>> class Autoencoder(nn.Module):
        ...     def encode(self, x):
        ...         return x + 1
        >>> as_forward(Autoencoder(), "encode")(1)
        2
    """
    if method == FORWARD:
        return module
    function = getattr(type(module), method)

    @functools.wraps(function)
    def forward(_view: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return getattr(module, method)(*args, **kwargs)

    def train(view: nn.Module, mode: bool = True) -> nn.Module:
        module.train(mode)  # the class may have a train() of its own, which freezes children
        return view

    name = f"{type(module).__name__}.{method}"
    cls = type(name, (nn.Module,), {FORWARD: forward, "train": train})
    view: nn.Module = object.__new__(cls)
    view.__dict__ = module.__dict__  # shared: a change of one is a change of the other
    return view
