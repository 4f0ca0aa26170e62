"""A recorded program, with every condition for its use in place of a module's forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from model_factory.program.call_signature import CONSTANT_TYPES, CallSignature
from model_factory.program.ir import Expression, Program

FORWARD = "forward"
"""Name of the default method."""

Read: TypeAlias = tuple[str, str, Any]
"""A plain attribute of a torch module, read by a forward: module path, name, value."""

Mode: TypeAlias = tuple[str, bool | str]
"""A mode of the caller and the value; see ``program/runtime/caller_modes.py``."""

TABLES = ("_modules", "_keys", "_size")
"""Attributes of torch's containers. A recording notes their names or their length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedProgram:
    """A program and the conditions for its use."""

    call_signature: CallSignature
    """Signature of the calls that the program is for."""
    program: Program
    """Program over the tensors of the call, named by ``leaf_names``, in order."""
    training: tuple[tuple[str, bool], ...] = ()
    """Required training flags, by module path (``""`` is the module itself); empty if the program fits all modes."""
    dtypes: tuple[tuple[str, str], ...] = ()
    """Required dtypes, by tensor name; only where the forward decides by dtype."""
    size_conditions: tuple[Expression, ...] = ()
    """Conditions on sizes; all must hold."""
    reads: tuple[Read, ...] = ()
    """Attributes of torch modules, read by the forward; for :data:`TABLES`, names of entries."""
    absent: tuple[str, ...] = ()
    """Paths without a parameter, buffer or child, as the forward found."""
    shared: tuple[tuple[str, str], ...] = ()
    """Pairs of paths with one module or parameter at both; the program uses the first path for both."""
    inlined: tuple[tuple[str, str], ...] = ()
    """Paths of custom blocks whose inside is a part of the program, with the reason against a program of their own."""
    modes: tuple[Mode, ...] = ()
    """Required modes of the caller, as far as the forward asked for a mode."""
    method: str = FORWARD
    """Name of the recorded method."""


def is_plain(value: Any) -> bool:
    """Whether a value is a constant, or a tuple or list of constants.

    Example:
        >>> is_plain((1, [2.5, "x", None])), is_plain({"a": 1})
        (True, False)
    """
    if type(value) in {tuple, list}:
        return all(map(is_plain, value))
    return type(value) in CONSTANT_TYPES
