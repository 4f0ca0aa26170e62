"""Registered factories: signature, argument checks and description of a module class or function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import nn

from model_factory.blocks import Block, BlockArgument
from model_factory.config import ConfigPath
from model_factory.errors import ConfigError
from model_factory.wording import listed, nearest, quoted

SignaturePolicy = Literal["strict", "best_effort", "runtime_only"]
"""``strict``: arguments are checked before the call, and the signature must be readable; ``best_effort``: arguments are
checked if the signature is readable; ``runtime_only``: arguments are not checked before the call."""

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_STARS: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Factory:
    """A callable under a registered name.

    Example:
        >>> from torch import nn
        >>> factory = Factory(name="nn.Linear", call=nn.Linear)
        >>> factory.check_arguments([3], {"out_features": ("out_features",)}, ())
        >>> factory.check_arguments([3], {"out_feature": ()}, ())
        Traceback (most recent call last):
        ...
        model_factory.errors.ConfigError: Unknown kwargs for 'nn.Linear': 'out_feature'; did you mean 'out_features'?...
    """

    name: str
    """Key in configs."""
    call: Callable[..., Any]
    """Module class or function."""
    signature_policy: SignaturePolicy = "strict"
    """Checks before the call."""
    tags: tuple[str, ...] = ()
    """Words for the description."""
    origin: str = ""
    """``torch``, ``builtin`` or the module of a plug-in; empty if unknown."""
    signature: inspect.Signature | None = field(init=False)
    """Signature of the callable; None if unreadable."""

    def __post_init__(self) -> None:
        if self.signature_policy not in get_args(SignaturePolicy):
            allowed = ", ".join(get_args(SignaturePolicy))
            raise ValueError(f"{self.name!r}: signature_policy is one of {allowed}, got {self.signature_policy!r}")
        if not callable(self.call):
            raise ValueError(f"{self.name!r} must be registered with a callable, got {self.call!r}")  # noqa: TRY004
        object.__setattr__(self, "signature", _signature(self.call))
        if self.signature is None and self.signature_policy == "strict":
            raise ValueError(f"the signature of {self.name!r} cannot be read; register it with 'best_effort'")

    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Return the parameters by name, in order; empty if the signature is unreadable."""
        return {} if self.signature is None else self.signature.parameters

    def check_arguments(self, args: Sequence[Any], kwargs: dict[str, ConfigPath], path: ConfigPath) -> None:
        """Check the arguments of a call as far as ``signature_policy`` demands.

        Args:
            args: Positional arguments.
            kwargs: Place in the config of each keyword argument.
            path: Place of the call in the config.

        Raises:
            ConfigError: a keyword is unknown, a required argument is missing, an argument is given twice, or there are
                too many positional arguments.
        """
        if self.signature is None or self.signature_policy == "runtime_only":
            return
        self.check_keywords(kwargs)
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ConfigError(f"{quoted(self.name)}: {error}", path=path) from None

    def check_keywords(self, kwargs: Mapping[str, ConfigPath]) -> None:
        """Check the names of keyword arguments if the signature is readable; ``kwargs`` gives the place of each name.

        Raises:
            ConfigError: a keyword is unknown.
        """
        if self.signature is None:
            return
        parameters = self.signature.parameters.values()
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            known = [parameter.name for parameter in parameters if parameter.kind in _BY_NAME]
            check_known(self.name, kwargs, known)

    def described(self, prefix: str = "") -> Block:
        """Describe the factory for people; ``prefix`` precedes the name in configs (``op:``)."""
        doc = (getattr(self.call, "__doc__", None) or "").strip()
        return Block(
            name=prefix + self.name,
            summary=doc.partition("\n")[0].strip(),
            origin=self.origin,
            tags=self.tags,
            arguments=tuple(_argument(parameter) for parameter in self.parameters().values()),
        )


def check_known(
    name: str, kwargs: Mapping[str, ConfigPath], known: Collection[str], also: Collection[str] = ()
) -> None:
    """Refuse keywords outside ``known`` and ``also``; ``kwargs`` gives the place of each keyword.

    Raises:
        ConfigError: a keyword is unknown; the message suggests the closest name of ``known``.

    Example:
        >>> check_known("nn.ReLU", {"inplace": ()}, known=["inplace"])
    """
    unknown = [keyword for keyword in kwargs if keyword not in known and keyword not in also]
    if unknown:
        what = f"Unknown kwargs for {quoted(name)}: {listed(unknown)}{nearest(unknown[0], known)}"
        raise ConfigError(f"{what}; known: {listed(known)}", path=kwargs[unknown[0]])


def _signature(call: Callable[..., Any]) -> inspect.Signature | None:
    try:
        # Signatures of torch classes are read once in the fork server, for all workers.
        return _signature_of_class(call) if isinstance(call, type) else inspect.signature(call)
    except (TypeError, ValueError):
        return None


@functools.cache
def _signature_of_class(cls: type) -> inspect.Signature:
    if _owner(cls, "__init__") is nn.Module and _owner(cls, "__new__") is object:  # refuses all later
        return inspect.Signature()
    if cls in {nn.RNN, nn.GRU, nn.LSTM}:  # pass on *args, **kwargs
        known = [item for item in inspect.signature(nn.RNNBase).parameters.values() if item.name != "mode"]
        if cls is nn.RNN:
            nonlinearity = inspect.Parameter("nonlinearity", known[0].kind, default="tanh", annotation=str)
            known.insert(3, nonlinearity)
        return inspect.Signature([item for item in known if item.name != "proj_size" or cls is nn.LSTM])
    return inspect.signature(cls)


def _owner(cls: type, name: str) -> type:
    """Return the class that defines an attribute of a class."""
    return next(base for base in cls.__mro__ if name in vars(base))


def _argument(parameter: inspect.Parameter) -> BlockArgument:
    empty = inspect.Parameter.empty
    stars = _STARS.get(parameter.kind, "")
    annotation = parameter.annotation
    if annotation is empty:
        text = ""
    else:
        text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return BlockArgument(
        name=stars + parameter.name,
        annotation=text,
        required=parameter.default is empty and not stars,
        default="" if parameter.default is empty else repr(parameter.default),
    )
