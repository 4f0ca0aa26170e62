"""Tensors of no module in a forward: tables in lists, closures and globals, and NumPy arrays made into tensors.

Such a tensor becomes a constant of the program, unless the forward writes to the tensor. The values of a tensor that is
computed from constants alone are known: the forward may read the values, and decide by the values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import as_tensor, asarray, nn  # the attributes of torch are replaced during a recording
from torch import tensor as make_tensor

from model_factory.errors import NotPortableError
from model_factory.limits import MAX_CONSTANT_BYTES
from model_factory.program.codec.constants import constant_step
from model_factory.program.ir import (
    Argument,
    AttributeRead,
    Constant,
    ModuleCall,
    OpCall,
    OwnBackward,
    Program,
    Ref,
    Step,
    TorchConst,
    out_names,
    step_arguments,
)
from model_factory.program.runtime.interpreter import Runner
from model_factory.program.torch_names import torch_name
from model_factory_server.export.error_texts import foreign_tensor
from model_factory_server.export.torch_private import (
    FakeTensor,
    FakeTensorMode,
    detach_op,
    empty_op,
    grouped_op,
    lift_op,
    memory_id,
    pytree,
    without_fakes,
)
from model_factory_server.export.trace.rewrites import Call

if TYPE_CHECKING:
    from model_factory_server.export.trace.tape import Tape

_MAKERS = (make_tensor, as_tensor, asarray)
_PLAIN = (bool, int, float, str, type(None), TorchConst, type(Ellipsis))
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Constants:
    """Adds tensors of no module to a tape."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._fakes: dict[int, torch.Tensor] = {}  # id of a tensor of no module -> fake tensor
        self._kept: list[tuple[torch.Tensor, Constant]] = []  # tensors that outlive the call, as recorded
        self._fake_ids: dict[int, torch.Tensor] = {}  # memory of a fake tensor -> tensor that outlives the call
        self._written: set[int] = set()  # memory of tensors that the forward has written to

    def with_fakes(self, values: Any) -> Any:
        """Return the arguments of a call with a fake tensor in the place of each tensor of no module."""
        kinds = {type(leaf) for leaf in pytree.tree_leaves(values)}  # isinstance would count as a use of a constant
        if all(issubclass(kind, FakeTensor) for kind in kinds if issubclass(kind, torch.Tensor)):
            return values
        return pytree.tree_map(lambda leaf: self.fake(leaf) if issubclass(type(leaf), torch.Tensor) else leaf, values)

    def fake(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the fake tensor of a tensor of no module; other tensors as given.

        Raises:
            NotPortableError: the tensor cannot be a constant.
        """
        if isinstance(tensor, FakeTensor):
            return tensor
        if id(tensor) not in self._fakes:
            self._fakes[id(tensor)] = self._add(tensor, outlives=True)
        return self._fakes[id(tensor)]

    def lift(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a fake tensor for a new tensor that the forward makes of Python's or NumPy's numbers."""
        with self._tape.no_recording():
            is_arrays = not tensor.untyped_storage().resizable()  # the memory belongs to an array of NumPy
            return self._add(tensor, outlives=is_arrays)

    def forget_unnamed(self) -> None:
        """Forget fake tensors without a name on the tape."""
        self._fakes = {key: fake for key, fake in self._fakes.items() if self._tape.known_name(fake) is not None}

    def from_numpy(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Return a call that makes a tensor, with a constant in the place of scalars and arrays of NumPy."""
        if func is torch.Tensor.new_tensor:  # the dtype is the dtype of the first argument
            return func, pytree.tree_map(_plain_numbers, args), pytree.tree_map(_plain_numbers, kwargs)
        if func not in _MAKERS or not any(map(_is_of_numpy, pytree.tree_leaves((args, kwargs)))):
            return func, args, kwargs
        data, *_ = args or (kwargs["data"],)
        with self._tape.no_recording(), without_fakes():
            made = as_tensor(data)
        return as_tensor, (self.lift(made),), {name: value for name, value in kwargs.items() if name != "data"}

    def _add(self, tensor: torch.Tensor, *, outlives: bool) -> torch.Tensor:
        tape = self._tape
        if (
            type(tensor) is not torch.Tensor
            or tensor.requires_grad
            or tensor.layout is not torch.strided
            or tensor.device.type != "cpu"
            or tensor.is_quantized
        ):
            raise NotPortableError(foreign_tensor(tape.root))
        if tensor.nbytes > MAX_CONSTANT_BYTES:
            raise NotPortableError(
                f"{foreign_tensor(tape.root)}; a program holds tensors of at most {MAX_CONSTANT_BYTES} bytes"
            )
        with tape.no_recording(), without_fakes():
            value = tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
            step = constant_step(value, f"v{len(tape.steps)}")
        with tape.no_recording():
            fake = tape.make_fake(value)
        tape.steps.append(step)
        tape.know(fake, step.out)
        if outlives:
            self._kept.append((tensor, step))
            self._fake_ids[memory_id(fake)] = tensor
        return fake

    def note_write(self, memory: set[int]) -> None:
        """Note writes of the forward to memory of fake tensors.

        Raises:
            NotPortableError: a tensor of no module is there, and the next call would see the new values.
        """
        self._written |= memory
        if not memory.isdisjoint(self._fake_ids):
            raise NotPortableError(
                "the forward writes to a tensor that is neither an input nor a parameter or buffer of the module. "
                "Remedy: register the tensor with register_buffer(name, tensor, persistent=False)"
            )

    def origins_of(self, name: str) -> list[str] | None:
        """Return the floating inputs of a value; None if a parameter, buffer or module takes part."""
        is_input = name in self._tape.inputs
        # After an op in place, a value may depend on later steps: then all steps count.
        is_changed = self.is_written(name) if is_input else bool(self._written)
        found = {name}
        for step in reversed(self._tape.steps):
            if found.isdisjoint(out_names(step)) and not is_changed:
                continue
            if isinstance(step, ModuleCall | AttributeRead):
                return None
            if isinstance(step, OpCall | OwnBackward):
                parts = (*_parts(step_arguments(step)),)
                found |= {part.name for part in parts if isinstance(part, Ref)}
        return [item for item in self._tape.inputs if item in found and self._tape.tensors[item].is_floating_point()]

    def check_unchanged(self) -> None:
        """Check that the tensors of no module have the recorded values at the end of the forward.

        Raises:
            NotPortableError: the forward has changed a tensor, for example through an array of NumPy.
        """
        with without_fakes():
            now = [constant_step(tensor.resolve_conj().resolve_neg(), step.out) for tensor, step in self._kept]
        for step, (_, recorded) in zip(now, self._kept, strict=True):
            if step != recorded:
                raise NotPortableError(
                    "the forward changes the values of a tensor or array of no module. Remedy: keep the values in a "
                    "buffer, and update the buffer in place"
                )

    def value_of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return the values of a fake tensor that is computed from constants alone; ``None`` for another tensor."""
        name = self._tape.known_name(tensor)
        steps = None if name is None else self._makers(name)
        if name is None or steps is None:
            return None
        program = Program(inputs=(), steps=steps, result=Ref(name))
        with self._tape.no_recording(), without_fakes(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            before = torch.get_rng_state()
            found = Runner(program).run(nn.Module(), [])
            is_random = not torch.equal(before, torch.get_rng_state())
        return found if isinstance(found, torch.Tensor) and not is_random else None

    def with_known_numbers(self, index: Any) -> Any:
        """Return an index with numbers in the place of integer tensors of rank 0 that are computed from constants.

        Torch takes such a tensor as a number, for example the step of a noise scheduler.
        """
        if type(index) is tuple:
            return tuple(map(self.with_known_numbers, index))
        is_number = isinstance(index, torch.Tensor) and not index.dim() and index.dtype in _INTEGERS
        known = self.value_of(index) if is_number else None
        if known is None:
            return index
        with self._tape.no_recording(), without_fakes():
            return int(known)

    def _makers(self, name: str) -> tuple[Step, ...] | None:
        """Return the steps that compute a value from constants; ``None`` if the value depends on anything else."""
        makers = {out: index for index, step in enumerate(self._tape.steps) for out in out_names(step)}
        needed: set[int] = set()
        pending = [name]
        while pending:
            wanted = pending.pop()
            index = makers.get(wanted)
            if index is None or self.is_written(wanted):
                return None
            step = self._tape.steps[index]
            if index in needed or isinstance(step, Constant):
                needed.add(index)
                continue
            parts = list(_parts((step.args, step.kwargs))) if isinstance(step, OpCall) else [None, object()]
            if not all(isinstance(part, (*_PLAIN, Ref)) for part in parts):
                return None
            needed.add(index)
            pending += [part.name for part in parts if isinstance(part, Ref)]
        return tuple(self._tape.steps[index] for index in sorted(needed))

    def is_written(self, name: str) -> bool:
        """Whether the forward has written to the memory of a value."""
        tensor = self._tape.tensors.get(name)
        return tensor is not None and memory_id(tensor) in self._written


def _is_of_numpy(value: Any) -> bool:
    return issubclass(type(value), np.ndarray | np.generic)


def _plain_numbers(value: Any) -> Any:
    return value.tolist() if _is_of_numpy(value) else value


def _parts(argument: Argument) -> Iterator[Argument]:
    if isinstance(argument, list | tuple):
        for item in argument:
            yield from _parts(item)
    elif isinstance(argument, Mapping):
        yield from _parts(list(argument.values()))
    elif isinstance(argument, slice):
        yield from _parts((argument.start, argument.stop, argument.step))
    else:
        yield argument


def _grouped_result(
    rows: torch.Tensor, matrices: torch.Tensor, ends: Any = None, _bias: Any = None, out_dtype: Any = None
) -> torch.Tensor:
    """The fake result of a product of groups: torch's own formula refuses dtypes that the kernel of a CPU takes."""
    sizes: tuple[Any, ...] = (rows.shape[-2], matrices.shape[-1])
    if rows.dim() == matrices.dim():
        sizes = (ends.shape[0] if rows.dim() == 2 else rows.shape[0], *sizes)
    return rows.new_empty(sizes, dtype=out_dtype)


class NotingFakeMode(FakeTensorMode):  # type: ignore[no-untyped-call]  # of torch's own base
    """The mode for fake tensors: adds tensors of older constructors to a tape, which torch does not notify."""

    tape: Tape | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an op of torch."""
        tape = self.tape
        if func is grouped_op:
            return _grouped_result(*args, **(kwargs or {}))
        if tape is None or not tape.shape_env.in_forward:  # a call that torch has notified the tape of
            return super().__torch_dispatch__(func, types, args, kwargs)
        if func is lift_op and not isinstance(args[0], FakeTensor):
            return tape.constants.lift(args[0])
        with tape.no_recording():
            result: Any = super().__torch_dispatch__(func, types, args, kwargs)
            if func is empty_op:
                made = OpCall(
                    name="torch.empty",
                    args=(tape.argument(args[0]),),
                    kwargs={"dtype": TorchConst(torch_name(result.dtype))},
                )
                return tape.store(made, result)
            if func is detach_op:
                return tape.store(OpCall(name="torch.Tensor.detach", args=(tape.argument(args[0]),)), result)
        return result
