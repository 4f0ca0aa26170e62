"""The signature of a forward as data: binds a call's arguments to names without the forward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from model_factory.errors import FormatError
from model_factory.program.call_signature import OMITTED
from model_factory.program.codec.values import encode_value

KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: "positional_only",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "positional",
    inspect.Parameter.VAR_POSITIONAL: "var_positional",
    inspect.Parameter.KEYWORD_ONLY: "keyword",
    inspect.Parameter.VAR_KEYWORD: "var_keyword",
}
POSITIONAL_KINDS = ("positional_only", "positional")
KEYWORD_KINDS = ("positional", "keyword")

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_INSPECTED = {name: kind for kind, name in KINDS.items()}


@dataclass(frozen=True, slots=True)
class ForwardParameter:
    """One parameter of a forward."""

    name: str
    """Name in the forward's definition."""
    kind: str
    """One of the values of ``KINDS``."""
    required: bool = True
    """Whether the caller must give a value."""
    default: Any = None
    """Value of an omitted parameter: plain data, or ``OMITTED``."""


@dataclass(frozen=True, slots=True)
class ForwardSignature:
    """A forward's parameters, in order.

    Example:
        >>> signature = ForwardSignature.of(lambda x, scale=2.0: x * scale)
        >>> signature.bind((3,), {})
        {'x': 3, 'scale': 2.0}
        >>> signature.bind((), {"scale": 1.0})
        Traceback (most recent call last):
            ...
        TypeError: forward() missing a required argument: 'x'
    """

    parameters: tuple[ForwardParameter, ...]

    @classmethod
    def of(cls, forward: Callable[..., Any]) -> ForwardSignature:
        """Read the signature of a bound method or function.

        Example:
            >>> ForwardSignature.of(lambda x, norm=abs: norm(x)).bind((3,), {})
            {'x': 3, 'norm': <default of the original>}
        """
        empty = inspect.Parameter.empty
        return cls(
            tuple(
                ForwardParameter(
                    parameter.name,
                    KINDS[parameter.kind],
                    parameter.default is empty and parameter.kind not in _VARIADIC,
                    None if parameter.default is empty else _plain_default(parameter.default),
                )
                for parameter in inspect.signature(forward).parameters.values()
            )
        )

    @property
    def defaults(self) -> dict[str, Any]:
        """Defaults of parameters, by name.

        Example:
            >>> ForwardSignature.of(lambda x, scale=2.0: x * scale).defaults
            {'scale': 2.0}
        """
        return {item.name: item.default for item in self.parameters if not item.required}

    def of_method(self, owner: str) -> inspect.Signature:
        """Return the signature of a function of a class, with a first parameter for the instance.

        Raises:
            FormatError: Python allows no function with these parameters; ``owner`` is the class for the message.

        Example:
            >>> str(ForwardSignature.of(lambda x, *, scale=2.0: x * scale).of_method("Scale"))
            '(self, /, x, *, scale=2.0)'
        """
        names = [item.name for item in self.parameters]
        instance = inspect.Parameter("self" if "self" not in names else "self_", inspect.Parameter.POSITIONAL_ONLY)
        try:
            return inspect.Signature([instance, *map(_inspected, self.parameters)])
        except ValueError as error:
            raise FormatError(f"{owner} has a method with impossible parameters: {error}") from None

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], method: str = "forward") -> dict[str, Any]:
        """Bind a call's arguments to the parameters of ``method``, as Python does.

        Raises:
            TypeError: the arguments do not fit; with Python's own message.
        """
        bound: dict[str, Any] = {}
        left = dict(kwargs)
        taken = 0
        for parameter in self.parameters:
            name, kind = parameter.name, parameter.kind
            if kind == "var_positional":
                bound[name] = args[taken:]
                taken = len(args)
            elif kind == "var_keyword":
                bound[name] = left
                left = {}
            elif kind in POSITIONAL_KINDS and taken < len(args):
                bound[name] = args[taken]
                taken += 1
                if kind in KEYWORD_KINDS and name in left:
                    raise TypeError(f"{method}() got multiple values for argument {name!r}")
            elif kind in KEYWORD_KINDS and name in left:
                bound[name] = left.pop(name)
            elif parameter.required:
                raise TypeError(f"{method}() missing a required argument: {name!r}")
            else:
                bound[name] = parameter.default
        if taken < len(args):
            raise TypeError(f"{method}() takes {taken} positional arguments but {len(args)} were given")
        if left:
            raise TypeError(f"{method}() got an unexpected keyword argument {next(iter(left))!r}")
        return bound

    def call(self, function: Callable[..., Any], bound: Mapping[str, Any]) -> Any:
        """Call a function of this signature with bound values.

        Arguments are passed by name where possible: decorators of a forward look for options among the keywords.
        Omitted arguments are not passed, so the function uses its own default.
        """
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        extra = next((bound[parameter.name] for parameter in self.parameters if parameter.kind == "var_positional"), ())
        for parameter in self.parameters:
            value = bound[parameter.name]
            if value is OMITTED:
                continue
            if parameter.kind == "var_positional":
                args.extend(value)
            elif parameter.kind == "var_keyword":
                kwargs.update(value)
            elif parameter.kind == "positional_only" or (parameter.kind == "positional" and extra):
                args.append(value)
            else:
                kwargs[parameter.name] = value
        return function(*args, **kwargs)


def _plain_default(value: Any) -> Any:
    try:
        encode_value(value)
    except FormatError:
        return OMITTED
    return value


def _inspected(parameter: ForwardParameter) -> inspect.Parameter:
    kind = _INSPECTED[parameter.kind]
    has_default = not parameter.required and kind not in _VARIADIC
    default = parameter.default if has_default else inspect.Parameter.empty
    return inspect.Parameter(parameter.name, kind, default=default)
