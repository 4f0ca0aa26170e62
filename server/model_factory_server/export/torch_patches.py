"""The table of everything replaced in torch and Python while a forward is recorded.

:func:`patch_torch` applies the table. Each row has the function for the replacement, and the reason. Outside a
recording, another patch exists: ``trace.einsum.use_recorded_orders`` fixes the order of ``torch.einsum`` while a
program is verified.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.amp.autocast_mode import autocast
from torch.autograd import Function
from torch.autograd.grad_mode import enable_grad, no_grad, set_grad_enabled

from model_factory.errors import NotPortableError
from model_factory_server.export.conditions.symbols import DecisionShapeEnv
from model_factory_server.export.torch_private import FakeTensor, fake_tensors
from model_factory_server.export.trace.mode_calls import refuse_mode_read
from model_factory_server.export.trace.tape import Tape

_Replace = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Patch:
    """An attribute to replace while a forward is recorded."""

    owner: Any
    """The module or class with the attribute."""
    name: str
    """The attribute."""
    replace: _Replace
    """Returns the replacement, given the original."""
    why: str
    """The reason."""


@contextmanager
def patch_torch(tape: Tape) -> Iterator[None]:
    """Apply the table while this is entered: a forward runs as without a recording, and ``tape`` is notified.

    Raises:
        NotPortableError: the forward calls an ``autograd.Function``, or draws random numbers outside torch.
    """
    with ExitStack() as stack:
        for item in patch_table(tape):
            replacement = item.replace(getattr(item.owner, item.name))
            stack.enter_context(patch.object(item.owner, item.name, replacement))
        stack.enter_context(_only_torch_draws())
        yield


def patch_table(tape: Tape) -> list[Patch]:
    """Return the table for a recording."""
    return [*_hiding(tape.shape_env), *_noting(tape), *_modes(tape), *_mode_reads()]


def _hiding(env: DecisionShapeEnv) -> list[Patch]:
    """Patches to hide the recording from the forward."""
    return [
        Patch(fake_tensors, "FakeTensor", lambda _: _hidden_class(env), "libraries run other code on fake tensors"),
        Patch(torch.SymInt, "__str__", lambda original: _size_text(env, original), "a size's text is its number"),
        Patch(torch.SymInt, "__repr__", lambda original: _size_text(env, original), "a size's text is its number"),
        Patch(math, "sqrt", _symbolic_sqrt, "the root of a size depends on the size"),
        Patch(Function, "apply", _refuse_functions, "programs have no backward of their own"),
    ]


def _noting(tape: Tape) -> list[Patch]:
    """Patches to notify the tape of calls and reads."""
    return [
        Patch(nn.Module, "__call__", tape.module_calls.record_call, "a call of a torch module is one step"),
        Patch(nn.Module, "named_parameters", tape.reads.note_parameters, "sizes of parameters may be read"),
        Patch(nn.Module, "__getattr__", tape.reads.note_entries, "parameters, buffers and children may be absent"),
        Patch(nn.Module, "__getattribute__", tape.reads.note_attributes, "attributes of torch modules are conditions"),
        Patch(torch, "finfo", tape.dtypes.note_limits, "limits follow the dtype of a value"),
    ]


def _modes(tape: Tape) -> list[Patch]:
    """Patches of the context managers for the grad and autocast modes."""
    modes, grad = tape.modes, "the step that ends a region sets the caller's mode"
    sets_mode = ((no_grad, "__enter__"), (enable_grad, "__enter__"), (set_grad_enabled, "__init__"))
    return [
        *(Patch(region, begins, modes.begin_grad_region, grad) for region, begins in sets_mode),
        *(Patch(region, "__exit__", modes.end_grad_region, grad) for region, _ in sets_mode),
        Patch(autocast, "__init__", modes.make_autocast, "torch disables autocast for a missing GPU"),
        Patch(autocast, "__enter__", modes.enter_autocast, "a region without autocast is two steps"),
        Patch(autocast, "__exit__", modes.leave_autocast, "a region without autocast is two steps"),
    ]


def _mode_reads() -> list[Patch]:
    """Patches of functions whose results can differ on the trainer."""
    names = {
        torch: (
            *("is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled", "is_autocast_cpu_enabled"),
            *("get_autocast_dtype", "get_autocast_gpu_dtype"),
        ),
        torch.distributed: ("is_initialized", "get_rank", "get_world_size"),
    }
    return [
        Patch(owner, name, refuse_mode_read(f"{owner.__name__}.{name}"), "the result can differ on the trainer")
        for owner, of_owner in names.items()
        for name in of_owner
        if hasattr(owner, name)  # torch.distributed is empty in builds of torch without it
    ]


def _hidden_class(env: DecisionShapeEnv) -> type:
    """Return a class without instances for the forward's own code, and with all fake tensors for other code."""

    class Hidden(type):
        def __instancecheck__(cls, instance: Any) -> bool:
            return not env.in_forward and isinstance(instance, FakeTensor)

    return Hidden("FakeTensor", (), {})


def _size_text(env: DecisionShapeEnv, original: Callable[[Any], str]) -> Callable[[Any], str]:
    """Return a ``__str__`` for sizes. The forward's own code gets the number, and decides by the number.

    A size still has no hash, as in torch: einops needs sizes without a hash, and caches with size keys keep symbols.
    """

    def text(size: torch.SymInt) -> str:
        return str(int(size)) if env.in_forward else original(size)

    return text


def _symbolic_sqrt(original: Callable[[Any], float]) -> Callable[[Any], Any]:
    def sqrt(number: Any) -> Any:
        is_size = isinstance(number, torch.SymInt | torch.SymFloat)
        return torch.sym_sqrt(number) if is_size else original(number)

    return sqrt


def _refuse_functions(original: Callable[..., Any]) -> Any:
    """Return an ``apply`` for torch's own functions only, for example activation checkpointing."""

    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        if cls.__module__.partition(".")[0] == "torch":
            return original.__func__(cls, *args, **kwargs)  # type: ignore[attr-defined]
        raise NotPortableError(
            f"the forward calls {cls.__module__}.{cls.__qualname__}, an autograd.Function, and programs have no "
            "backward of their own. Remedy: write the function with torch's ops; a straight-through gradient is "
            "x + (y - x).detach()"
        )

    return classmethod(apply)


@contextmanager
def _only_torch_draws() -> Iterator[None]:
    """Refuse random numbers from Python and NumPy: programs draw from torch only."""
    numpy_random: Any = sys.modules.get("numpy.random")

    def states() -> tuple[Any, ...]:
        return random.getstate(), "" if numpy_random is None else str(numpy_random.get_state())

    before = states()
    yield
    if states() != before:
        raise NotPortableError(
            "the forward draws random numbers from Python's random or from NumPy, and programs draw from torch only. "
            "Remedy: draw the numbers with torch"
        )
