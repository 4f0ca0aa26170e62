"""Calls of modules in a recording.

A call of a torch module, or of a custom block that can stand alone, is a step. The inside of other modules is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from model_factory.descriptor.stock import is_stock
from model_factory.errors import NotPortableError
from model_factory.program.ir import BufferAssignment, Dim, Expr, ModuleCall, Rank, Size
from model_factory.program.ops import AUTOCAST_KINDS
from model_factory.program.runtime.lookup import join_path
from model_factory_server.export.conditions.inner_blocks import InnerCall
from model_factory_server.export.conditions.module_reads import class_of
from model_factory_server.export.conditions.result_forms import ResultForm, TensorForm, fake_tensor
from model_factory_server.export.conditions.symbolic_sizes import plain_axes, with_sizes
from model_factory_server.export.error_texts import hidden_in
from model_factory_server.export.torch_private import enable_python_dispatcher
from model_factory_server.export.trace.result_sizes import keeps_size, result_by_rule

if TYPE_CHECKING:
    from model_factory_server.export.trace.tape import Tape


BUFFERS = "_buffers."
"""Beginning of the name of an assigned buffer."""
_INTERNALS = frozenset(nn.Module().__dict__)
_UNREAD = "; if no forward reads the attribute, define example_inputs(), so that the build records the forward"
_UNSEEN = (
    "; if no other call reads the attribute, define example_inputs(), so that the build records every kind of call"
)


class ModuleCalls:
    """Adds calls of modules to a tape."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self.may_assign = False
        """Whether a forward may assign attributes."""
        self.private: set[tuple[str, str]] = set()
        """Class and name of attributes with a private name that a forward has assigned."""
        self.assigned: dict[tuple[int, str], str] = {}
        """Class, by ``id`` of a module's ``__dict__`` and name of an attribute that its forward has assigned."""

    def record_call(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a replacement for ``nn.Module.__call__``; see ``export.torch_patches``."""

        def recorded_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self._tape.paused:
                return call(module, *args, **kwargs)
            args, kwargs = self._tape.constants.with_fakes((args, kwargs))
            if is_stock(module):
                return self._record(call, module, args, kwargs)
            path = self._tape.paths.get(module)
            if path:
                found = self._find_inner(module, path, args, kwargs)
                if not isinstance(found, str):
                    return self._record_inner(*found, args, kwargs)
                self._tape.inlined[path] = found
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
            is_cast = any(torch.is_autocast_enabled(kind) for kind in AUTOCAST_KINDS)  # the rules keep the dtype
            result = None if is_cast else result_by_rule(module, args, kwargs)
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

    def _find_inner(
        self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[InnerCall, ResultForm] | str:
        """Return the call of a block with a program of its own, or the reason to record the inside of the block."""
        if self._tape.inner_blocks is None:
            return "programs of inner blocks are not recorded"
        if any(torch.is_autocast_enabled(kind) for kind in AUTOCAST_KINDS):
            return "the form of its result is known without autocast only"
        with self._tape.no_recording():
            return self._tape.inner_blocks.find(module, path, args, kwargs, self._tape.dtype)

    def _record_inner(self, inner: InnerCall, form: ResultForm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Add a call of a block with a program of its own. The result is new, also where the block returns an input."""
        tape = self._tape
        tape.sizes.add_new()
        step = ModuleCall(
            path=inner.path,
            args=tuple(tape.argument(arg) for arg in args),
            kwargs={key: tape.argument(arg) for key, arg in kwargs.items()},
        )
        if tape.inner_blocks is not None:
            tape.reads.add_of_inner(inner.path, tape.inner_blocks.reads(inner.block))
            # In another dtype, some arguments may keep their dtypes: only a recording shows which.
            tape.dtypes.any = tape.dtypes.any or tape.inner_blocks.reads_dtypes(inner.block)
        described: dict[int, tuple[TensorForm, list[Any]]] = {}  # by id of a tensor in the result without names

        def describe(tensor: TensorForm, sizes: list[Any]) -> torch.Tensor:
            unnamed = torch.empty(0)
            described[id(unnamed)] = (tensor, sizes)
            return unnamed

        def with_symbols(name: str, unnamed: torch.Tensor) -> torch.Tensor:
            tensor, sizes = described[id(unnamed)]
            made = fake_tensor(tensor, [tape.symbols.add_inner(name, axis, size) for axis, size in enumerate(sizes)])
            ones = [Expr("eq", (Dim(name, axis), int(made.shape[axis]))) for axis in plain_axes(made)]
            tape.sizes.note_result(name, [Expr("eq", (Rank(name), made.dim()))], ones)
            return made

        with tape.no_recording():
            form.require(inner.shapes, tape.symbols)
            tape.symbols.skip_requirements()  # the inner program has the conditions
            return tape.store(step, form.result(inner.shapes, tape.symbols, describe), with_symbols)

    def _enter_foreign(self, call: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record the inside of a torch module without tensors from outside the block.

        The forward may have made a container of the block's own modules, for example ``self.net[:-1]``.
        """
        if self._has_foreign_tensors(module):
            hidden = ", ".join(repr(path) for path in hidden_in(self._tape.root, nn.Module))
            hint = f"; modules are hidden in the plain attribute {hidden}" if hidden else ""
            raise NotPortableError(
                f"the forward calls a {type(module).__name__} that is not one of the module's children{hint}. "
                "Remedy: assign it to an attribute of the module, or keep several in an nn.ModuleList or nn.ModuleDict"
            )
        return self._enter(call, module, args, kwargs)

    def _has_foreign_tensors(self, module: nn.Module) -> bool:
        pending = [module]
        while pending:
            item = pending.pop()
            if item in self._tape.paths:
                continue
            if any(tensor is not None for tensor in (*item._parameters.values(), *item._buffers.values())):  # noqa: SLF001
                return True
            pending.extend(item.children())
        return False

    def _enter(self, call: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before, private = _plain_state(module), _private_state(module)
        result = call(module, *args, **kwargs)
        after = _plain_state(module)
        for name, value in _private_state(module).items():
            if value is not private.get(name, None):
                if not self.may_assign:
                    raise _assigns(module, name, _UNSEEN)
                self.private.add((class_of(module), name))
        changed = sorted(
            key for key in before.keys() | after.keys() if before.get(key, None) is not after.get(key, None)
        )
        for name in changed:
            is_buffer = name.startswith(BUFFERS)
            if not self.may_assign or (is_buffer and not self._add_assignment(module, name.removeprefix(BUFFERS))):
                raise _assigns(module, name, "" if is_buffer else _UNREAD)
            self.assigned[id(module.__dict__), name] = class_of(module)
        return result

    def _add_assignment(self, module: nn.Module, name: str) -> bool:
        """Add a step for an assigned buffer; return False for a buffer of the state dict, and for a removed one."""
        value = module._buffers.get(name)  # noqa: SLF001
        if value is None or name not in module._non_persistent_buffers_set:  # noqa: SLF001
            return False
        path = join_path(self._tape.paths[module], name)
        self._tape.steps.append(BufferAssignment(path=path, value=self._tape.argument(value)))
        return True


def _assigns(module: nn.Module, name: str, remedy: str) -> NotPortableError:
    return NotPortableError(
        f"the forward assigns {class_of(module)}.{name}, and programs assign no attributes. Remedy: update a buffer in "
        f"place{remedy}"
    )


def _private_state(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in module.__dict__.items() if key.startswith("_") and key not in _INTERNALS}


def _plain_state(module: nn.Module) -> dict[str, Any]:
    own = {key: value for key, value in module.__dict__.items() if not key.startswith("_")}
    return own | {f"{BUFFERS}{key}": value for key, value in module._buffers.items()}  # noqa: SLF001
