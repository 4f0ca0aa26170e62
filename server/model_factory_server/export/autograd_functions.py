"""Records calls of a ``torch.autograd.Function``: the steps of its forward, then a step that gives results a backward.

The forward's steps are recorded without gradients. The backward runs at once, on fake gradients: its steps become a
program of its own, with a gradient of each result and the values from outside that the steps use as inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.autograd.function import Function, FunctionCtx, once_differentiable
from torch.utils.checkpoint import CheckpointFunction

from model_factory.errors import NotPortableError
from model_factory.program.ir import (
    Argument,
    AttributeRead,
    Constant,
    Dim,
    Expr,
    Expression,
    OpCall,
    OwnBackward,
    Program,
    Rank,
    Ref,
    Require,
    Size,
    Step,
    out_names,
    step_text,
)
from model_factory.program.ops import AUTOCAST_KINDS
from model_factory.program.runtime.caller_modes import AUTOCAST, IS_CUDA
from model_factory.program.runtime.own_backward import own_function
from model_factory.program.torch_private import set_grad_enabled
from model_factory_server.export.torch_private import function_base, memory_id
from model_factory_server.export.trace.tape import Tape

_OURS = ("torch", "model_factory")
_ONCE: Any = once_differentiable(id)


class FunctionCalls:
    """Records calls of functions on a tape."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    def replace_apply(self, _original: Any) -> Any:
        """Return an ``apply`` to record calls.

        ``Function.apply`` calls the replacement, so a function bound before, as in ``scan = Scan.apply``, is recorded
        too.
        """

        def apply(cls: type, *args: Any) -> Any:
            if cls is CheckpointFunction:
                raise NotPortableError(
                    "the forward calls torch.utils.checkpoint with use_reentrant=True, whose results have gradients "
                    "only if an argument has gradients. Remedy: use_reentrant=False"
                )
            if cls.__module__.partition(".")[0] in _OURS or self._tape.paused:
                return super(function_base, cls).apply(*args)  # type: ignore[misc]  # of another class than this method's
            return self._record(cls, args)

        return classmethod(apply)

    def _record(self, cls: Any, args: tuple[Any, ...]) -> Any:
        tape = self._tape
        if tape.decisions.backward_of:
            raise NotPortableError(
                f"the backward of {tape.decisions.backward_of} calls {_name(cls)}, another autograd.Function. Remedy: "
                "write the backward with torch's ops"
            )
        tape.sizes.add_new()
        inputs = tuple(tape.argument(arg) for arg in args if _is_tensor(arg))
        with tape.no_recording():
            context = _Context(_name(cls), tuple(_is_tensor(arg) and _has_gradients(arg) for arg in args))
        start, before = len(tape.steps), {*tape.inputs, *(name for made in tape.steps for name in out_names(made))}
        result = self._run_forward(cls, context, args)
        items = result if isinstance(result, tuple) else (result,)
        results = tuple(tape.argument(item) for item in items if _is_tensor(item))
        if not results:
            return result
        constant = [id(item) for item in getattr(context, "non_differentiable", ())]
        step = OwnBackward(
            inputs=inputs,
            results=results,
            kept=(),
            backward=Program(inputs=tuple(map(_gradient, range(len(results)))), steps=(), result=inputs),
            constant=tuple(at for at, item in enumerate(filter(_is_tensor, items)) if id(item) in constant),
            out=tuple(map(str, range(len(results)))),
        )
        with tape.no_recording():
            given = [tape.constants.fake(item) for item in (*filter(_is_tensor, args), *filter(_is_tensor, items))]
            made = own_function(step, _unused)(given, ())
        before.update(made.out for made in tape.steps[start:] if isinstance(made, AttributeRead))
        step = self._with_backward(step, cls, context, args, items)
        if not step.once and self._keeps_alias(step):
            raise NotPortableError(
                f"{context.name} keeps what may be an argument itself, as x.contiguous() is. Remedy: keep the "
                "argument and call contiguous() in the backward, or decorate the backward with once_differentiable"
            )
        self._check_arguments(step, before, context.name)
        named = iter(tape.store(step, made))
        found = tuple(next(named) if _is_tensor(item) else item for item in items)
        return found if isinstance(result, tuple) else found[0]

    def _run_forward(self, cls: Any, context: _Context, args: tuple[Any, ...]) -> Any:
        with torch.no_grad():
            if cls.setup_context is function_base.setup_context:
                result = cls.forward(context, *args)
            else:
                result = cls.forward(*args)
                cls.setup_context(context, args, result)
            context.in_forward = False
        if hasattr(context, "_fwd_used_autocast"):  # noted by torch.amp.custom_fwd for the backward
            for kind in AUTOCAST_KINDS:
                if self._tape.modes.read(f"{AUTOCAST}{kind}") and kind != "cpu":
                    raise NotPortableError(
                        f"the forward calls {context.name} under autocast of a GPU, which a recording does not have. "
                        "Remedy: call the model without autocast"
                    )
        return result

    def _with_backward(
        self, step: OwnBackward, cls: Any, context: _Context, args: tuple[Any, ...], items: tuple[Any, ...]
    ) -> OwnBackward:
        """Return the step with the program of the backward."""
        tape, start = self._tape, len(self._tape.steps)
        function = cls.backward if cls.vjp is Function.vjp else cls.vjp
        local = {_gradient(at) for at in range(len(step.results))}
        backward = _Backward(local)
        with tape.no_recording():
            gradients = [torch.empty_like(tape.constants.fake(item)) for item in filter(_is_tensor, items)]
        for at, gradient in enumerate(gradients):
            tape.know(gradient, _gradient(at))
        remaining = iter(gradients)
        own = function.__wrapped__ if getattr(function, "__code__", None) is _ONCE.__code__ else function
        with self._in_backward(context.name):
            found = own(context, *(next(remaining) if _is_tensor(item) else None for item in items))
            result = tuple(map(tape.argument, _of_tensors(context.name, args, found)))
            tape.sizes.add_new()
        steps = tuple(tape.steps[start:])
        del tape.steps[start:]
        tape.steps += [inner for inner in steps if isinstance(inner, Require)]  # of sizes that are known here
        local |= {name for inner in steps for name in out_names(inner)}
        closed = tuple(backward.closed(inner, context.name) for inner in steps if not isinstance(inner, Require))
        result = backward.argument(result)
        self._forget(local)
        program = Program(inputs=(*step.backward.inputs, *backward.kept), steps=closed, result=result)
        return replace(step, kept=tuple(backward.kept.values()), backward=program, once=_is_once(function))

    def _keeps_alias(self, step: OwnBackward) -> bool:
        """Whether a kept value may be an argument itself, as ``x.contiguous()`` is: second gradients would be lost."""
        tensors = self._tape.tensors
        others = [item for item in step.kept if isinstance(item, Ref) and item not in (*step.inputs, *step.results)]
        with self._tape.no_recording():
            given = {memory_id(tensors[item.name]) for item in step.inputs if item.name in tensors}
            return any(item.name in tensors and memory_id(tensors[item.name]) in given for item in others)

    def _check_arguments(self, step: OwnBackward, before: Container[str], name: str) -> None:
        """Refuse a backward with tensors from outside that may have gradients: second gradients would be lost."""
        for item in step.kept:
            if not isinstance(item, Ref) or item in (*step.inputs, *step.results) or item.name not in before:
                continue
            tensor = self._tape.tensors.get(item.name)
            with self._tape.no_recording():
                may_have_gradients = tensor is not None and _has_gradients(tensor)
            if may_have_gradients and self._tape.constants.origins_of(item.name) != []:
                raise NotPortableError(_foreign(name, "a tensor"))

    @contextmanager
    def _in_backward(self, name: str) -> Iterator[None]:
        """Record a backward, which runs in modes of its own, and decides nothing by values."""
        tape = self._tape
        with tape.modes.of_backward() as modes:
            with tape.no_recording():
                before = torch.is_grad_enabled()
                set_grad_enabled(False)
            tape.decisions.backward_of = name
            try:
                yield
            finally:
                tape.decisions.backward_of = ""
                with tape.no_recording():
                    set_grad_enabled(before)
        for mode in modes:
            if mode != IS_CUDA:
                raise NotPortableError(
                    f"the backward of {name} asks for the mode {mode}, which can differ from the forward's. Remedy: "
                    "ask in the forward, and keep the answer as an attribute of ctx"
                )
            tape.modes.read(mode)

    def _forget(self, local: set[str]) -> None:
        """Forget the values of a backward, whose names the forward uses again."""
        tape = self._tape
        tape.names = {key: name for key, name in tape.names.items() if name not in local}
        tape.dtypes.forget(local)
        tape.symbols.forget(local)
        tape.constants.forget_unnamed()


class _Context(FunctionCtx):
    """The ``ctx`` of a call."""

    def __init__(self, name: str, needs_input_grad: tuple[bool, ...]) -> None:
        self.name = name
        self.in_forward = True
        self._needs_input_grad = needs_input_grad
        self.saved_tensors: tuple[Any, ...] = ()

    @property
    def needs_input_grad(self) -> tuple[bool, ...]:
        if self.in_forward:
            raise NotPortableError(
                f"the forward of {self.name} asks for ctx.needs_input_grad, which can differ on the trainer. Remedy: "
                "ask in the backward"
            )
        return self._needs_input_grad

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def mark_dirty(self, *_tensors: Any) -> None:
        raise NotPortableError(
            f"the forward calls {self.name}, an autograd.Function that writes to an argument. Remedy: return a new "
            "tensor"
        )

    def set_materialize_grads(self, value: bool) -> None:
        if not value:
            raise NotPortableError(
                f"the forward calls {self.name}, an autograd.Function whose backward differs for missing gradients. "
                "Remedy: leave out ctx.set_materialize_grads(False)"
            )


@dataclass(slots=True)
class _Backward:
    """Makes the steps of a backward independent of the steps around them."""

    local: set[str]
    """Names of the gradients and of the backward's own values."""
    kept: dict[str, Argument] = field(default_factory=dict)
    """Values from outside, by the name of the input."""

    def closed(self, step: Step, name: str) -> Step:
        """Return a step with inputs in the place of values from outside.

        Raises:
            NotPortableError: a backward has no steps of the kind.
        """
        if isinstance(step, Constant):
            return step
        if not isinstance(step, OpCall):
            raise NotPortableError(_foreign(name, step_text(step)))
        return replace(step, args=self.argument(step.args), kwargs=self.argument(step.kwargs))

    def argument(self, argument: Any) -> Any:
        """Return an argument with inputs in the place of values from outside."""
        if isinstance(argument, Ref):
            return self._named(argument)
        if isinstance(argument, Size):
            return Size(self._expression(argument.expr))
        if isinstance(argument, slice):
            return slice(*map(self.argument, (argument.start, argument.stop, argument.step)))
        if isinstance(argument, list | tuple):
            return type(argument)(map(self.argument, argument))
        if isinstance(argument, Mapping):
            return {key: self.argument(item) for key, item in argument.items()}
        return argument

    def _expression(self, expr: Expression) -> Expression:
        if isinstance(expr, Expr):
            return Expr(expr.op, tuple(map(self._expression, expr.args)))
        if isinstance(expr, Ref):
            return self._named(expr)
        if isinstance(expr, Dim | Rank) and expr.name not in self.local:
            known = (name for name, value in self.kept.items() if value == Size(expr))
            name = next(known, f"#{len(self.kept)}")
            self.kept[name] = Size(expr)
            return Ref(name)
        return expr

    def _named(self, value: Ref) -> Ref:
        if value.name not in self.local:
            self.kept[value.name] = value
        return value


def _of_tensors(name: str, args: Sequence[Any], found: Any) -> Iterator[Any]:
    """The gradients of the tensors among the arguments of a function.

    Raises:
        NotPortableError: a backward returns another number of gradients, or other values.
    """
    gradients = found if isinstance(found, tuple) else (found,)
    more = gradients[len(args) :]
    if len(gradients) < len(args) or any(item is not None for item in more):
        raise NotPortableError(f"the backward of {name} returns {len(gradients)} gradients for {len(args)} arguments")
    for arg, gradient in zip(args, gradients, strict=False):
        if not (gradient is None or (_is_tensor(arg) and _is_tensor(gradient))):
            raise NotPortableError(f"the backward of {name} returns a {type(gradient).__name__} as a gradient")
        if _is_tensor(arg):
            yield gradient


def _is_tensor(value: Any) -> bool:
    return issubclass(type(value), torch.Tensor)  # isinstance would count as a use of a constant


def _has_gradients(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _is_once(function: Any) -> bool:
    """Whether ``once_differentiable`` is among the decorators of a function."""
    while function is not None:
        if getattr(function, "__code__", None) is _ONCE.__code__:
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _foreign(name: str, value: str) -> str:
    return (
        f"the backward of {name} uses {value}, which is no argument of its forward. Remedy: pass tensors as arguments"
    )


def _gradient(position: int) -> str:
    return f"gradient {position}"


def _unused(_program: Program) -> Callable[[list[Any]], Any]:
    return lambda _values: ()
