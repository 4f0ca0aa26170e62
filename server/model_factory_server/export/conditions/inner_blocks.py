"""Custom blocks that a block calls: each block that can stand alone is called by the program, and has its own program.

A call cannot stand alone if an argument or the result is more than data, or if the recording of the block alone fails.
The inside of the other blocks becomes a part of the caller's program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn

from model_factory.errors import CallSignatureError
from model_factory.program.arguments.kinds import take_apart
from model_factory.program.arguments.unreadable import Unreadable
from model_factory.program.call_signature import CONSTANT_TYPES, CallSignature, call_signature
from model_factory.program.forward_signature import ForwardSignature
from model_factory_server.export.conditions.result_forms import ResultForm
from model_factory_server.export.conditions.unread_arguments import UseNoting
from model_factory_server.export.torch_private import recorded_size

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_CONTAINERS = (list, tuple, dict)
_NUMBERS = (int, float, str)
_NOT_READ = (Unreadable, UseNoting)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InnerCall:
    """A call of a custom block inside the recording of another block."""

    block: nn.Module
    """The called block."""
    path: str
    """Path of the block below the recorded block."""
    signature: CallSignature
    """Signature of the call."""
    tensors: list[torch.Tensor]
    """Fake tensors of the arguments, in order."""
    dtype: torch.dtype | None
    """Floating dtype of the recording, if other than the block's own."""

    @property
    def shapes(self) -> list[torch.Size]:
        """Sizes of the tensors, symbolic or not."""
        return [tensor.shape for tensor in self.tensors]

    def in_dtype(self, dtype: torch.dtype | None) -> InnerCall:
        """The call as foreseen in a recording in another floating dtype."""
        tensors = [
            torch.empty(
                [recorded_size(size) for size in item.shape],
                dtype=dtype if item.is_floating_point() else item.dtype,
                device="meta",
            )
            for item in self.tensors
        ]
        return replace(self, dtype=dtype, tensors=tensors)


class UnknownInnerCallError(BaseException):
    """A recording has reached a call of an inner block without a known form of the result.

    The base class is ``BaseException``, so that a forward with ``except Exception`` does not catch the error.
    """

    def __init__(self, call: InnerCall) -> None:
        super().__init__(call.path)
        self.call = call


class InnerKinds(Protocol):
    """What is known of inner blocks."""

    def find(self, call: InnerCall) -> ResultForm | str | None:
        """Return the form of a call's result, or the reason against a step, or None if nothing is known yet."""
        ...

    def reads(self, block: nn.Module) -> frozenset[tuple[str, str]]:
        """Return attributes of custom modules that the forward of an inner block reads: module path and name."""
        ...

    def reads_dtypes(self, block: nn.Module) -> bool:
        """Return whether the forward of an inner block reads dtypes."""
        ...


class InnerBlocks:
    """Calls of inner blocks in one recording."""

    def __init__(self, kinds: InnerKinds, arguments: Mapping[str, Any]) -> None:
        """Begin; ``arguments`` are the arguments of the recorded block."""
        self._kinds = kinds
        self._constants = set(constants_in(arguments))
        self.used: list[InnerCall] = []
        """Calls that became steps."""
        self.unknown: UnknownInnerCallError | None = None
        """The first call without a known form."""

    def find(
        self, block: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype | None
    ) -> tuple[InnerCall, ResultForm] | str:
        """Return the call and the form of its result, or the reason to inline the block.

        Raises:
            UnknownInnerCallError: the block has to be recorded first.
        """
        try:
            arguments = ForwardSignature.of(block.forward).bind(args, kwargs)
        except TypeError:
            return "its arguments are more than data"
        call = self.call(block, path, arguments, dtype)
        if isinstance(call, str):
            return call
        found = self._kinds.find(call)
        if found is None:
            self.unknown = self.unknown or UnknownInnerCallError(call)
            raise self.unknown
        if isinstance(found, str):
            return found
        self.used.append(call)
        return call, found

    def call(
        self, block: nn.Module, path: str, arguments: Mapping[str, Any], dtype: torch.dtype | None
    ) -> InnerCall | str:
        """Return a call that may become a step, or the reason to inline the block."""
        if any(getattr(block, table) for table in _HOOKS):
            return "it has hooks"
        try:
            reason = self._against(list(arguments.values()))
            signature, tensors = call_signature(arguments) if reason is None else ((), [])
        except (TypeError, ValueError, CallSignatureError):
            return "its arguments are more than data"
        return reason or InnerCall(block=block, path=path, signature=signature, tensors=tensors, dtype=dtype)

    def reads(self, block: nn.Module) -> frozenset[tuple[str, str]]:
        """Return the attributes that an inner block's own program depends on."""
        return self._kinds.reads(block)

    def reads_dtypes(self, block: nn.Module) -> bool:
        """Return whether an inner block's own program depends on dtypes."""
        return self._kinds.reads_dtypes(block)

    def _against(self, values: list[Any]) -> str | None:
        """Return the reason against a call with these arguments, if any."""
        seen: set[int] = set()
        while values:
            value = values.pop()
            if type(value) in _NOT_READ or (type(value) in _NUMBERS and (type(value), value) in self._constants):
                return "an argument of the caller is passed on that is no tensor"
            if isinstance(value, torch.Tensor):
                if id(value) in seen:
                    return "one tensor is two of its arguments"
                seen.add(id(value))
                if any(recorded_size(size) is None for size in value.shape):
                    return "sizes of an argument depend on values"
            elif type(value) in _CONTAINERS:
                values += value.values() if isinstance(value, dict) else value
                if isinstance(value, dict) and not all(type(key) is str for key in value):
                    return "an argument has keys other than texts"
            elif isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
                return "a number that depends on sizes is an argument"
            elif type(value) not in CONSTANT_TYPES:
                return f"an argument is a {type(value).__name__}"
        return None


def constants_in(arguments: Any) -> list[tuple[type, Any]]:
    """The texts and numbers in a call's arguments, with their types.

    Example:
        >>> constants_in({"x": torch.ones(2), "scales": [1, 2.5]})
        [(<class 'int'>, 1), (<class 'float'>, 2.5)]
    """
    if type(arguments) in _NUMBERS:
        return [(type(arguments), arguments)]
    parts = take_apart(arguments)
    return [] if parts is None else [item for _, entry in parts.entries for item in constants_in(entry)]
