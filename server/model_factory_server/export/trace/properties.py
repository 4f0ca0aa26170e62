"""Reads and assignments of a tensor's properties: dtype, device, gradient, version."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from model_factory.errors import NotPortableError
from model_factory.program.ir import OpCall, Ref
from model_factory.program.ops import OPS, REQUIRE_GRAD
from model_factory.program.runtime.caller_modes import INFERENCE, IS_CUDA
from model_factory.program.runtime.lookup import GRADIENT
from model_factory_server.export.torch_private import memory_id
from model_factory_server.export.trace.op_kinds import (
    DTYPE_ARITHMETIC,
    DTYPE_METHODS,
    DTYPE_PROPERTIES,
    SIZE_PROPERTIES,
    SIZE_READS,
)

if TYPE_CHECKING:
    from model_factory_server.export.trace.tape import Tape


class Properties:
    """Treats reads and assignments of properties for a tape."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._trained: set[str] = set()  # paths of buffers that the forward makes require gradients

    def treatment(self, func: Any, name: str) -> Callable[..., Any] | None:
        """Return the function to call in the place of ``func``; None for a function that is no property's."""
        if name == "__get__":
            return partial(self._read, func)
        if name == "__set__":
            return partial(self._assign, func)
        if func is torch.Tensor.requires_grad_:
            return self._require_grad
        if func is torch.Tensor.is_inference:
            return self._is_inference
        if name in DTYPE_ARITHMETIC:
            return partial(self._combine_dtypes, func)
        return partial(self._read_dtype, func) if name in DTYPE_METHODS or func is torch.Tensor.type else None

    def _read_dtype(self, method: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self._tape.dtypes.note(tensor.dtype, self._tape.name_of(tensor))
        return method(tensor, *args, **kwargs)

    def _combine_dtypes(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        dtypes = self._tape.dtypes
        for item in args:
            if isinstance(item, torch.Tensor):
                dtypes.note(item.dtype, self._tape.name_of(item))
        dtypes.any = dtypes.names_precision = True  # half precision with another dtype can give the other dtype
        return func(*args, **kwargs)

    def _read(self, getter: Any, tensor: torch.Tensor, *args: Any) -> Any:
        """Return a property of a tensor.

        Raises:
            NotPortableError: the value can differ on the trainer.
        """
        tape, name = self._tape, _property_name(getter)
        if name in DTYPE_PROPERTIES:
            return self._read_dtype(getter, tensor, *args)
        if name in {IS_CUDA, "device"}:
            return tape.modes.read(name) if name == IS_CUDA else tape.modes.device(getter(tensor, *args))
        if name == "requires_grad":
            own = tape.name_of(tensor)
            if (inputs := tape.constants.origins_of(own)) is not None:
                tape.modes.note_requires_grad(inputs, computed=own not in tape.inputs)
                return getter(tensor, *args)  # a fake input requires gradients as assumed
        if name in SIZE_PROPERTIES:
            if name in SIZE_READS:
                tape.read_sizes(tensor)
            return getter(tensor, *args)
        if name == GRADIENT and (path := self._buffer_path(tensor)):
            self._refuse_both(path, self._trained)
            tape.reads.absent[f"{path}.{GRADIENT}"] = None
            return None
        if name == "_version" and self._is_made_here(tensor):
            return UnusedNumber("the version of a tensor")
        if f"torch.Tensor.{name}" in OPS:
            return tape.store(OpCall(name=f"torch.Tensor.{name}", args=(tape.argument(tensor),)), getter(tensor, *args))
        raise NotPortableError(
            f"the forward reads .{name} of a tensor, and the value can differ on the trainer. Remedy: pass the value "
            "as an argument of the forward"
        )

    def _is_inference(self, tensor: torch.Tensor) -> bool:
        if not self._is_made_here(tensor):
            raise NotPortableError(
                "the forward asks whether a tensor of the caller is an inference tensor. Remedy: pass the answer as an "
                "argument of the forward"
            )
        return bool(self._tape.modes.read(INFERENCE))

    def _assign(self, setter: Any, tensor: torch.Tensor, value: Any) -> None:
        """Set a property; only ``requires_grad = True`` is possible.

        Raises:
            NotPortableError: another property, or a tensor of the caller or of a parameter.
        """
        name = _property_name(setter)
        if name != "requires_grad":
            raise _sets(name, "a tensor")
        self._require_grad(tensor, value)

    def _require_grad(self, tensor: torch.Tensor, requires_grad: Any = True) -> torch.Tensor:
        """Name a tensor anew, with gradients from here on.

        Raises:
            NotPortableError: no gradients are wanted, or the tensor is the caller's or a parameter.
        """
        tape, path = self._tape, self._tape.attributes.get(id(tensor))
        name = tape.name_of(tensor)
        if path is not None and path != self._buffer_path(tensor):
            raise _sets("requires_grad", f"the parameter {path}")
        if path is not None:
            self._refuse_both(path, [item.removesuffix(f".{GRADIENT}") for item in tape.reads.absent])
            self._trained.add(path)
        if name in tape.inputs or requires_grad is not True:
            raise _sets("requires_grad", f"the argument {name}" if name in tape.inputs else "a tensor")
        with tape.no_recording():
            tensor.requires_grad_()
        tape.store(OpCall(name=REQUIRE_GRAD, args=(Ref(name),)), tensor)
        return tensor

    @staticmethod
    def _refuse_both(path: str, others: Collection[str]) -> None:
        """Refuse a forward that makes a buffer require gradients, and reads the gradient."""
        if path in others:
            raise NotPortableError(
                f"the forward makes the buffer {path} require gradients, and reads them. Remedy: an nn.Parameter"
            )

    def _buffer_path(self, tensor: torch.Tensor) -> str | None:
        path = self._tape.attributes.get(id(tensor))
        return path if path in dict(self._tape.root.named_buffers(remove_duplicate=False)) else None

    def _is_made_here(self, tensor: torch.Tensor) -> bool:
        """Whether the forward has made a tensor's memory."""
        tape = self._tape
        given = [*tape.root.parameters(), *tape.root.buffers(), *(tape.tensors[name] for name in tape.inputs)]
        return tape.known_name(tensor) is not None and memory_id(tensor) not in {memory_id(item) for item in given}


def _sets(name: str, of: str) -> NotPortableError:
    return NotPortableError(f"the forward sets {name} of {of}. Remedy: a new tensor, for example with detach()")


class UnusedNumber:
    """A number that a forward may keep, and not use: the number can differ on the trainer."""

    def __init__(self, text: str) -> None:
        self._text = text


def _refuse(number: UnusedNumber, *_args: Any) -> Any:
    raise NotPortableError(
        f"the forward uses {number._text}, which can differ on the trainer. Remedy: leave the number out"  # noqa: SLF001
    )


for _name in "eq ne lt le gt ge hash bool int index float add radd sub rsub mul rmul str format".split():
    setattr(UnusedNumber, f"__{_name}__", _refuse)


def _property_name(method: Any) -> str:
    """Name of the property with ``method`` as getter or setter."""
    owner = method.__self__
    return str(getattr(owner, "fget", owner).__name__)
