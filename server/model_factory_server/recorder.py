"""Records a module's forward as a program.

The forward runs once on fake tensors whose sizes are symbols, under a mode that writes down each torch call. Python
control flow simply runs; what remains is the trace, and the conditions on sizes that the run relied on. Calls of stock
modules are one step each and are not entered. Where the forward decides something by the *values* of a tensor, the
recording fails and says where.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.fx.experimental import _config as symbolic_config
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    GuardOnDataDependentSymNode,
    StatelessSymbolicContext,
)
from torch.overrides import TorchFunctionMode

from model_factory.descriptor.stock import is_stock, torch_name
from model_factory.errors import CallFormError, NotPortableError
from model_factory.graph.call_form import Recorded, call_form, leaf_names, rebuild
from model_factory.graph.ops import OPS
from model_factory.graph.program import Argument, Device, Program, Ref, Size, Step, TorchConst
from model_factory.graph.signature import Signature
from model_factory_server.dtypes import DtypeDecidesError, ReadDtype, merge_dtypes, settle_dtypes
from model_factory_server.symbols import DecisionShapeEnv, SymbolTable

_OP_NAMES: Mapping[Any, str] = {function: name for name, function in reversed(list(OPS.items()))}

# Answered from the fake tensor and not recorded: their answers are sizes, which stay symbols.
_SIZE_QUESTIONS = frozenset(
    ("size dim ndimension numel nelement __len__ stride storage_offset is_contiguous is_nested is_same_size").split()
)
_DTYPE_QUESTIONS = frozenset("is_floating_point is_complex is_signed element_size".split())
_SIZE_PROPERTIES = frozenset("shape ndim device layout nbytes names is_sparse is_quantized is_nested is_meta".split())
_DTYPE_PROPERTIES = frozenset("dtype itemsize".split())
# Ops whose result sizes follow from a formula: what their kernels ask of sizes besides is about speed or validity.
_KERNELS = frozenset(
    (
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear matmul bmm baddbmm "
        "addmm layer_norm group_norm batch_norm instance_norm rms_norm scaled_dot_product_attention softmax "
        "gelu silu relu"
    ).split()
)
# Stock modules that give what they get its sizes back. They are answered by this rule: running them on symbols costs
# seconds, and what they refuse they will refuse themselves when the program runs.
_SAME_SIZES = (
    *(nn.TransformerEncoder, nn.TransformerDecoder, nn.LayerNorm, nn.Dropout, nn.Identity),
    *(nn.ReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.LeakyReLU),
)
_SYMBOLIC_CONFIG: Any = symbolic_config  # a module whose type torch does not declare
_SQUEEZES = frozenset("squeeze squeeze_".split())

_REMEDY = "decide with torch.where, or by an argument of the forward, so that the forward is the same for all values"


def record(module: nn.Module, arguments: Mapping[str, Any]) -> Recorded:
    """Record ``module`` for the call form of ``arguments`` (bound to its forward's parameters, real tensors inside).

    The module's training flags are taken as they are and become a condition of the result.

    Raises:
        NotPortableError: the forward cannot be written down as a program.
        CallFormError: the forward itself refuses these arguments.
    """
    first = _Recording(module, arguments, None)
    program = first.run()
    dtypes: tuple[tuple[str, str], ...] = ()
    if first.tape.dtype_read:
        # Where only dtype arguments follow a change of dtype, they mean "the dtype of that value". Where anything else
        # does, or the forward refuses the other dtype, the program is limited to the dtypes it was recorded with.
        try:
            program = merge_dtypes(program, _Recording(module, arguments, first.other_dtype).run())
        except (DtypeDecidesError, NotPortableError, CallFormError):
            program, dtypes = settle_dtypes(program), first.float_dtypes()
    return Recorded(
        form=first.form, program=program, training=training_flags(module), dtypes=dtypes, guards=first.symbols.guards()
    )


def record_modes(module: nn.Module, arguments: Mapping[str, Any]) -> list[Recorded]:
    """Record in eval and in train mode; one program where the two do not differ. Flags are restored."""
    before = [(item, item.training) for item in module.modules()]
    try:
        # Usually neither mode nor dtype decides anything: two recordings that differ in both show that for both.
        evaluating = _Recording(module.eval(), arguments, None)
        training = _Recording(module.train(), arguments, evaluating.other_dtype)
        try:
            program = merge_dtypes(evaluating.run_in(False), training.run_in(True))
        except (DtypeDecidesError, NotPortableError, CallFormError):
            pass
        else:
            if evaluating.symbols.guards() == training.symbols.guards():
                return [Recorded(form=evaluating.form, program=program, guards=evaluating.symbols.guards())]
        recordings = [record(module.train(mode), arguments) for mode in (False, True)]
    finally:
        for item, flag in before:
            item.training = flag
    evaluated, trained = (replace(item, training=()) for item in recordings)
    return [evaluated] if evaluated == trained else recordings


def training_flags(module: nn.Module) -> tuple[tuple[str, bool], ...]:
    """The training flag of a module and of each of its descendants that is not a stock one."""
    return tuple((path, item.training) for path, item in module.named_modules() if not is_stock(item))


class _Recording:
    """One run of a forward on fake tensors."""

    def __init__(self, module: nn.Module, arguments: Mapping[str, Any], dtype: torch.dtype | None) -> None:
        self.module = module
        self.signature = Signature.of(module.forward)
        self.form, self._leaves = call_form(arguments)
        self.names = leaf_names(self.form)
        self.shape_env = DecisionShapeEnv()
        self.fake_mode = FakeTensorMode(shape_env=self.shape_env, allow_non_fake_inputs=False)
        self.symbols = SymbolTable(self.shape_env)
        self.tape = _Tape(self.shape_env, self.symbols, self.module)
        self._arguments = arguments
        self._dtype = dtype

    @property
    def other_dtype(self) -> torch.dtype:
        """A floating dtype that neither the inputs nor the parameters have."""
        tensors = [*self._leaves, *self.module.parameters()]
        return torch.float32 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float64

    def float_dtypes(self) -> tuple[tuple[str, str], ...]:
        """The dtypes of the floating inputs, and of the module's first floating parameter, by name."""
        entries = [
            (name, leaf) for name, leaf in zip(self.names, self._leaves, strict=True) if leaf.is_floating_point()
        ]
        parameters = (
            (f"attr:{name}", item) for name, item in self.module.named_parameters() if item.is_floating_point()
        )
        entries += [first] if (first := next(parameters, None)) else []
        return tuple((name, torch_name(tensor.dtype)) for name, tensor in entries)

    def run_in(self, training: bool) -> Program:
        """Run with every training flag of the module set so."""
        self.module.train(training)
        return self.run()

    def run(self) -> Program:
        with _SYMBOLIC_CONFIG.patch(backed_size_oblivious=True):
            # Size-oblivious: an op's broadcasting does not tell size 1 from others; only the forward's decisions do.
            fake_arguments = self._fake_arguments()
            state = self._fake_state()
            result = self._run_forward(fake_arguments, state)
        return Program(inputs=self.names, steps=tuple(self.tape.steps), result=self.tape.argument(result))

    def _fake_arguments(self) -> dict[str, Any]:
        return rebuild(
            self.form, [self._fake_input(name, leaf) for name, leaf in zip(self.names, self._leaves, strict=True)]
        )

    def _fake_input(self, name: str, leaf: torch.Tensor) -> torch.Tensor:
        # Contiguous: an input's memory layout must not appear in the sizes of the program.
        context: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * leaf.dim())
        # A source of its own name: symbols are named and ordered by it, and so the same in every recording.
        source = ConstantSource(name)
        fake: torch.Tensor = self.fake_mode.from_tensor(
            leaf.detach().contiguous(), source=source, symbolic_context=context
        )
        self.symbols.add_input(name, fake)
        fake = self._in_dtype(fake)
        self.tape.know(fake, name)
        return fake

    def _fake_state(self) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = {}
        by_tensor: dict[int, torch.Tensor] = {}
        named = [
            *self.module.named_parameters(remove_duplicate=False),
            *self.module.named_buffers(remove_duplicate=False),
        ]
        for name, tensor in named:
            if id(tensor) not in by_tensor:
                fake = self._in_dtype(self.fake_mode.from_tensor(tensor, static_shapes=True))
                by_tensor[id(tensor)] = fake
                self.tape.attributes[id(fake)] = name
            state[name] = by_tensor[id(tensor)]
        return state

    def _in_dtype(self, fake: torch.Tensor) -> torch.Tensor:
        if self._dtype is None or not fake.is_floating_point():
            return fake
        with self.fake_mode:
            return fake.detach().to(self._dtype).requires_grad_(fake.requires_grad)

    def _run_forward(self, arguments: dict[str, Any], state: dict[str, torch.Tensor]) -> Any:
        args, kwargs = self.signature.call(arguments)
        try:
            with self.fake_mode, self.tape.recording():
                return torch.func.functional_call(self.module, state, args, kwargs)
        except (GuardOnDataDependentSymNode, DataDependentOutputException, DynamicOutputShapeException) as error:
            raise NotPortableError(
                f"its forward decides by the values of a tensor{_user_line(error)}; a program is the same for all "
                f"values. Remedy: {_REMEDY}"
            ) from error
        except (NotPortableError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the forward is the operator's code: whatever it raises is its refusal
            if "Please convert all Tensors to FakeTensors" in str(error):
                raise NotPortableError(_foreign_tensor(_user_line(error))) from error
            raise CallFormError(
                f"the forward refused the call{_user_line(error)}: {type(error).__name__}: {error}"
            ) from error


def _foreign_tensor(where: str) -> str:
    return (
        f"its forward uses a tensor that is neither an input nor one of its parameters or buffers{where}. "
        "Remedy: register_buffer(name, tensor, persistent=False)"
    )


def _user_line(error: BaseException) -> str:
    """The innermost line outside torch and this package, for the reader of the message."""
    ours = {__file__}
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in ours
        and "/torch/" not in frame.filename
        and "/model_factory/" not in frame.filename
        and Path(frame.filename).name not in {"contextlib.py", "mock.py"}
    ]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line})" if frames else ""


@dataclass
class _Tape(TorchFunctionMode):
    """The mode that writes down torch calls."""

    shape_env: DecisionShapeEnv
    symbols: SymbolTable
    root: nn.Module
    steps: list[Step] = field(default_factory=list)
    attributes: dict[int, str] = field(default_factory=dict)
    """``id`` of a parameter or buffer -> its path."""
    dtype_read: bool = False

    def __post_init__(self) -> None:
        super().__init__()
        self._names: dict[int, str] = {}
        self._alive: list[Any] = []  # an id is only good while its tensor lives
        self._dtype_sources: dict[torch.dtype, str] = {}
        self._entered: set[nn.Module] = set()
        self._paths: dict[nn.Module, str] = {module: path for path, module in self.root.named_modules()}
        self._paused = 0
        self._autocast = _autocast_state()

    def know(self, tensor: torch.Tensor, name: str) -> None:
        """Remember under which name a tensor is reached."""
        self._names[id(tensor)] = name
        self._alive.append(tensor)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record torch calls and calls of stock modules while this is entered."""
        call = nn.Module.__call__

        def recorded_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self._paused:
                return call(module, *args, **kwargs)
            if is_stock(module):
                return self._record_module(call, module, args, kwargs)
            return self._enter(call, module, args, kwargs)

        self.shape_env.inside_op = 0
        try:
            with patch.object(nn.Module, "__call__", recorded_call), self:
                yield
        finally:
            self.shape_env.inside_op = 1

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _KERNELS:
            with self.shape_env.in_kernel():
                return self._answer(func, args, kwargs)
        return self._answer(func, args, kwargs)

    def _answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._paused:
            return func(*args, **kwargs)
        self.shape_env.inside_op += 1
        try:
            return self._meet(func, args, kwargs)
        finally:
            self.shape_env.inside_op -= 1

    def _meet(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if getattr(func, "__name__", "") == "__get__":
            return self._read_property(func, args)
        name = getattr(func, "__name__", "")
        if func is torch.Tensor.__iter__:
            return iter(torch.unbind(args[0]))
        if name in _SIZE_QUESTIONS:
            return func(*args, **kwargs)
        if name in _DTYPE_QUESTIONS or (func is torch.Tensor.type and len(args) == 1 and not kwargs):
            self._note_dtype(args[0])
            return func(*args, **kwargs)
        return self._record_op(func, name, args, kwargs)

    def _read_property(self, getter: Any, args: tuple[Any, ...]) -> Any:
        owner = getter.__self__
        name = getattr(owner, "fget", owner).__name__
        if name in _DTYPE_PROPERTIES:
            self._note_dtype(args[0])
            return getter(*args)
        if name in _SIZE_PROPERTIES:
            return getter(*args)
        if f"torch.Tensor.{name}" in OPS:
            return self._store(Step(call=f"op:torch.Tensor.{name}", args=(self.argument(args[0]),)), getter(*args))
        raise NotPortableError(f"its forward reads .{name} of a tensor, which can differ where the program is run")

    def _note_dtype(self, tensor: torch.Tensor) -> None:
        self.dtype_read = True
        self._dtype_sources[tensor.dtype] = self._tensor_name(tensor)

    def _record_op(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        op = _OP_NAMES.get(func)
        if op is None:
            raise NotPortableError(f"its forward calls {_function_text(func)}, which is not in the table of ops")
        if _autocast_state() != self._autocast:
            raise NotPortableError("its forward changes the autocast mode, which a program cannot carry")
        if name in _SQUEEZES:
            self._fix_squeezed(args, kwargs)
        step_args = tuple(self.argument(arg) for arg in args)
        step_kwargs = {
            key: Device() if key == "device" and arg is not None else self.argument(arg) for key, arg in kwargs.items()
        }
        if op == "torch.Tensor.to" and len(args) > 1 and isinstance(args[1], str):
            step_args = (step_args[0], Device(), *step_args[2:])
        result = func(*args, **kwargs)
        return self._store(Step(call=f"op:{op}", args=step_args, kwargs=step_kwargs), result)

    def _fix_squeezed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Squeezing changes the rank by sizes being 1: make that decision a guard."""
        tensor, dim = args[0], kwargs.get("dim", args[1] if len(args) > 1 else None)
        dims = range(tensor.dim()) if dim is None else (dim if isinstance(dim, tuple | list) else (dim,))
        inside, self.shape_env.inside_op = self.shape_env.inside_op, 0
        for axis in dims:
            bool(tensor.shape[axis] == 1)
        self.shape_env.inside_op = inside

    def _record_module(self, call: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path = self._paths.get(module)
        if path is None:
            raise NotPortableError(
                f"its forward calls a {type(module).__name__} that is not one of its children. "
                "Remedy: make it an attribute of the module, or use the function in torch.nn.functional"
            )
        step = Step(
            call=f"module:{path}",
            args=tuple(self.argument(arg) for arg in args),
            kwargs={key: self.argument(arg) for key, arg in kwargs.items()},
        )
        self._paused += 1
        self.shape_env.inside_op += 1
        try:
            first = next(iter((*args, *kwargs.values())), None)
            sizes = _sizes_after(module, first.shape) if isinstance(first, torch.Tensor) else None
            result = call(module, *args, **kwargs) if sizes is None else first.new_empty(sizes)
        finally:
            self._paused -= 1
            self.shape_env.inside_op -= 1
        return self._store(step, result)

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
                f"its forward assigns {where}, which a program cannot do. Remedy: update a buffer in place"
            )
        return result

    def _store(self, step: Step, result: Any) -> Any:
        name = f"v{len(self.steps)}"
        if isinstance(result, tuple | list) and not isinstance(result, torch.Size):
            names = tuple(f"{name}_{index}" for index in range(len(result)))
            for item_name, item in zip(names, result, strict=True):
                self._name_result(item, item_name)
            self.steps.append(replace(step, out=names))
        else:
            self._name_result(result, name)
            self.steps.append(replace(step, out=name))
        return result

    def _name_result(self, result: Any, name: str) -> None:
        if isinstance(result, torch.Tensor):
            self.know(result, name)
        elif isinstance(result, torch.SymInt | torch.SymFloat | torch.SymBool):
            self.symbols.add_value(name, result)
        elif isinstance(result, tuple | list | dict) and any(isinstance(item, torch.Tensor) for item in result):
            raise NotPortableError("its forward makes a nested result of tensors, which a step cannot name")

    def _tensor_name(self, tensor: torch.Tensor) -> str:
        known = self._names.get(id(tensor))
        if known is not None:
            return known
        path = self.attributes.get(id(tensor))
        if path is None:
            raise NotPortableError(_foreign_tensor(""))
        name = f"v{len(self.steps)}"
        self.steps.append(Step(call=f"attr:{path}", out=name))
        self.know(tensor, name)
        return name

    def argument(self, value: Any) -> Argument:  # noqa: C901  one arm per kind of argument
        """Write a run-time value as a program's argument."""
        if isinstance(value, torch.Tensor):
            return Ref(self._tensor_name(value))
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            return Size(self.symbols.expression(value))
        if value is None or value is Ellipsis or type(value) in {bool, int, float, str}:
            return value
        if isinstance(value, torch.dtype):
            source = self._dtype_sources.get(value)
            return TorchConst(torch_name(value)) if source is None else ReadDtype(torch_name(value), source)
        if isinstance(value, torch.memory_format | torch.layout):
            return TorchConst(torch_name(value))
        if isinstance(value, torch.device):
            return Device()
        if isinstance(value, slice):
            return slice(*(self.argument(bound) for bound in (value.start, value.stop, value.step)))
        if isinstance(value, list):
            return [self.argument(item) for item in value]
        if type(value) is tuple or isinstance(value, torch.Size):
            return tuple(self.argument(item) for item in value)
        if isinstance(value, dict):
            return {str(key): self.argument(item) for key, item in value.items()}
        raise NotPortableError(
            f"its forward passes a {type(value).__module__}.{type(value).__qualname__}, which is not plain data"
        )


def _sizes_after(module: nn.Module, sizes: Sequence[Any]) -> Sequence[Any] | None:
    """Sizes of a stock module's result by rule, or None if it has to be run to know."""
    if isinstance(module, _SAME_SIZES):
        return sizes
    if type(module) is nn.Linear and sizes:
        return (*sizes[:-1], module.out_features)
    if type(module) is nn.Sequential:
        for child in module:
            known = _sizes_after(child, sizes) if is_stock(child) else None
            if known is None:
                return None
            sizes = known
        return sizes
    return None


def _plain_state(module: nn.Module) -> dict[str, Any]:
    own = {key: value for key, value in module.__dict__.items() if not key.startswith("_")}
    return own | {f"_buffers.{key}": value for key, value in module._buffers.items()}  # noqa: SLF001


def _autocast_state() -> tuple[Any, ...]:
    return tuple((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda"))


def _function_text(func: Any) -> str:
    module = getattr(func, "__module__", None) or getattr(getattr(func, "__objclass__", None), "__name__", "torch")
    return f"{module}.{getattr(func, '__name__', func)}"
