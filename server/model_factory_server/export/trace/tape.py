"""Records a forward's torch calls as steps.

A call of a torch module is one step; its inside is not recorded. Questions about sizes are not recorded: the results
are symbols, and arguments of later steps contain the symbols as expressions.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from model_factory.errors import NotPortableError
from model_factory.program.ir import AttributeRead, Device, ModuleCall, OpCall, Outcome, OwnBackward, Ref, Step
from model_factory.program.ops import OPS
from model_factory_server.export.conditions.asserts import is_asserted
from model_factory_server.export.conditions.dtype_reads import DtypeReads
from model_factory_server.export.conditions.inner_blocks import InnerBlocks
from model_factory_server.export.conditions.message_texts import is_forward_in_message
from model_factory_server.export.conditions.module_reads import ModuleReads
from model_factory_server.export.conditions.size_requirements import SizeRequirements
from model_factory_server.export.conditions.symbols import DecisionShapeEnv, SymbolTable
from model_factory_server.export.error_texts import foreign_tensor, function_text
from model_factory_server.export.torch_private import (
    FakeTensor,
    check_function,
    enable_python_dispatcher,
    memory_id,
    without_fakes,
)
from model_factory_server.export.trace.arguments import ArgumentWriter
from model_factory_server.export.trace.constants import Constants
from model_factory_server.export.trace.decisions import DecidesByValuesError, ValueDecisions
from model_factory_server.export.trace.mode_calls import AUTOCAST_REFUSAL, CallerDevice, ModeCalls, autocast_state
from model_factory_server.export.trace.module_calls import ModuleCalls
from model_factory_server.export.trace.op_kinds import (
    COMPOSITES,
    DECIDING_OPS,
    DECISIONS,
    KERNELS,
    MAYBE_ITSELF,
    SIZE_ARITHMETIC,
    SIZE_METHODS,
    SIZE_READS,
    SQUEEZES,
    TEXT_METHODS,
    VALUE_METHODS,
    VALUE_READS,
    WRITES,
)
from model_factory_server.export.trace.properties import Properties
from model_factory_server.export.trace.rewrites import as_recorded

_Makes = ModuleCall | OpCall | OwnBackward
_Convert = Callable[[str, torch.Tensor], torch.Tensor]  # (name of a step's result, tensor) -> tensor for the forward
_OP_NAMES: Mapping[Any, str] = {function: name for name, function in reversed(list(OPS.items()))}
_NEEDS_NUMBERS = re.compile(r"expected to contain only concrete integers|with symbolic sizes/strides")


class Tape(TorchFunctionMode):
    """The mode of torch to record the calls of a run."""

    def __init__(
        self,
        shape_env: DecisionShapeEnv,
        symbols: SymbolTable,
        root: nn.Module,
        inputs: tuple[str, ...],
        outcomes: Sequence[Outcome] = (),
        inner: InnerBlocks | None = None,
        dtype: torch.dtype | None = None,
        *,
        make_fake: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Make an empty tape.

        Args:
            shape_env: Environment of the symbolic sizes.
            symbols: Meanings of the symbols.
            root: The module with the forward.
            inputs: Names of the program's inputs.
            outcomes: Given outcomes of the first decisions by values, in order.
            inner: Inner blocks that may become steps; None records the inside of every custom block.
            dtype: Floating dtype of the recording, if other than the module's own.
            make_fake: Returns a fake tensor for a tensor.
        """
        super().__init__()
        self.inner_blocks = inner
        self.dtype = dtype
        self.inlined: dict[str, str] = {}
        """Reason for each custom block without a step of its own, by path."""
        self.shape_env = shape_env
        self.symbols = symbols
        self.root = root
        self.inputs = inputs
        self.make_fake = make_fake
        self.steps: list[Step] = []
        self.attributes: dict[int, str] = {}
        """``id`` of a parameter, buffer or plain tensor -> path."""
        self.paths: dict[nn.Module, str] = {module: path for path, module in root.named_modules()}
        self.written: set[str] = set()
        """Paths of parameters that the forward writes to."""
        self.paused = 0
        """Depth of :meth:`no_recording`."""
        self.dtypes = DtypeReads()
        self.decisions = ValueDecisions(inputs, self.steps, symbols, outcomes)
        self.sizes = SizeRequirements(symbols, self.steps)
        self.module_calls = ModuleCalls(self)
        self.modes = ModeCalls(self.steps, lambda: self.paused > 0, self._is_forward)
        self.reads = ModuleReads(root, self._is_forward, self._with_symbolic_sizes)
        self.generators: dict[int, str] = {}
        """``id`` of a generator of random numbers among the arguments -> name."""
        self.argument = ArgumentWriter(self.name_of, symbols, self.dtypes, self.generators).write
        """Writes a run-time value as a step's argument."""
        shape_env.decide_by_value = self.decisions.decide_number
        self.constants = Constants(self)
        self.properties = Properties(self)
        self.tensors: dict[str, torch.Tensor] = {}
        """Tensors by name, kept alive, since the id of a deleted tensor is used again."""
        self.names: dict[int, str] = {}  # id of a tensor -> name in the program
        self._symbolic: dict[int, torch.Tensor] = {}  # id of a parameter -> the parameter with symbolic sizes
        self._alive: list[Any] = []
        self._autocast = autocast_state()

    def _is_forward(self) -> bool:
        return not self.paused and self.shape_env.in_forward

    def know(self, tensor: torch.Tensor, name: str) -> None:
        """Note the name of a tensor in the program."""
        self.names[id(tensor)] = name
        self.tensors[name] = tensor

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record torch calls while this is entered; ``torch_patches.patch_torch`` adds calls of modules."""
        self._autocast = autocast_state()
        with self.shape_env.run_by(forward=True), self:
            yield
            self.sizes.add_new()
        self.constants.check_unchanged()

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        with ExitStack() as stack:
            if name in KERNELS:
                stack.enter_context(self.shape_env.in_kernel())
            if name in COMPOSITES:
                stack.enter_context(enable_python_dispatcher())
            return self._run(func, args, kwargs)

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.paused:
            return func(*args, **kwargs)
        with self.shape_env.run_by(forward=False):
            return self._record(func, *self.modes.on_cpu(func, args, kwargs))

    def read_sizes(self, tensor: torch.Tensor) -> None:
        """Note a read of sizes or rank of a tensor."""
        path, name = self.attributes.get(id(tensor)), self.names.get(id(tensor))
        if path is not None:
            self.sizes.read_parameter(path, tensor)
        elif name not in self.inputs:
            self.sizes.require_ones()
        self.sizes.read_result(name)

    def _with_symbolic_sizes(self, path: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a torch module's parameter, read by the forward itself, with symbolic sizes."""
        if id(tensor) not in self._symbolic:
            with self.no_recording():
                symbolic = self.symbols.own(path, tensor)
            self._alive += [tensor, symbolic]
            self.attributes[id(symbolic)] = path
            self._symbolic[id(tensor)] = self._symbolic[id(symbolic)] = symbolic
        return self._symbolic[id(tensor)]

    @contextmanager
    def no_recording(self) -> Iterator[None]:
        """Record nothing while this is entered, since the code that runs is not the forward's own."""
        self.paused += 1
        try:
            with self.shape_env.run_by(forward=False):
                yield
        finally:
            self.paused -= 1

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.sizes.add_new()
        func, args, kwargs = self.constants.from_numpy(func, *self.constants.with_fakes((args, kwargs)))
        with self.shape_env.run_by(forward=True):  # an order of contraction is a decision by sizes
            func, args, kwargs = as_recorded(func, args, kwargs)
        if func is torch.device:
            given = [*args, *kwargs.values()]
            return given[0] if len(given) == 1 and type(given[0]) is CallerDevice else func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in {"__getitem__", "__setitem__"} and len(args) > 1:
            args = (args[0], self.constants.with_known_numbers(args[1]), *args[2:])
        self.sizes.touched.update(self.names[id(arg)] for arg in args if id(arg) in self.names)
        if (answer := self.properties.treatment(func, name)) is not None:
            return answer(*args, **kwargs)
        if func is torch.Tensor.__iter__:
            return iter(torch.unbind(args[0]))
        if name in SIZE_METHODS or name in SIZE_ARITHMETIC:
            if name in SIZE_READS:
                self.read_sizes(args[0])
            return func(*args, **kwargs)
        if name in VALUE_READS and (known := self.constants.value_of(args[0])) is not None:
            with self.no_recording(), without_fakes():
                return func(known, *args[1:], **kwargs)
        if name == "__contains__":
            found = self._record_op(torch.eq, "eq", args, kwargs)
            return self.decisions.decide("bool", Ref(self.name_of(self._record_op(torch.any, "any", (found,), {}))))
        if self._reads_values(func, name):
            return self._decide(func, name, args, kwargs)
        return self._record_op(func, name, args, kwargs)

    @staticmethod
    def _reads_values(func: Any, name: str) -> bool:
        """Whether a call brings values of tensors to the forward."""
        return (
            name in (*DECISIONS, *TEXT_METHODS, *VALUE_METHODS)
            or func is check_function
            or (name in DECIDING_OPS and func in _OP_NAMES)
        )

    def _decide(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make a guard of a call that brings values of tensors to the forward.

        Raises:
            DecidesByValuesError: the value cannot be a guard.
        """
        if func is check_function:
            return self._check(*args, **kwargs)
        if name in DECISIONS:
            asserts = name == "__bool__" and is_asserted(sys._getframe(1))  # noqa: SLF001  there is no other way
            return self.decisions.decide(DECISIONS[name], Ref(self.name_of(args[0])), asserts=asserts)
        if name in DECIDING_OPS:
            return self._decide_by_op(_OP_NAMES[func], args, kwargs)
        if name in TEXT_METHODS and is_forward_in_message():
            return "a tensor"
        raise DecidesByValuesError

    def _check(self, condition: Any, message: str) -> None:
        """Check a condition on sizes or values, as ``torch._assert`` does."""
        if isinstance(condition, torch.Tensor):
            condition = self.decisions.decide("bool", Ref(self.name_of(condition)), asserts=True)
        with self.shape_env.run_by(forward=True):
            if not condition:
                raise AssertionError(message)

    def _decide_by_op(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome:
        out = f"v{len(self.steps)}"
        step_kwargs = {key: self.argument(arg) for key, arg in kwargs.items()}
        self.steps.append(OpCall(name=op, args=tuple(map(self.argument, args)), kwargs=step_kwargs, out=out))
        return self.decisions.decide("bool", Ref(out))

    def _record_op(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        op = _OP_NAMES.get(func)
        if op is None:
            raise NotPortableError(
                f"the forward calls {function_text(func)}, which is not in the table of ops. Remedy: use another "
                "function of torch, or add the op (CONTRIBUTING.md)"
            )
        if autocast_state() != self._autocast:  # set by a function, not by torch.autocast
            raise NotPortableError(AUTOCAST_REFUSAL)
        if name in SQUEEZES:
            self._fix_squeezed(args, kwargs)
        self._note_written(name, args, kwargs)
        step_args = tuple(self.argument(arg) for arg in args)
        step_kwargs = {
            key: Device() if key == "device" and arg is not None else self.argument(arg) for key, arg in kwargs.items()
        }
        if op == "torch.Tensor.to" and len(args) > 1 and isinstance(args[1], str):
            step_args = (step_args[0], Device(), *step_args[2:])
        result = _run_on_symbols(func, args, kwargs)
        if name in MAYBE_ITSELF and any(result is arg for arg in args):
            result = torch.ops.aten.alias(result)  # so that recordings in every dtype have two tensors
        return self.store(OpCall(name=op, args=step_args, kwargs=step_kwargs), result)

    def _note_written(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note an op that writes to a parameter's memory, even through ``.data``, which autograd does not notice."""
        in_place = name in WRITES or (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace")
        out = kwargs.get("out")
        written = [args[0] if args else kwargs.get("input")] if in_place else []
        written += out if isinstance(out, tuple | list) else [out]
        memory = {memory_id(item) for item in written if isinstance(item, torch.Tensor)}
        if not memory:
            return
        self.constants.note_write(memory)
        for path, parameter in self.root.named_parameters(remove_duplicate=False):
            symbolic = self._symbolic.get(id(parameter), parameter)
            if not memory.isdisjoint({memory_id(item) for item in (parameter, symbolic)}):
                self.written.add(path)

    def _fix_squeezed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Make conditions of sizes that ``squeeze`` compares with 1, since the rank of the result depends on them."""
        tensor, dim = args[0], kwargs.get("dim", args[1] if len(args) > 1 else None)
        dims = range(tensor.dim()) if dim is None else (dim if isinstance(dim, tuple | list) else (dim,))
        self.sizes.require_ones()
        with self.shape_env.run_by(forward=True):
            for axis in dims:
                bool(tensor.shape[axis] == 1)

    def store(self, step: _Makes, result: Any, convert: _Convert = lambda _name, tensor: tensor) -> Any:
        """Add a step and return its result, with ``convert(name, tensor)`` in the place of each tensor."""
        name = f"v{len(self.steps)}"
        if isinstance(result, tuple | list) and not isinstance(result, torch.Size):
            names = tuple(f"{name}_{index}" for index in range(len(result)))
            self.steps.append(replace(step, out=names))
            return _like(result, [self._name_result(item, at, convert) for at, item in zip(names, result, strict=True)])
        self.steps.append(replace(step, out=name))
        return self._name_result(result, name, convert)

    def _name_result(self, result: Any, name: str, convert: _Convert) -> Any:
        if isinstance(result, torch.Tensor):
            result = convert(name, result)
            self.know(result, name)
            self.symbols.add_made(name, result)
        elif isinstance(result, torch.SymInt | torch.SymFloat | torch.SymBool):
            self.symbols.add_value(name, result)
        elif isinstance(result, dict):
            return {key: self._name_item(item, name, key, convert) for key, item in result.items()}
        elif isinstance(result, tuple | list) and not isinstance(result, torch.Size):
            return _like(result, [self._name_item(item, name, index, convert) for index, item in enumerate(result)])
        return result

    def _name_item(self, item: Any, name: str, key: Any, convert: _Convert) -> Any:
        item_name = f"{name}_{len(self.steps)}"
        self.steps.append(OpCall(name="getitem", args=(Ref(name), self.argument(key)), out=item_name))
        return self._name_result(item, item_name, convert)

    def known_name(self, tensor: torch.Tensor) -> str | None:
        """Return the name of a tensor without a step for the tensor; ``None`` for a tensor without a name."""
        return self.names.get(id(tensor))

    def name_of(self, tensor: torch.Tensor) -> str:
        """Return the name of a tensor; a step is added for a parameter, a buffer or a tensor of no module."""
        known = self.names.get(id(tensor))
        if known is not None:
            self.sizes.touched.add(known)
            return known
        path = self.attributes.get(id(tensor))
        if path is None and not isinstance(tensor, FakeTensor):
            return self.name_of(self.constants.fake(tensor))
        if path is None:
            raise NotPortableError(foreign_tensor(self.root))
        name = f"v{len(self.steps)}"
        self.steps.append(AttributeRead(path=path, out=name))
        self.know(tensor, name)
        self.sizes.note_parameter(path, tensor)
        return name


def _run_on_symbols(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a function of torch on fake tensors; with torch's Python code, if the C++ code makes numbers of sizes.

    Fake tensors have no random numbers, so no generator is passed: torch takes no symbols beside one, nor beside None.
    """
    kwargs = {key: value for key, value in kwargs.items() if key != "generator"}
    try:
        return func(*args, **kwargs)
    except RuntimeError as error:
        if not _NEEDS_NUMBERS.search(str(error)):
            raise
    with enable_python_dispatcher():
        return func(*args, **kwargs)


def _like(container: Any, items: list[Any]) -> Any:
    """Return a list or tuple of the same class with other items, or the container itself if no item has changed."""
    if all(one is other for one, other in zip(container, items, strict=True)):
        return container
    return container._make(items) if hasattr(container, "_make") else type(container)(items)
