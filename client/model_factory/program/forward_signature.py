"""The signature of a forward as data: binds a call's arguments to names without the forward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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
    """Value of an omitted parameter: plain data."""


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
        """Read the signature of a bound method or function."""
        empty = inspect.Parameter.empty
        return cls(
            tuple(
                ForwardParameter(
                    parameter.name,
                    KINDS[parameter.kind],
                    parameter.default is empty and parameter.kind not in _VARIADIC,
                    None if parameter.default is empty else parameter.default,
                )
                for parameter in inspect.signature(forward).parameters.values()
            )
        )

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
        """
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        extra = next((bound[parameter.name] for parameter in self.parameters if parameter.kind == "var_positional"), ())
        for parameter in self.parameters:
            value = bound[parameter.name]
            if parameter.kind == "var_positional":
                args.extend(value)
            elif parameter.kind == "var_keyword":
                kwargs.update(value)
            elif parameter.kind == "positional_only" or (parameter.kind == "positional" and extra):
                args.append(value)
            else:
                kwargs[parameter.name] = value
        return function(*args, **kwargs)
