"""Symbols of a recording: from torch's symbolic sizes to a program's expressions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import sympy
import torch
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    GuardOnDataDependentSymNode,
    ShapeEnv,
    has_free_unbacked_symbols,
)

from model_factory.errors import NotPortableError
from model_factory.program.expressions import expression_text
from model_factory.program.ir import OWN, Dim, Expr, Expression, Rank, Ref
from model_factory_server.export.conditions.given_sizes import with_sizes

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


class DecisionShapeEnv(ShapeEnv):
    """A ``ShapeEnv`` that tells the forward's own decisions on sizes from those inside torch's ops.

    Torch remembers only what it did not know yet, so a decision of the forward that an op's check already implied
    would be lost with that check. Here every decision of the forward is kept.
    """

    def __init__(self) -> None:
        super().__init__(specialize_zero_one=False, duck_shape=False)
        self.inside_op = 1
        self.decisions: list[Any] = []
        self.decide_by_value: Callable[[Any], Any] | None = None
        """Answers what an expression with a number from a tensor is."""
        self._kernel_guards: set[int] = set()

    @contextmanager
    def in_kernel(self) -> Iterator[None]:
        """Mark what is asked of sizes meanwhile as a kernel's affair, equalities aside."""
        start = len(self.guards)
        try:
            yield
        finally:
            self._kernel_guards.update(range(start, len(self.guards)))

    def conditions(self) -> list[Any]:
        """What must hold for the recording to stand: the forward's decisions, and those of its ops that sizes need."""
        return self.relied_on(0, 0)

    def relied_on(self, decided: int, guarded: int) -> list[Any]:
        """The conditions but for the first ``decided`` decisions of the forward and ``guarded`` guards of ops."""
        return self.decisions[decided:] + [
            guard.expr
            for index, guard in enumerate(self.guards[guarded:], guarded)
            if not has_free_unbacked_symbols(guard.expr)
            if isinstance(guard.expr, sympy.Eq) or not (index in self._kernel_guards or _is_layout_check(guard.expr))
        ]

    def _get_user_frame(self) -> None:
        """Not looked for: where guards come from is for torch's logs, and would import its export and compiler."""

    def evaluate_expr(self, orig_expr: Any, *args: Any, **kwargs: Any) -> Any:
        """Decide an expression, and keep the decision if the forward asked."""
        try:
            value = super().evaluate_expr(orig_expr, *args, **kwargs)
        except GuardOnDataDependentSymNode:
            if self.decide_by_value is None:
                raise
            return self.decide_by_value(orig_expr)
        if not self.inside_op and isinstance(orig_expr, sympy.Basic) and _is_of_sizes(orig_expr):
            decided = orig_expr if value is sympy.true or value is True else sympy.Not(orig_expr)
            if value not in {sympy.true, sympy.false, True, False} or not isinstance(
                orig_expr, sympy.logic.boolalg.Boolean
            ):
                decided = sympy.Eq(orig_expr, value)
            self.decisions.append(decided)
        return value


class SymbolTable:
    """Which symbol is which size of which input, or the result of which step."""

    def __init__(self, shape_env: DecisionShapeEnv) -> None:
        self._shape_env = shape_env
        self._meaning: dict[sympy.Symbol, Dim | Ref] = {}
        self._sizes: dict[str, int] = {}
        self._ones: list[Expr] = []
        self._given: dict[sympy.Symbol, Any] = {}  # what the layer gives that was recorded: a number, or a formula
        self._required = (0, 0)

    def add_input(self, name: str, fake: torch.Tensor) -> None:
        """Register the sizes of an input."""
        for axis, size in enumerate(fake.shape):
            if isinstance(size, torch.SymInt):
                self._meaning.setdefault(size.node.expr, Dim(name, axis))
                self._sizes[str(size.node.expr)] = size.node.hint
            elif size == 1:
                self._ones.append(Expr("eq", (Dim(name, axis), 1)))

    def own(self, path: str, fake: torch.Tensor) -> torch.Tensor:
        """Return a fake parameter or buffer whose sizes are symbols that the forward may read."""

        def symbol(axis: int, size: Any) -> Any:
            return self._symbol(f"{path}_{axis}_own", size, Dim(f"{OWN}{path}", axis))

        return with_sizes(fake, symbol).requires_grad_(fake.requires_grad)

    def fix_own(self, path: str, sizes: Mapping[int, int]) -> None:
        """Make sizes of a parameter or buffer, by axis, conditions."""
        self._ones += [Expr("eq", (Dim(f"{OWN}{path}", axis), size)) for axis, size in sizes.items()]

    def fix_own_rank(self, path: str, rank: int) -> None:
        """Make the rank of a parameter or buffer a condition."""
        self._ones.append(Expr("eq", (Rank(f"{OWN}{path}"), rank)))

    def _symbol(self, name: str, hint: int, meaning: Dim) -> torch.SymInt:
        source = ConstantSource(name)
        symbol: Any = self._shape_env.create_symbol(hint, source=source, dynamic_dim=DimDynamic.DYNAMIC)
        self._meaning[symbol] = meaning
        self._sizes[str(symbol)] = hint
        found: Any = self._shape_env.create_symintnode(symbol, hint=hint, source=source)
        return found  # type: ignore[no-any-return]

    def add_given(self, name: str, axis: int, size: int | torch.SymInt) -> torch.SymInt:
        """Return a symbol for a size that the layer in use gives to the value ``name``, which has ``size`` here.

        With another layer in the place of this one the size is another, and the symbol stands for that.
        """
        formula, hint = (
            (size.node.expr, size.node.hint) if isinstance(size, torch.SymInt) else (sympy.Integer(size), size)
        )
        found = self._symbol(f"{name}_{axis}_given", hint, Dim(name, axis))
        self._given[found.node.expr] = formula
        return found

    def skip_requirements(self) -> None:
        """Leave out the new conditions on sizes that layers give: a torch module has asked, and asks again itself."""
        self._required = (len(self._shape_env.decisions), len(self._shape_env.guards))

    def requirements(self) -> list[Expression]:
        """The new conditions, since this was called last, on sizes that layers give."""
        conditions = self._shape_env.relied_on(*self._required)
        self._required = (len(self._shape_env.decisions), len(self._shape_env.guards))
        found = (expr for expr in conditions if expr.free_symbols & self._given.keys())
        return list(dict.fromkeys(self.translate(expr) for expr in found))

    def add_value(self, name: str, value: torch.SymInt | torch.SymFloat | torch.SymBool) -> None:
        """Register the number that a step results in, ``x.item()`` say."""
        symbol = value.node.expr
        if isinstance(symbol, sympy.Symbol):
            self._meaning.setdefault(symbol, Ref(name))

    def add_made(self, name: str, tensor: torch.Tensor) -> None:
        """Register the sizes of a step's result that follow from values, as those of a tensor without its zeros."""
        for axis, size in enumerate(tensor.shape):
            if isinstance(size, torch.SymInt) and has_free_unbacked_symbols(size) and size.node.expr.is_Symbol:
                self._meaning.setdefault(size.node.expr, Dim(name, axis))

    def with_sizes(self, text: str) -> str:
        """Return a text of an error with the call's own sizes in place of the symbols that it names."""
        return _SYMBOL.sub(lambda match: str(self._sizes.get(match[0], match[0])), text)

    def expression(self, value: torch.SymInt | torch.SymFloat | torch.SymBool) -> Expression:
        """Write a symbolic number as a program's expression."""
        return self.translate(value.node.expr)

    def guards(self) -> tuple[Expression, ...]:
        """The conditions on sizes of inputs and parameters that the recording relied on, each once.

        Where sizes that layers give follow from those of inputs, as a convolution's, the condition is on the inputs;
        a layer's own number, as its width, is a requirement instead.
        """
        kept = (known for expr in self._shape_env.conditions() if (known := self._known_before(expr)) is not None)
        return tuple(dict.fromkeys([*self._ones, *(self.translate(expr) for expr in kept)]))

    def _known_before(self, expr: Any) -> Any | None:
        """A condition in sizes that are known before the forward runs, or None if there is nothing to ask then."""
        if not isinstance(expr, sympy.Basic):
            return None
        while given := expr.free_symbols & self._given.keys():
            if any(self._given[symbol].is_Integer for symbol in given):
                return None
            expr = expr.subs({symbol: self._given[symbol] for symbol in given})
        return None if expr in {sympy.true, sympy.false} else expr

    def translate(self, expr: Any) -> Expression:
        """Write an expression of symbols as a program's."""
        if isinstance(expr, sympy.Symbol):
            if expr not in self._meaning:
                raise NotPortableError(f"its forward uses the number {expr}, which is no size of an input")
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
            raise NotPortableError(f"its forward computes {expr} from sizes, which a program cannot express")
        args = tuple(self.translate(arg) for arg in expr.args)
        # Sympy orders by symbol names, which change from recording to recording.
        return Expr(operation, tuple(sorted(args, key=_order)) if operation in _COMMUTATIVE else args)


def _is_of_sizes(expr: Any) -> bool:
    return bool(expr.free_symbols) and not has_free_unbacked_symbols(expr)


def _is_layout_check(expr: Any) -> bool:
    """Whether an op's guard says only that a size is not 0 or 1: that is about memory layout, not about the result."""
    return isinstance(expr, sympy.Ne) and expr.rhs in {sympy.Integer(0), sympy.Integer(1)}


def _order(expr: Expression) -> tuple[bool, str]:
    return (isinstance(expr, int | float), expression_text(expr))
