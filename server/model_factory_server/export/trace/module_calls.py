"""Calls of modules in a recording: a torch module becomes a step; the inside of other modules is recorded."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from model_factory.descriptor.stock import is_stock
from model_factory.errors import NotPortableError
from model_factory.program.ir import Dim, Expr, ModuleCall, Rank, Size
from model_factory_server.export.conditions.symbolic_sizes import plain_axes, with_sizes
from model_factory_server.export.torch_private import enable_python_dispatcher
from model_factory_server.export.trace.error_texts import hidden_in
from model_factory_server.export.trace.result_sizes import keeps_size, result_by_rule

if TYPE_CHECKING:
    from model_factory_server.export.trace.tape import Tape


class ModuleCalls:
    """Adds calls of modules to a tape."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    def record_call(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a replacement for ``nn.Module.__call__``; see ``export.torch_patches``."""

        def recorded_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self._tape.paused:
                return call(module, *args, **kwargs)
            if is_stock(module):
                return self._record(call, module, args, kwargs)
            return self._enter(call, module, args, kwargs)

        return recorded_call

    def _record(self, call: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path = self._tape.paths.get(module)
        if path is None:
            return self._enter_foreign(call, module, args, kwargs)
        self._tape.sizes.add_new()
        step = ModuleCall(
            path=path,
            args=tuple(self._tape.argument(arg) for arg in args),
            kwargs={key: self._tape.argument(arg) for key, arg in kwargs.items()},
        )
        with self._tape.no_recording():
            result = result_by_rule(module, args, kwargs)
            if result is None:
                with enable_python_dispatcher():
                    result = call(module, *args, **kwargs)

        def with_symbols(name: str, tensor: torch.Tensor) -> torch.Tensor:
            kept = {axis for axis in range(tensor.dim()) if keeps_size(module, axis, tensor, args, kwargs)}

            def symbol(axis: int, size: Any) -> Any | None:
                return None if axis in kept else self._tape.symbols.add_given(name, axis, size)

            sizes = [(axis, self._tape.argument(tensor.shape[axis])) for axis in kept]
            conditions = [Expr("eq", (Rank(name), tensor.dim()))] + [
                Expr("eq", (Dim(name, axis), size.expr if isinstance(size, Size) else size)) for axis, size in sizes
            ]
            made = with_sizes(tensor, symbol)
            plain = [(axis, made.shape[axis]) for axis in plain_axes(made) if axis not in kept]
            ones = [Expr("eq", (Dim(name, axis), int(size))) for axis, size in plain]
            self._tape.sizes.note_result(name, conditions, ones)
            return made

        self._tape.symbols.skip_requirements()
        with self._tape.no_recording():
            return self._tape.store(step, result, with_symbols)

    def _enter_foreign(self, call: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record the inside of a torch module without tensors from outside the block."""
        if any(True for _ in itertools.chain(module.parameters(), module.buffers())):
            hidden = ", ".join(repr(path) for path in hidden_in(self._tape.root, nn.Module))
            hint = f"; modules are hidden in the plain attribute {hidden}" if hidden else ""
            raise NotPortableError(
                f"the forward calls a {type(module).__name__} that is not one of the module's children{hint}. "
                "Remedy: assign it to an attribute of the module, or keep several in an nn.ModuleList or nn.ModuleDict"
            )
        return self._enter(call, module, args, kwargs)

    def _enter(self, call: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = _plain_state(module)
        result = call(module, *args, **kwargs)
        after = _plain_state(module)
        changed = sorted(
            key for key in before.keys() | after.keys() if before.get(key, None) is not after.get(key, None)
        )
        if changed:
            where = f"{type(module).__name__}.{changed[0]}"
            raise NotPortableError(
                f"the forward assigns {where}, and programs assign no attributes. Remedy: update a buffer in place"
            )
        return result


def _plain_state(module: nn.Module) -> dict[str, Any]:
    own = {key: value for key, value in module.__dict__.items() if not key.startswith("_")}
    return own | {f"_buffers.{key}": value for key, value in module._buffers.items()}  # noqa: SLF001
