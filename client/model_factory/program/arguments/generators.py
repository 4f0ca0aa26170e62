"""Generators of random numbers among the arguments of a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from model_factory.program.arguments.kinds import take_apart
from model_factory.program.call_signature import GENERATOR, ArgumentSignature, CallSignature, parts_of


def has_generators(signature: CallSignature) -> bool:
    """Whether a part of a signature is a generator of random numbers."""
    return any(_has_generator(item) for _, item in signature)


def _has_generator(signature: ArgumentSignature) -> bool:
    return signature == GENERATOR or any(_has_generator(item) for _, item in parts_of(signature) or ())


def generators_of(signature: CallSignature, arguments: Mapping[str, Any]) -> dict[str, torch.Generator]:
    """Return the generators of random numbers among the arguments of a call, by name.

    Example:
        >>> from model_factory.program.call_signature import call_signature
        >>> arguments = {"noise": {"source": torch.Generator()}}
        >>> list(generators_of(call_signature(arguments)[0], arguments))
        ['noise.source']
    """
    found: dict[str, torch.Generator] = {}
    for name, item in signature:
        _collect_generators(name, item, arguments.get(name), found)
    return found


def _collect_generators(name: str, signature: ArgumentSignature, value: Any, found: dict[str, torch.Generator]) -> None:
    if signature == GENERATOR:
        found[name] = value
    parts = parts_of(signature)
    values = take_apart(value) if parts else None
    if parts and values is not None:
        entries = dict(values.entries)
        for key, item in parts:
            _collect_generators(f"{name}.{key}", item, entries.get(key), found)
