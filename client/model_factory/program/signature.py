"""The signature of a forward, as data: binds a call's arguments to names without the forward itself."""

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


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a forward."""

    name: str
    """As written in the forward's definition."""
    kind: str
    """One of the values of ``KINDS``."""
    required: bool = True
    """Whether the caller must give it."""
    default: Any = None
    """Plain data; what the parameter is when not given."""


@dataclass(frozen=True, slots=True)
class Signature:
    """A forward's parameters, in order."""

    parameters: tuple[Parameter, ...]

    @classmethod
    def of(cls, forward: Callable[..., Any]) -> Signature:
        """Read the signature of a bound method or function."""
        empty = inspect.Parameter.empty
        return cls(
            tuple(
                Parameter(
                    parameter.name,
                    KINDS[parameter.kind],
                    parameter.default is empty and parameter.kind not in _VARIADIC,
                    None if parameter.default is empty else parameter.default,
                )
                for parameter in inspect.signature(forward).parameters.values()
            )
        )

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], method: str = "forward") -> dict[str, Any]:
        """Give every parameter of ``method`` its value, as Python would.

        Raises:
            TypeError: in the words Python uses for a wrong call.
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

        By name where that is possible: decorators of a forward look for options among the keyword arguments.
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


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
