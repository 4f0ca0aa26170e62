"""The registry: every name that a config can build or call, and what it stands for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from model_factory.blocks import Block
from model_factory.config import ConfigPath
from model_factory.errors import ConfigError
from model_factory.program.ops import OPS, resolve_op
from model_factory.wording import nearest, quoted
from model_factory_server.constructor import blocks
from model_factory_server.constructor.blocks.radio import LoadRadio
from model_factory_server.constructor.factory import Factory, SignaturePolicy, check_known

TORCH = "torch"
"""Who registers torch's own modules."""

_FAMILIES = ("linalg", "fft", "special")  # in the names of whose ops torch's C++ has theirs
# What torch takes besides: for NumPy's sake, and what its Python side adds.
_ALIASES = frozenset(
    (
        "axis keepdims x a x1 x2 requires_grad as_tuple non_blocking memory_format pin_memory names out device from_"
    ).split()
)

NOT_STOCK = ("Module", "Container")
"""Names in ``torch.nn`` that build nothing of use: the base class, and a deprecated one that warns."""


class Registry:
    """Modules by the name that ``_type_`` gives, and ops beyond the closed table.

    A registry starts empty; see :func:`default_registry`. Operators add to one with a module that has a function
    ``register(registry)``.
    """

    def __init__(self) -> None:
        self._modules: dict[str, Factory] = {}
        self._ops: dict[str, Factory] = {}
        self._origin = ""

    def register_from(self, origin: str, register: Callable[[Registry], object]) -> None:
        """Call ``register(self)``; what it registers is described as coming from ``origin``."""
        self._origin = origin
        try:
            register(self)
        finally:
            self._origin = ""

    def register_module(
        self,
        name: str,
        factory: Callable[..., Any],
        *,
        signature_policy: SignaturePolicy = "strict",
        tags: Sequence[str] = (),
    ) -> None:
        """Let ``_type_: name`` call ``factory`` with the spec's arguments.

        Args:
            name: The key, unique in this registry.
            factory: A module class, or any callable; only a graph's modules themselves must be ``nn.Module``.
            signature_policy: ``strict`` checks arguments before the call and needs a readable signature,
                ``best_effort`` checks them where the signature is readable, ``runtime_only`` leaves it to the call.
            tags: Words for its description.

        Raises:
            ValueError: the name is taken, or the signature is not readable although ``strict`` needs it.
        """
        entry = Factory(
            name=name, call=factory, signature_policy=signature_policy, tags=tuple(tags), origin=self._origin
        )
        _add(self._modules, entry, "module type")

    def register_op(
        self,
        name: str,
        fn: Callable[..., Any],
        *,
        signature_policy: SignaturePolicy = "best_effort",
        tags: Sequence[str] = (),
    ) -> None:
        """Let ``call: op:name`` call ``fn``, for an operator's own functions.

        torch's functions need no registration: the closed table of ``model_factory.program.ops`` has them, and a name
        registered here goes before the same name there. Since ``fn`` stays on the server, it is put into the model as
        a module without parameters and recorded like any block; so it must be written in torch calls.

        Args:
            name: The key, unique among this registry's ops; without a colon.
            fn: The function.
            signature_policy: As for a module: whether a step's arguments are checked when the model is built.
            tags: Words for its description.

        Raises:
            ValueError: the name is taken or has a colon, or the signature is not readable although ``strict`` needs it.
        """
        if ":" in name:
            raise ValueError(f"an op's name has no colon, got {name!r}")
        entry = Factory(name=name, call=fn, signature_policy=signature_policy, tags=tuple(tags), origin=self._origin)
        _add(self._ops, entry, "op")

    def module(self, name: str, path: ConfigPath = ()) -> Factory:
        """Return what ``_type_: name`` stands for; ``path`` is the place in the config, for the error.

        Raises:
            ConfigError: there is no such module type; the message suggests the closest name.
        """
        if name not in self._modules:
            hint = nearest(name, self._modules, f"nn.{name}")
            raise ConfigError(f"Unknown module type {quoted(name)}{hint}", path=path)
        return self._modules[name]

    def plugin_op(self, name: str) -> Factory | None:
        """Return the op registered here under that name, if there is one."""
        return self._ops.get(name)

    def resolve_op(self, name: str, path: ConfigPath = (), kwargs: Mapping[str, ConfigPath] | None = None) -> str:
        """Return the closed table's name for an op; ``path`` is the place in the config, for the error.

        ``kwargs`` has the place of each keyword that it is called with.

        Raises:
            ConfigError: the table has no such op, or the op no such keyword, as far as torch's signature can be read;
                the message suggests the closest name.
        """
        try:
            canonical = resolve_op(name, self._ops)
        except ConfigError as error:
            raise ConfigError(error.reason, path=path) from None
        if kwargs:
            op = Factory(name=f"op:{name}", call=OPS[canonical], signature_policy="best_effort")
            op.check_keywords(kwargs)
            if op.signature is None and (known := _keywords_in_c(canonical)):
                check_known(op.name, kwargs, known, also=_ALIASES)
        return canonical

    def blocks(self) -> tuple[Block, ...]:
        """Describe every registered module type and op, sorted by name."""
        found = [factory.described() for factory in self._modules.values()]
        found += [factory.described("op:") for factory in self._ops.values()]
        return tuple(sorted(found, key=lambda block: block.name))


def _keywords_in_c(canonical: str) -> list[str]:
    """The keywords of an op that torch has written in C++, of all its overloads; none where torch does not tell."""
    namespace, _, op = canonical.rpartition(".")
    family = namespace.rpartition(".")[2]
    name = f"{family}_{op}" if family in _FAMILIES else op
    schemas: Any = torch._C._jit_get_schemas_for_operator(f"aten::{name}")  # noqa: SLF001  there is no other way
    names = [argument.name for schema in schemas for argument in schema.arguments]
    return list(dict.fromkeys("input" if name == "self" else name for name in names))


def default_registry(load_radio: LoadRadio | None = None) -> Registry:
    """Return a registry with torch's modules and the block library.

    Args:
        load_radio: Makes the pretrained model of ``radiov3`` as the operator has set it up; without it, a config that
            names the block is refused.
    """
    registry = Registry()
    registry.register_from(TORCH, register_stock)
    registry.register_from("builtin", lambda target: blocks.register(target, load_radio))
    return registry


def register_stock(registry: Registry) -> None:
    """Register every public module class of ``torch.nn`` as ``nn.NAME``."""
    for name in nn.modules.__all__:
        module_type = getattr(nn.modules, name)
        if name not in NOT_STOCK and isinstance(module_type, type) and issubclass(module_type, nn.Module):
            factory = _parameter_dict if module_type is nn.ParameterDict else module_type
            registry.register_module(f"nn.{name}", factory, tags=("torch",))


def _parameter_dict(parameters: Any = None) -> nn.ParameterDict:
    made = nn.ParameterDict()
    keys = parameters if isinstance(parameters, Mapping) else [entry[0] for entry in parameters or ()]
    for key in keys:
        if isinstance(key, str) and hasattr(made, key):  # it would set the attribute, whatever that hides
            raise ValueError(f"the key {quoted(key)} is the name of an attribute that every nn.ParameterDict has")
    made.update(parameters or {})
    return made


functools.update_wrapper(_parameter_dict, nn.ParameterDict)


def _add(entries: dict[str, Factory], entry: Factory, kind: str) -> None:
    if entry.name in entries:
        raise ValueError(f"{kind} {entry.name!r} is registered already, as {_place(entries[entry.name].call)}")
    entries[entry.name] = entry


def _place(call: Callable[..., Any]) -> str:
    return f"{getattr(call, '__module__', None)}.{getattr(call, '__qualname__', repr(call))}"
