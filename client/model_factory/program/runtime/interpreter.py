"""The interpreter: compiles a program to a list of small functions, once, and calls the functions in order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from model_factory.errors import FormatError
from model_factory.program.bounds import check_result
from model_factory.program.expressions import Env, shape_key
from model_factory.program.ir import (
    OWN,
    Argument,
    Device,
    Dim,
    DtypeOf,
    Expr,
    Fields,
    Guard,
    LimitOf,
    Outcome,
    Program,
    Rank,
    Ref,
    Size,
    out_names,
    step_arguments,
    step_text,
)
from model_factory.program.runtime.lookup import own_shape
from model_factory.program.runtime.step_compiler import (
    CALLER_MODES,
    DEVICE,
    GENERATORS,
    SELF,
    Action,
    BranchMissError,
    CallerModes,
    compile_argument,
    compile_step,
    compile_store,
    sets_modes,
    shape_of,
)

# For isinstance with every part of every step: a union expression would create a new object each time.
_ATOMS = (Ref, Dim, Rank, str, int)
_LISTS = (list, tuple)
_NAMED = (Ref, DtypeOf, LimitOf)
_SIZES = (Dim, Rank)
_NO_MODULE = nn.Module()  # the backward of a program uses no module


class Runner:
    """Runs one program for any module with the named children and tensors; compiles the program once."""

    def __init__(self, program: Program) -> None:
        """Check and compile a program.

        Raises:
            FormatError: an op, value or constant is unknown.
        """
        self.program = program
        self._inputs = program.inputs
        parts = [parts_of(step_arguments(step), []) for step in program.steps]
        parts_of_result = parts_of(program.result, [])
        used = [_names(some) for some in [*parts, parts_of_result]]
        measured = [_measured(some) for some in [*parts, parts_of_result]]
        others = [[name for name in sizes if not name.startswith(OWN)] for sizes in measured]
        _check_names(program, [[*names, *sizes] for names, sizes in zip(used, others, strict=True)])
        self._measured = {name for sizes in measured for name in sizes}
        self._actions: list[Action] = [compile_step(step, _compile_program) for step in program.steps]
        self._stores = [compile_store(step, self._measured) for step in program.steps]
        self._dead: list[list[str]] = [[] for _ in program.steps]  # values without a use after the step
        for name, index in _last_uses(program, used).items():
            self._dead[index].append(name)
        self._result = compile_argument(program.result)
        self._uses_device = any(isinstance(part, Device) for some in [*parts, parts_of_result] for part in some)
        self._sets_modes = any(map(sets_modes, program.steps))
        if any(isinstance(step, Guard) for step in program.steps):  # another program may finish the run
            self._uses_device = self._sets_modes = True

    def __deepcopy__(self, _memo: dict[int, Any]) -> Runner:
        return self  # immutable: copies of a module share the object

    def __reduce__(self) -> tuple[type[Runner], tuple[Program]]:
        return (Runner, (self.program,))

    def run(
        self,
        module: nn.Module,
        values: list[Any],
        *,
        generators: Mapping[str, torch.Generator] | None = None,
        on_error: Callable[[int, BaseException], None] | None = None,
        other_branch: Callable[[int, Outcome], tuple[Runner, list[Any]]] | None = None,
    ) -> Any:
        """Run the program.

        Args:
            module: Module that the program belongs to.
            values: One value per input, in order.
            generators: Generators of random numbers among the arguments of the call, by name.
            on_error: Called with the number of a failing step and the error; may raise another error.
            other_branch: Called with the number of a guard and an outcome without steps here. Returns the runner to
                continue with, and the inputs of this runner. Both programs have the same steps up to the guard, so the
                new program uses the values made so far.

        Raises:
            BranchMissError: a guard has an outcome without steps, and ``other_branch`` is None.
        """
        env: Env = dict(zip(self._inputs, values, strict=True))
        env[SELF] = module
        if generators:
            env[GENERATORS] = generators
        if self._measured:
            self._measure(env)
        if self._uses_device:
            env[DEVICE] = device_of(module, values)
        if not self._sets_modes:
            return self._interpret(env, on_error, other_branch)
        modes = env[CALLER_MODES] = CallerModes()
        try:
            return self._interpret(env, on_error, other_branch)
        finally:
            modes.restore_grad()
            modes.restore_autocast()

    def _interpret(
        self,
        env: Env,
        on_error: Callable[[int, BaseException], None] | None,
        other_branch: Callable[[int, Outcome], tuple[Runner, list[Any]]] | None,
        start: int = 0,
    ) -> Any:
        is_compiling = torch.compiler.is_compiling()  # a compiler makes the checks conditions of the compiled code
        for index, action in enumerate(self._actions[start:] if start else self._actions, start):
            try:
                value = action(env)
                if not is_compiling:
                    check_result(value)
                self._stores[index](env, value)
            except BranchMissError as error:
                if other_branch is None:
                    raise
                outcome = error.outcome
                break
            except BaseException as error:
                if on_error is not None:
                    on_error(index, error)
                raise
            for name in self._dead[index]:
                env.pop(name, None)
        else:
            return self._result(env)
        other, values = other_branch(index, outcome)
        env.update(zip(other._inputs, values, strict=True))  # noqa: SLF001  same class
        other._measure(env)  # noqa: SLF001
        return other._interpret(env, on_error, other_branch, index)  # noqa: SLF001

    def _measure(self, env: Env) -> None:
        """Note the shapes of inputs and of the module's own tensors, as far as the program reads the shapes."""
        for name in self._measured:
            if name.startswith(OWN):
                env[shape_key(name)] = own_shape(env[SELF], name)
            elif shape_key(name) not in env and name in env:
                env[shape_key(name)] = shape_of(env, name)


def _compile_program(program: Program) -> Callable[[list[Any]], Any]:
    return partial(Runner(program).run, _NO_MODULE)


def device_of(module: nn.Module, values: list[Any]) -> torch.device:
    """Return the device of the first tensor input, else of the module's first tensor."""
    for value in values:
        if isinstance(value, torch.Tensor):
            return value.device
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        return tensor.device
    return torch.device("cpu")


def parts_of(argument: Argument, found: list[Argument]) -> list[Argument]:
    """Add an argument's parts to ``found``, except containers; return ``found``."""
    if isinstance(argument, _ATOMS):
        found.append(argument)
    elif isinstance(argument, Size):
        parts_of(argument.expr, found)
    elif isinstance(argument, Expr):
        parts_of(argument.args, found)
    elif isinstance(argument, slice):
        parts_of((argument.start, argument.stop, argument.step), found)
    elif isinstance(argument, _LISTS):
        for item in argument:
            parts_of(item, found)
    elif isinstance(argument, Mapping):
        for item in argument.values():
            parts_of(item, found)
    elif isinstance(argument, Fields):
        parts_of(argument.values, found)
    else:
        found.append(argument)
    return found


def _names(parts: list[Argument]) -> list[str]:
    """Return the names of the values in parts."""
    return [part.name for part in parts if isinstance(part, _NAMED)]


def _measured(parts: list[Argument]) -> list[str]:
    """Return the names of the tensors with sizes in parts."""
    return [part.name for part in parts if isinstance(part, _SIZES)]


def _check_names(program: Program, used: list[list[str]]) -> None:
    """Check that every value is made before its use by a step or by the result."""
    known = set(program.inputs)
    for index, (step, names) in enumerate(zip(program.steps, used[:-1], strict=True)):
        for name in names:
            if name not in known:
                raise FormatError(f"step {index} ({step_text(step)}) uses {name!r} before it exists")
        known.update(out_names(step))
    for name in used[-1]:
        if name not in known:
            raise FormatError(f"the program's result uses {name!r}, and no step makes a value of this name")


def _last_uses(program: Program, used: list[list[str]]) -> dict[str, int]:
    """Return the last use of each value, as the number of a step; values of the result have no last use.

    Up to the last guard, a program keeps every value, since another program may continue the run there.
    """
    last: dict[str, int] = {}
    guard = max((index for index, step in enumerate(program.steps) if isinstance(step, Guard)), default=0)
    for index, (step, names) in enumerate(zip(program.steps, used[:-1], strict=True)):
        for name in (*out_names(step), *names):
            last[name] = max(index, guard)
    for name in used[-1]:
        last.pop(name, None)
    return last
