"""The table of everything replaced in torch and Python while a forward is recorded.

:func:`patch_torch` applies the table. Each row has the function for the replacement, and the reason.
"""

from __future__ import annotations

import builtins
import functools
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.amp.autocast_mode import autocast
from torch.autograd.grad_mode import enable_grad, no_grad, set_grad_enabled

from model_factory.errors import NotPortableError
from model_factory.program.runtime.caller_modes import AUTOCAST, AUTOCAST_DTYPE, GRAD, INFERENCE
from model_factory.program.torch_names import torch_dtype
from model_factory_server.export.autograd_functions import FunctionCalls
from model_factory_server.export.conditions.arrays import converting
from model_factory_server.export.conditions.message_texts import is_in_message
from model_factory_server.export.conditions.module_reads import is_library
from model_factory_server.export.conditions.symbols import DecisionShapeEnv
from model_factory_server.export.torch_private import (
    FakeTensor,
    fake_log,
    fake_tensors,
    function_base,
    recorded_number,
    world_classes,
)
from model_factory_server.export.trace.mode_calls import CallerDevice, refuse_mode_read
from model_factory_server.export.trace.tape import Tape

_Replace = Callable[[Any], Any]
_NUMBERS: Mapping[Any, Callable[[Any], Any]] = {torch.SymInt: int, torch.SymFloat: float, torch.SymBool: bool}


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
        NotPortableError: the forward draws random numbers outside torch.
    """
    with ExitStack() as stack:
        for item in patch_table(tape):
            replacement = item.replace(getattr(item.owner, item.name, None))
            stack.enter_context(patch.object(item.owner, item.name, replacement, create=True))
        stack.enter_context(_only_torch_draws())
        yield


def patch_table(tape: Tape) -> list[Patch]:
    """Return the table for a recording."""
    return [*_hiding(tape.shape_env), *_noting(tape), *_modes(tape), *_mode_reads(tape)]


def _hiding(env: DecisionShapeEnv) -> list[Patch]:
    """Patches to hide the recording from the forward."""
    return [
        Patch(fake_tensors, "FakeTensor", lambda _: _hidden_class(env), "libraries run other code on fake tensors"),
        *(
            Patch(kind, name, functools.partial(_text, env, number), "a size's text is its number")
            for kind, number in _NUMBERS.items()
            for name in ("__str__", "__repr__", "__format__")
        ),
        Patch(torch.SymInt, "sqrt", lambda _: torch.sym_sqrt, "NumPy takes the root of an object by the method"),
        Patch(math, "sqrt", _symbolic_sqrt, "the root of a size depends on the size"),
        Patch(fake_log, "disabled", lambda _: True, "an error on fake tensors is tried another way, or reported"),
        Patch(builtins, "isinstance", _is_instance, "a size is an int, a quotient of sizes a float"),
    ]


def _noting(tape: Tape) -> list[Patch]:
    """Patches to notify the tape of calls and reads."""
    return [
        Patch(nn.Module, "__call__", tape.module_calls.record_call, "a call of a torch module is one step"),
        Patch(nn.Module, "named_parameters", tape.reads.note_parameters, "sizes of parameters may be read"),
        Patch(nn.Module, "__getattr__", tape.reads.note_entries, "parameters, buffers and children may be absent"),
        Patch(nn.Module, "__getattribute__", tape.reads.note_attributes, "attributes of torch modules are conditions"),
        Patch(nn.Module, "__setattr__", tape.reads.note_assignments, "an attribute read after its assignment is new"),
        Patch(function_base, "apply", FunctionCalls(tape).replace_apply, "a function has a backward of its own"),
        Patch(torch, "finfo", tape.dtypes.note_limits, "limits follow the dtype of a value"),
        *(
            Patch(torch, name, converting, "a NumPy array among the arguments is an input of the program")
            for name in ("from_numpy", "as_tensor", "asarray", "tensor")
        ),
    ]


def _modes(tape: Tape) -> list[Patch]:
    """Patches of the context managers for the grad and autocast modes."""
    modes, grad = tape.modes, "the step that ends a region sets the caller's mode"
    sets_mode = ((no_grad, "__enter__"), (enable_grad, "__enter__"), (set_grad_enabled, "__init__"))
    return [
        *(Patch(region, begins, modes.begin_grad_region, grad) for region, begins in sets_mode),
        *(Patch(region, "__exit__", modes.end_grad_region, grad) for region, _ in sets_mode),
        Patch(autocast, "__enter__", modes.enter_autocast, "a region without autocast is two steps"),
        Patch(autocast, "__exit__", modes.leave_autocast, "a region without autocast is two steps"),
    ]


def _mode_reads(tape: Tape) -> list[Patch]:
    """Patches of functions whose results can differ on the trainer: the caller's modes, and other processes."""
    modes, why = tape.modes, "the mode of the caller is a condition"

    def autocast(device_type: str = "cuda") -> str:
        return f"{AUTOCAST}{device_type}"

    def autocast_dtype(device_type: str = "cuda") -> str:
        return f"{AUTOCAST_DTYPE}{device_type}"

    asked: dict[str, tuple[Callable[..., str], Callable[[Any], Any]]] = {
        "is_grad_enabled": (lambda: GRAD, bool),
        "is_inference_mode_enabled": (lambda: INFERENCE, bool),
        "is_autocast_enabled": (autocast, bool),
        "is_autocast_cpu_enabled": (lambda: autocast("cpu"), bool),
        "get_autocast_dtype": (autocast_dtype, torch_dtype),
        "get_autocast_gpu_dtype": (autocast_dtype, torch_dtype),
    }
    processes = torch.distributed  # empty in builds of torch without it
    others = [name for name in ("get_rank", "get_world_size") if hasattr(processes, name)]
    return [
        Patch(FakeTensor, "device", functools.partial(modes.note_devices, tape.shape_env), why),
        *(Patch(torch, name, modes.ask(*how), why) for name, how in asked.items() if hasattr(torch, name)),
        *(Patch(item, "WORLD", modes.note_processes, why) for item in world_classes),  # also read by bound functions
        *(
            Patch(processes, name, refuse_mode_read(f"torch.distributed.{name}"), "the result can differ")
            for name in others
        ),
    ]


def _hidden_class(env: DecisionShapeEnv) -> type:
    """Return a class without instances for the forward's own code, and with all fake tensors for other code."""

    class Hidden(type):
        def __instancecheck__(cls, instance: Any) -> bool:
            return not env.in_forward and isinstance(instance, FakeTensor)

    return Hidden("FakeTensor", (), {})


def _text(env: DecisionShapeEnv, number: Callable[[Any], Any], original: Callable[..., str]) -> Callable[..., str]:
    """Return a text method for sizes. The forward's own code gets the number, and decides by the number.

    In a message the text decides nothing. A size still has no hash, as in torch: einops needs sizes without a hash, and
    caches with size keys keep symbols.
    """

    def text(size: Any, *spec: str) -> str:
        if not env.in_forward:
            return original(size, *spec)
        if is_in_message(sys._getframe(1)):  # noqa: SLF001  there is no other way
            return format(recorded_number(size), *spec)
        return format(number(size), *spec)

    return text


def _is_instance(original: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """Return an ``isinstance`` that tells the forward's code the classes of sizes and devices without a recording."""
    examples: Mapping[type, Any] = {
        **{kind: number(0) for kind, number in _NUMBERS.items()},
        CallerDevice: torch.device("cpu"),
    }

    def isinstance(value: Any, kinds: Any) -> bool:  # noqa: A001  the name appears in messages of errors
        example = examples.get(type(value))
        if example is None or is_library(sys._getframe(1)):  # noqa: SLF001  there is no other way
            return original(value, kinds)
        return original(example, kinds) or (type(value) is not CallerDevice and original(value, kinds))

    return isinstance


def _symbolic_sqrt(original: Callable[[Any], float]) -> Callable[[Any], Any]:
    def sqrt(number: Any) -> Any:
        is_size = isinstance(number, torch.SymInt | torch.SymFloat)
        return torch.sym_sqrt(number) if is_size else original(number)

    return sqrt


def _comparable(state: Any) -> Any:
    """The state of a NumPy generator, a dict of numbers and arrays, with lists for its arrays: ``==`` compares it."""
    if isinstance(state, dict):
        return {name: _comparable(part) for name, part in state.items()}
    return state.tolist() if hasattr(state, "tolist") else state


@contextmanager
def _only_torch_draws() -> Iterator[None]:
    """Refuse random numbers from Python and NumPy: programs draw from torch only."""
    numpy_random: Any = sys.modules.get("numpy.random")

    def states() -> tuple[Any, ...]:
        return random.getstate(), None if numpy_random is None else _comparable(numpy_random.get_state(legacy=False))

    before = states()
    yield
    if states() != before:
        raise NotPortableError(
            "the forward draws random numbers from Python's random or from NumPy, and programs draw from torch only. "
            "Remedy: draw the numbers with torch"
        )
