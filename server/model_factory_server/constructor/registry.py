"""The registry of module types and ops that configs name."""

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
from model_factory_server.constructor.blocks.parts.resnet_layers import LoadWeights, missing_weights
from model_factory_server.constructor.blocks.radio import LoadRadio
from model_factory_server.constructor.factory import Factory, SignaturePolicy, check_known

TORCH = "torch"
"""Origin of the modules of torch."""

_FAMILIES = ("linalg", "fft", "special")  # prefixes of op names in the C++ part of torch
# Keywords outside the C++ schemas: names of NumPy, and additions of the Python part of torch.
_ALIASES = frozenset(
    (
        "axis keepdims x a x1 x2 requires_grad as_tuple non_blocking memory_format pin_memory names out device from_"
    ).split()
)

NOT_STOCK = ("Module", "Container")
"""Classes of ``torch.nn`` that are not registered: the base class, and a deprecated class that warns."""


class Registry:
    """Module types for ``_type_`` and ops for ``call: op:NAME``.

    A new registry is empty; see :func:`default_registry`. A plug-in is a module with a function ``register(registry)``
    that adds module types and ops.

    Example:
        >>> from torch import nn
        >>> registry = Registry()
        >>> registry.register_module("scaled_linear", nn.Linear, tags=["layer"])
        >>> [(block.name, block.tags) for block in registry.blocks()]
        [('scaled_linear', ('layer',))]
    """

    def __init__(self) -> None:
        self._modules: dict[str, Factory] = {}
        self._ops: dict[str, Factory] = {}
        self._origin = ""

    def register_from(self, origin: str, register: Callable[[Registry], object]) -> None:
        """Call ``register(self)``; ``origin`` becomes the origin of everything registered in this call."""
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
        """Register a module type: ``_type_: name`` calls ``factory`` with the arguments of the spec.

        Args:
            name: Key, unique among the module types of this registry.
            factory: Module class or function. Modules of a graph must be ``nn.Module``; arguments can be any object.
            signature_policy: ``strict`` checks arguments before the call and needs a readable signature;
                ``best_effort`` checks arguments if the signature is readable; ``runtime_only`` does not check.
            tags: Words for the description.

        Raises:
            ValueError: the name is taken, or ``strict`` is given and the signature is unreadable.

        Example:
            >>> from torch import nn
            >>> registry = Registry()
            >>> registry.register_module("projection", lambda width: nn.Linear(width, 2 * width))
            >>> registry.module("projection").call(width=3)
            Linear(in_features=3, out_features=6, bias=True)
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
        """Register an op: a step with ``call: op:name`` calls ``fn``.

        The functions of torch need no registration: ``model_factory.program.ops`` lists these functions. A registered
        name has precedence over the same name in the list. ``fn`` stays on the server: the model contains a module
        without parameters that calls ``fn``, and the module is recorded like a block. So ``fn`` must consist of torch
        calls.

        Args:
            name: Key, unique among the ops of this registry, without a colon.
            fn: Function of tensors and constants.
            signature_policy: See :meth:`register_module`; the arguments of a step are checked at the build.
            tags: Words for the description.

        Raises:
            ValueError: the name is taken or has a colon, or ``strict`` is given and the signature is unreadable.

        Example:
            >>> import torch
            >>> registry = Registry()
            >>> registry.register_op("blend", lambda a, b, ratio=0.5: torch.lerp(a, b, ratio))
            >>> registry.plugin_op("blend").call(torch.zeros(2), torch.ones(2), ratio=0.25)
            tensor([0.2500, 0.2500])
        """
        if ":" in name:
            raise ValueError(f"an op's name has no colon, got {name!r}")
        entry = Factory(name=name, call=fn, signature_policy=signature_policy, tags=tuple(tags), origin=self._origin)
        _add(self._ops, entry, "op")

    def module(self, name: str, path: ConfigPath = ()) -> Factory:
        """Return the factory of a module type; ``path`` is the place in the config, for the error.

        Raises:
            ConfigError: the module type is unknown; the message suggests the closest name.

        Example:
            >>> default_registry().module("nn.Linear").call
            <class 'torch.nn.modules.linear.Linear'>
        """
        if name not in self._modules:
            hint = nearest(name, self._modules, f"nn.{name}")
            raise ConfigError(f"Unknown module type {quoted(name)}{hint}", path=path)
        return self._modules[name]

    def plugin_op(self, name: str) -> Factory | None:
        """Return the registered op of this name, or None."""
        return self._ops.get(name)

    def resolve_op(self, name: str, path: ConfigPath = (), kwargs: Mapping[str, ConfigPath] | None = None) -> str:
        """Return the canonical name of a torch op.

        Args:
            name: Name in the config: ``relu``, ``torch.relu``.
            path: Place in the config, for the error.
            kwargs: Place of each keyword argument of the call.

        Raises:
            ConfigError: the op is unknown, or the signature in torch is readable and lacks a keyword; the message
                suggests the closest name.

        Example:
            >>> Registry().resolve_op("softmax")
            'torch.softmax'
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
    """Return the keywords of all overloads of a C++ op of torch; empty if torch has no schema for the op."""
    namespace, _, op = canonical.rpartition(".")
    family = namespace.rpartition(".")[2]
    name = f"{family}_{op}" if family in _FAMILIES else op
    schemas: Any = torch._C._jit_get_schemas_for_operator(f"aten::{name}")  # noqa: SLF001  no public function lists them
    names = [argument.name for schema in schemas for argument in schema.arguments]
    return list(dict.fromkeys("input" if name == "self" else name for name in names))


def default_registry(load_radio: LoadRadio | None = None, load_resnet34: LoadWeights = missing_weights) -> Registry:
    """Return a registry with the modules of ``torch.nn`` and the block library.

    Args:
        load_radio: Loads the pretrained model of ``radiov3``; if None, a config with ``radiov3`` is refused.
        load_resnet34: Loads the weights of the blocks on a ResNet-34; by default a config with such a block is refused.

    Example:
        >>> registry = default_registry()
        >>> registry.module("mlp").call(dims=[3, 2]).net
        Sequential(
          (0): Linear(in_features=3, out_features=2, bias=True)
        )
    """
    registry = Registry()
    registry.register_from(TORCH, register_stock)
    registry.register_from("builtin", lambda target: blocks.register(target, load_radio, load_resnet34))
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
        if isinstance(key, str) and hasattr(made, key):  # update() would overwrite the attribute
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
