"""Classes of rebuilt modules: methods with the names and signatures of the original class.

Tools read signatures: ``torch.export`` names inputs and ``dynamic_shapes``, ONNX names inputs, trainers of transformers
drop columns that ``forward`` does not take. A signature belongs to a function of a class, so modules with other methods
have other classes. Modules with the same name and the same signatures share a class, also after ``copy.deepcopy`` and
pickling.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import FunctionType
from typing import Any, Protocol, TypeVar, cast
from weakref import WeakValueDictionary

from torch import nn

from model_factory.program.forward_signature import ForwardSignature


class RunsMethods(Protocol):
    """A module that runs every method through one function."""

    def run_method(
        self, method: str, signature: ForwardSignature, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run a call of a method."""
        ...


_Base = TypeVar("_Base", bound=nn.Module)

_DESCRIPTION = "_signed_as"
_classes: WeakValueDictionary[str, type[nn.Module]] = WeakValueDictionary()


def signed_class(base: type[_Base], name: str, methods: Mapping[str, ForwardSignature]) -> type[_Base]:
    """Return the subclass of ``base`` with a name and methods; calls of the methods go to ``base.run_method``.

    Raises:
        FormatError: a signature has a parameter that Python does not allow.

    Example:
        >>> import inspect
        >>> class Base(nn.Module):
        ...     def run_method(self, method, signature, args, kwargs):
        ...         return method, signature.bind(args, kwargs)
        >>> cls = signed_class(Base, "Policy", {"forward": ForwardSignature.of(lambda obs, goal=None: obs)})
        >>> cls.__name__, str(inspect.signature(cls().forward))
        ('Policy', '(obs, goal=None)')
        >>> cls()(obs=1)
        ('forward', {'obs': 1, 'goal': None})
    """
    description = (base, name, dict(methods))
    key = repr(description)
    known = _classes.get(key)
    if known is None:
        functions = {method: _function(name, method, signature) for method, signature in methods.items()}
        members = {**functions, "__module__": __name__, _DESCRIPTION: description, "__reduce_ex__": _reduce}
        known = _classes.setdefault(key, type(name, (base,), members))
    return cast("type[_Base]", known)


def is_signed(cls: type) -> bool:
    """Whether :func:`signed_class` made a class; not a subclass that a tool has made since."""
    return _DESCRIPTION in vars(cls)


def _function(owner: str, method: str, signature: ForwardSignature) -> FunctionType:
    def run(self: RunsMethods, *args: Any, **kwargs: Any) -> Any:
        return self.run_method(method, signature, args, kwargs)

    # Code of its own, since torch.compile counts what it compiled by code object and gives up after
    # torch._dynamo.config.recompile_limit versions: nine classes with one code object would be such versions.
    function: Any = FunctionType(run.__code__.replace(co_name=method), run.__globals__, method, None, run.__closure__)
    function.__qualname__, function.__signature__ = f"{owner}.{method}", signature.of_method(owner)
    return cast("FunctionType", function)


def _reduce(module: nn.Module, protocol: Any) -> Any:
    """Pickle the description of the class in the place of the class, which no module of Python has."""
    description = vars(type(module)).get(_DESCRIPTION)
    if description is None:  # a tool has given the module a class of its own
        return object.__reduce_ex__(module, protocol)
    return (_unfilled, description, module.__dict__)


def _unfilled(base: type[nn.Module], name: str, methods: Mapping[str, ForwardSignature]) -> nn.Module:
    """Return a module without state, to be filled by ``pickle`` or ``copy``."""
    return object.__new__(signed_class(base, name, methods))
