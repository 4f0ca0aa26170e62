"""Symbols of a recording: torch's symbolic sizes become expressions of a program."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import sympy
import torch

from model_factory.errors import NotPortableError
from model_factory.program.expressions import expression_text
from model_factory.program.ir import OWN, Dim, Expr, Expression, Rank, Ref
from model_factory_server.export.conditions.symbolic_sizes import with_sizes
from model_factory_server.export.torch_private import (
    ConstantSource,
    DimDynamic,
    GuardOnDataDependentSymNode,
    ShapeEnv,
    formula,
    has_free_unbacked_symbols,
    recorded_size,
)

_SYMBOL = re.compile(r"\bs[0-9]+\b")
_OPERATIONS: Mapping[str, str] = {
    "Add": "add",
    "Mul": "mul",
    "Pow": "pow",
    "PowByNatural": "pow",
    "FloatPow": "pow",
    "FloorDiv": "floordiv",
    "CleanDiv": "floordiv",
    "Mod": "mod",
    "PythonMod": "mod",
    "Max": "max",
    "Min": "min",
    "IntTrueDiv": "truediv",
    "FloatTrueDiv": "truediv",
    "ToFloat": "float",
    "TruncToInt": "int",
    "FloorToInt": "floor",
    "CeilToInt": "ceil",
    "RoundToInt": "round",
    "OpaqueUnaryFn_sqrt": "sqrt",
    "Equality": "eq",
    "Unequality": "ne",
    "StrictLessThan": "lt",
    "LessThan": "le",
    "StrictGreaterThan": "gt",
    "GreaterThan": "ge",
    "And": "and",
    "Or": "or",
    "Not": "not",
}
_COMMUTATIVE = frozenset({"add", "mul", "max", "min", "and", "or", "eq", "ne"})
_REMEDY = "use integer arithmetic on sizes of the inputs, or pass the number as an argument"


class DecisionShapeEnv(ShapeEnv):
    """A ``ShapeEnv`` with the forward's own decisions on sizes apart from decisions inside torch's ops.

    Torch keeps only new facts about sizes: torch would lose a decision of the forward if an op's check has already
    implied the decision. This class keeps every decision of the forward.
    """

    def __init__(self) -> None:
        super().__init__(specialize_zero_one=False, duck_shape=False)
        self.in_forward = False
        """Whether the running code is the forward's own, and not torch's or the recorder's; see :meth:`run_by`."""
        self.decisions: list[Any] = []
        self.decide_by_value: Callable[[Any], Any] | None = None
        """Returns the value of an expression with a number from a tensor."""
        self._kernel_guards: set[int] = set()

    @contextmanager
    def run_by(self, *, forward: bool) -> Iterator[None]:
        """Attribute decisions on sizes, while this is entered, to the forward or, otherwise, to torch's ops."""
        before, self.in_forward = self.in_forward, forward
        try:
            yield
        finally:
            self.in_forward = before

    @contextmanager
    def in_kernel(self) -> Iterator[None]:
        """Leave decisions on sizes, while this is entered, out of :meth:`conditions`, except equalities."""
        start = len(self.guards)
        try:
            yield
        finally:
            self._kernel_guards.update(range(start, len(self.guards)))

    def conditions(self) -> list[Any]:
        """The conditions of the recording: decisions of the forward, and decisions of ops with an effect on results."""
        return self.relied_on(0, 0)

    def relied_on(self, decided: int, guarded: int) -> list[Any]:
        """The conditions without the forward's first ``decided`` decisions and the first ``guarded`` guards of ops."""
        return self.decisions[decided:] + [
            guard.expr
            for index, guard in enumerate(self.guards[guarded:], guarded)
            if not has_free_unbacked_symbols(guard.expr)
            if isinstance(guard.expr, sympy.Eq) or not (index in self._kernel_guards or _is_layout_check(guard.expr))
        ]

    def _get_user_frame(self) -> FrameType | None:
        """Return this frame: only torch's logs use the place of a guard, and finding the place imports the compiler.

        Torch 2.9 and 2.10 fail without a frame.
        """
        return sys._getframe()  # noqa: SLF001  no other way

    def evaluate_expr(self, orig_expr: Any, *args: Any, **kwargs: Any) -> Any:
        """Decide an expression, and keep the decision if the forward's own code makes the decision."""
        try:
            value = super().evaluate_expr(orig_expr, *args, **kwargs)
        except GuardOnDataDependentSymNode:
            if self.decide_by_value is None:
                raise
            return self.decide_by_value(orig_expr)
        if self.in_forward and isinstance(orig_expr, sympy.Basic) and _is_of_sizes(orig_expr):
            decided = orig_expr if value is sympy.true or value is True else sympy.Not(orig_expr)
            if value not in {sympy.true, sympy.false, True, False} or not is_truth(orig_expr):
                decided = sympy.Eq(orig_expr, value)
            self.decisions.append(decided)
        return value

    def guard_or_defer_runtime_assert(  # type: ignore[override]  # torch caches the results
        self, orig_expr: Any, *_args: Any, **_kwargs: Any
    ) -> bool:
        """Decide the condition of ``torch._check``: torch would add a check for later, which programs do not have."""
        return bool(self.evaluate_expr(orig_expr))


def is_truth(expr: Any) -> bool:
    """Whether a sympy expression is a truth value. A symbol is a number, though its class says both.

    Example:
        >>> number = sympy.Symbol("n", integer=True)
        >>> is_truth(number), is_truth(number > 1), is_truth(number + 1)
        (False, True, False)
    """
    return isinstance(expr, sympy.logic.boolalg.Boolean) and not expr.is_Symbol


class SymbolTable:
    """The meaning of each symbol: a size of an input, parameter or result, or a number from a step."""

    def __init__(self, shape_env: DecisionShapeEnv, *, fixes_sizes: bool = False) -> None:
        """Begin without symbols; with ``fixes_sizes``, every size is a number, and a condition of the program."""
        self._shape_env = shape_env
        self._fixes_sizes = fixes_sizes
        self._meaning: dict[sympy.Symbol, Dim | Ref] = {}
        self._sizes: dict[str, int] = {}
        self._ones: list[Expr] = []
        self._given: dict[sympy.Symbol, Any] = {}  # symbol of a layer's size -> the recorded layer's number or formula
        self._required = (0, 0)

    def add_input(self, name: str, fake: torch.Tensor) -> None:
        """Register the sizes of an input."""
        for axis, size in enumerate(fake.shape):
            if isinstance(size, torch.SymInt):
                self._meaning.setdefault(formula(size), Dim(name, axis))
                self._sizes[str(formula(size))] = recorded_size(size)
            elif size == 1 or (self._fixes_sizes and size):  # the call signature contains sizes of 0
                self._ones.append(Expr("eq", (Dim(name, axis), size)))

    def own(self, path: str, fake: torch.Tensor) -> torch.Tensor:
        """Return a fake parameter or buffer with symbolic sizes, for reads by the forward."""
        if self._fixes_sizes:
            return fake

        def symbol(axis: int, size: Any) -> Any:
            return self._symbol(f"{path}_{axis}_own", size, Dim(f"{OWN}{path}", axis))

        return with_sizes(fake, symbol).requires_grad_(fake.requires_grad)

    def fix_own(self, path: str, sizes: Mapping[int, int]) -> None:
        """Add the sizes of a parameter or buffer, by axis, to the conditions."""
        self._ones += [Expr("eq", (Dim(f"{OWN}{path}", axis), size)) for axis, size in sizes.items()]

    def fix_own_rank(self, path: str, rank: int) -> None:
        """Add the rank of a parameter or buffer to the conditions."""
        self._ones.append(Expr("eq", (Rank(f"{OWN}{path}"), rank)))

    def _symbol(self, name: str, hint: int, meaning: Dim) -> torch.SymInt:
        source = ConstantSource(name)
        symbol: Any = self._shape_env.create_symbol(hint, source=source, dynamic_dim=DimDynamic.DYNAMIC)
        self._meaning[symbol] = meaning
        self._sizes[str(symbol)] = hint
        found: Any = self._shape_env.create_symintnode(symbol, hint=hint, source=source)
        return found  # type: ignore[no-any-return]

    def add_given(self, name: str, axis: int, size: int | torch.SymInt) -> torch.SymInt | None:
        """Return a symbol for a size of ``name``, the result of a layer; ``size`` is the recorded layer's.

        Without symbols, return None. After the layer is replaced, the symbol is the new layer's size.
        """
        if self._fixes_sizes:
            return None
        found = self._symbol(f"{name}_{axis}_given", recorded_size(size), Dim(name, axis))
        self._given[formula(found)] = formula(size) if isinstance(size, torch.SymInt) else sympy.Integer(size)
        return found

    def add_inner(self, name: str, axis: int, size: Any) -> int | torch.SymInt:
        """Return the size of ``name``, the result of an inner block; ``size`` is a formula of sizes before the call.

        After the block is replaced, the symbol is the new block's size. Sizes of 0 and 1 stay numbers.
        """
        if size.is_Integer and int(size) in {0, 1}:
            return int(size)
        found = self._symbol(f"{name}_{axis}_given", self._number(size), Dim(name, axis))
        self._given[formula(found)] = size
        return found

    def require(self, condition: Any) -> None:
        """Add a condition on sizes, a formula, to the conditions of the recording."""
        if condition not in {sympy.true, sympy.false} and condition not in self._shape_env.decisions:
            self._shape_env.decisions.append(condition)

    def _number(self, expr: Any) -> int:
        numbers = {symbol: sympy.Integer(self._sizes[str(symbol)]) for symbol in expr.free_symbols}
        return int(expr.xreplace(numbers))

    def in_inputs(self, expr: Any) -> Any | None:
        """Return a formula in sizes of inputs only, with numbers for sizes of layers; None for a size from values."""
        while given := expr.free_symbols & self._given.keys():
            expr = expr.xreplace({symbol: self._given[symbol] for symbol in given})
        own = {symbol for symbol in expr.free_symbols if self._is_own(symbol)}
        expr = expr.xreplace({symbol: sympy.Integer(self._sizes[str(symbol)]) for symbol in own})
        is_known = all(symbol in self._meaning and str(symbol) in self._sizes for symbol in expr.free_symbols)
        return expr if is_known else None

    def _is_own(self, symbol: Any) -> bool:
        meaning = self._meaning.get(symbol)
        return isinstance(meaning, Dim) and meaning.name.startswith(OWN)

    def inputs(self) -> dict[Any, Dim]:
        """Return the symbols of the inputs' sizes, with their meanings."""
        return {
            symbol: meaning
            for symbol, meaning in self._meaning.items()
            if isinstance(meaning, Dim) and str(symbol) in self._sizes and symbol not in self._given
            if not self._is_own(symbol)
        }

    def input_conditions(self) -> list[Any]:
        """The conditions of the recording as formulas in sizes of inputs; conditions on own tensors are left out."""
        kept = (known for expr in self._shape_env.conditions() if (known := self._known_before(expr)) is not None)
        return [expr for item in kept if (expr := self.in_inputs(item)) not in {None, sympy.true}]

    def skip_requirements(self) -> None:
        """Drop the new conditions on sizes of layers' results: a torch module makes the same checks at run time."""
        self._required = (len(self._shape_env.decisions), len(self._shape_env.guards))

    def requirements(self) -> list[Expression]:
        """Return the conditions on sizes of layers' results, added since the last call of this method."""
        conditions = self._shape_env.relied_on(*self._required)
        self._required = (len(self._shape_env.decisions), len(self._shape_env.guards))
        found = (expr for expr in conditions if expr.free_symbols & self._given.keys())
        return list(dict.fromkeys(self.translate(expr) for expr in found))

    def add_value(self, name: str, value: torch.SymInt | torch.SymFloat | torch.SymBool) -> None:
        """Register the number returned by a step, for example ``x.item()``."""
        symbol = formula(value)
        if isinstance(symbol, sympy.Eq) and symbol.rhs == 1:  # the item of a bool tensor, as torch writes it
            symbol = symbol.lhs
        if isinstance(symbol, sympy.Symbol):
            self._meaning.setdefault(symbol, Ref(name))

    def add_made(self, name: str, tensor: torch.Tensor) -> None:
        """Register the sizes of a step's result with a dependence on values, as in ``torch.nonzero``."""
        for axis, size in enumerate(tensor.shape):
            if isinstance(size, torch.SymInt) and has_free_unbacked_symbols(size) and formula(size).is_Symbol:
                self._meaning.setdefault(formula(size), Dim(name, axis))

    def forget(self, names: Container[str]) -> None:
        """Forget symbols for sizes and numbers of values, whose steps are not the forward's own."""
        self._meaning = {symbol: meaning for symbol, meaning in self._meaning.items() if meaning.name not in names}

    def with_sizes(self, text: str) -> str:
        """Return an error's text with the sizes of the recorded call in the place of symbols."""
        return _SYMBOL.sub(lambda match: str(self._sizes.get(match[0], match[0])), text)

    def expression(self, value: torch.SymInt | torch.SymFloat | torch.SymBool) -> Expression:
        """Write a symbolic number as a program's expression."""
        return self.translate(formula(value))

    def size_conditions(self) -> tuple[Expression, ...]:
        """The conditions of the recording on sizes of inputs and parameters, each once.

        If the size of a layer's result follows from sizes of inputs, as a convolution's result does, then the condition
        is on the inputs. A layer's own number, for example a width, is the recorded number here: calls of other sizes
        have another program. :meth:`requirements` has the condition on the number of the layer at run time.
        """
        kept = (known for expr in self._shape_env.conditions() if (known := self._known_before(expr)) is not None)
        return tuple(dict.fromkeys([*self._ones, *(self.translate(expr) for expr in kept)]))

    def _known_before(self, expr: Any) -> Any | None:
        """Return a condition in sizes known before the forward runs; ``None`` if no condition remains."""
        if not isinstance(expr, sympy.Basic):
            return None
        has_numbers, is_of_op = False, isinstance(expr, sympy.Eq) and expr not in self._shape_env.decisions
        while given := expr.free_symbols & self._given.keys():
            has_numbers = has_numbers or any(self._given[symbol].is_Integer for symbol in given)
            expr = expr.subs({symbol: self._given[symbol] for symbol in given})
        # If an op needs a size equal to the number of a layer, then the op's own error is best.
        is_left_out = has_numbers and (is_of_op or all(map(self._is_own, expr.free_symbols)))
        return None if expr in {sympy.true, sympy.false} or is_left_out else expr

    def translate(self, expr: Any) -> Expression:
        """Write an expression of symbols as a program's."""
        if isinstance(expr, sympy.Symbol):
            if expr not in self._meaning:
                raise NotPortableError(
                    f"the forward uses the number {expr}, which is not the size of an input. Remedy: {_REMEDY}"
                )
            return self._meaning[expr]
        if isinstance(expr, sympy.Integer):
            return int(expr)
        if isinstance(expr, sympy.Float):
            return float(expr)
        if isinstance(expr, sympy.Rational):
            return Expr("truediv", (int(expr.p), int(expr.q)))
        if expr in {sympy.true, sympy.false}:
            return Expr("eq", (1, 1 if expr is sympy.true else 0))
        operation = _OPERATIONS.get(type(expr).__name__)
        if operation is None:
            raise NotPortableError(
                f"the forward computes {expr} from sizes, and programs have no such operation. Remedy: {_REMEDY}"
            )
        args = tuple(self.translate(arg) for arg in expr.args)
        # Sympy orders by names of symbols, and the names differ between recordings.
        return Expr(operation, tuple(sorted(args, key=_order)) if operation in _COMMUTATIVE else args)


def _is_of_sizes(expr: Any) -> bool:
    return bool(expr.free_symbols) and not has_free_unbacked_symbols(expr)


def _is_layout_check(expr: Any) -> bool:
    """Whether an op's guard only excludes the size 0 or 1: memory layout depends on the guard, the result does not."""
    return isinstance(expr, sympy.Ne) and expr.rhs in {sympy.Integer(0), sympy.Integer(1)}


def _order(expr: Expression) -> tuple[bool, str]:
    return (isinstance(expr, int | float), expression_text(expr))
