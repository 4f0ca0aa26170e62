"""Stock modules: instances of torch's own classes, available on every trainer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from inspect import getattr_static, isdatadescriptor
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from model_factory.descriptor.attributes import described, settable
from model_factory.descriptor.torch_state import is_parametrized, restored_names
from model_factory.errors import FormatError
from model_factory.program.torch_private import PRIVATE_MODULES


def _stock_classes() -> dict[str, type[nn.Module]]:
    exported = {f"nn.{name}": getattr(nn, name) for name in nn.modules.__all__}
    classes = {
        name: value for name, value in exported.items() if isinstance(value, type) and issubclass(value, nn.Module)
    }
    return {**classes, "nn.utils.parametrize.ParametrizationList": parametrize.ParametrizationList, **PRIVATE_MODULES}


STOCK_CLASSES: Mapping[str, type[nn.Module]] = MappingProxyType(_stock_classes())
"""Classes by type name in a descriptor."""

STOCK_NAMES: Mapping[type[nn.Module], str] = MappingProxyType({cls: name for name, cls in STOCK_CLASSES.items()})

_INTERNALS = frozenset(nn.Module().__dict__)
# Members that a subclass may define and still behave like the stock class after construction.
_HARMLESS = frozenset(
    (
        "__init__ __doc__ __module__ __annotations__ __dict__ __weakref__ __constants__ __repr__ __init_subclass__ "
        "__firstlineno__ __static_attributes__ __annotate__ __annotate_func__ __annotations_cache__ __parameters__ "
        "__subclasshook__ __class_getitem__ __orig_bases__ __jit_unused_properties__ reset_parameters "
        "_reset_parameters extra_repr"
    ).split()
)


def is_stock(module: nn.Module) -> bool:
    """Whether a module can be rebuilt as an instance of a stock class.

    Example:
        >>> class Doubled(nn.Linear):
        ...     def forward(self, x):
        ...         return 2 * super().forward(x)
        >>> is_stock(nn.Linear(2, 2)), is_stock(Doubled(2, 2))
        (True, False)
    """
    return stock_type(module) is not None


def stock_type(module: nn.Module) -> type[nn.Module] | None:
    """Return the stock class to rebuild a module with, or None.

    The stock class is the module's class, or a base class if the module's class only adds a constructor. For a
    parametrized module, the class before parametrization. None for a module with a replaced forward.
    """
    cls: Any = type(module)
    if cls not in STOCK_NAMES and is_parametrized(module):
        cls = parametrize.type_before_parametrizations(module)
    if "forward" in module.__dict__:
        return None
    if cls in STOCK_NAMES:
        return cls  # type: ignore[no-any-return]
    base = _stock_base(cls)
    if base is None:
        return None
    try:
        stock_attributes(module, base)
    except FormatError:
        return None  # the constructor has set more than plain attributes
    return base


@cache
def _stock_base(cls: type[nn.Module]) -> type[nn.Module] | None:
    """Return the stock class from which ``cls`` inherits every member used after construction, or None.

    A new property can replace a tensor or an attribute that the stock class reads from an instance.
    """
    base = next((item for item in cls.__mro__ if item in STOCK_NAMES), nn.Module)
    if base is nn.Module:
        return None
    same = all(getattr_static(cls, name) is getattr_static(base, name) for name in dir(base) if name not in _HARMLESS)
    computed = any(isdatadescriptor(getattr_static(cls, name)) for name in set(dir(cls)) - set(dir(base)))
    return base if same and not computed else None


def stock_attributes(module: nn.Module, cls: type[nn.Module], left_out: Collection[str] = ()) -> dict[str, Any]:
    """Return the described plain attributes of a module, for a rebuild as ``cls``; tensors unchanged.

    ``left_out`` has the names of attributes without a place in a descriptor.

    Raises:
        FormatError: an attribute is not portable.
    """
    skipped = _INTERNALS.union(restored_names(cls), left_out)
    attributes = {}
    for name, value in module.__dict__.items():
        if name in skipped or (isinstance(value, nn.Module) and module._modules.get(name) is value):
            continue
        try:
            attributes[name] = value if isinstance(value, torch.Tensor) else described(value)
        except FormatError as error:
            raise FormatError(f"the attribute {name!r} is not portable: {error}") from None
        if not settable(cls, _INTERNALS, name):
            raise FormatError(f"the attribute {name!r} hides a method")
    return attributes
