"""Arithmetic on sizes: the operations of an ``Expr``, compiled to functions."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from functools import reduce
from types import MappingProxyType
from typing import Any

from model_factory.errors import FormatError
from model_factory.program.bounds import bounded_integer
from model_factory.program.ir import Dim, Expr, Expression, Rank, Ref

_MAX_BITS = 256  # of an integer: far above every size; without a bound, powers of powers would never end

Env = dict[Any, Any]
"""Values by name, and shapes by :func:`shape_key`."""

Evaluate = Callable[[Env], Any]


def _all(*values: object) -> bool:
    return all(values)


def _any(*values: object) -> bool:
    return any(values)


def _sum(*values: Any) -> Any:
    return reduce(operator.add, values)


def _times(one: Any, other: Any) -> Any:
    if isinstance(one, int) and isinstance(other, int):
        _check_bits(one.bit_length() + other.bit_length())
    return one * other


def _product(*values: Any) -> Any:
    return reduce(_times, values)


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int):
        _check_bits(base.bit_length() * exponent)
    return base**exponent


def _check_bits(count: int) -> None:
    if count > _MAX_BITS:
        raise FormatError(f"the number may have {count} bits; at most {_MAX_BITS} are allowed")


EXPRESSION_OPS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "add": _sum,
        "mul": _product,
        "floordiv": operator.floordiv,
        "truediv": operator.truediv,
        "mod": operator.mod,
        "pow": _power,
        "max": max,
        "min": min,
        "float": float,
        "int": int,
        "floor": math.floor,
        "ceil": math.ceil,
        "round": round,
        "sqrt": math.sqrt,
        "eq": operator.eq,
        "ne": operator.ne,
        "lt": operator.lt,
        "le": operator.le,
        "gt": operator.gt,
        "ge": operator.ge,
        "and": _all,
        "or": _any,
        "not": operator.not_,
    }
)


def shape_key(name: str) -> tuple[str, str]:
    """Return the key of a tensor's shape in an environment. A shape outlives the tensor, which may be large."""
    return ("shape", name)


def compile_expression(expr: Expression) -> Evaluate:
    """Compile an expression to a function of an environment; the function may raise FormatError.

    Example:
        >>> half = compile_expression(Expr("floordiv", (Dim("x", 1), 2)))
        >>> half({shape_key("x"): (4, 10)})
        5
    """
    evaluate = _compile(expr)

    def checked(env: Env) -> Any:
        try:
            value = evaluate(env)
            return bounded_integer(value) if type(value) is int else value
        except _FAILURES as error:
            raise FormatError(f"the size {expression_text(expr)} cannot be computed: {error}") from None

    return checked if isinstance(expr, Expr | Dim | Rank) else evaluate


_FAILURES = (ArithmeticError, AttributeError, FormatError, LookupError, TypeError, ValueError)


def _compile(expr: Expression) -> Evaluate:
    if isinstance(expr, Dim):
        key, axis = shape_key(expr.name), expr.axis
        return lambda env: env[key][axis]
    if isinstance(expr, Rank):
        key = shape_key(expr.name)
        return lambda env: len(env[key])
    if isinstance(expr, Ref):
        name = expr.name
        return lambda env: env[name]
    if isinstance(expr, Expr):
        function = EXPRESSION_OPS.get(expr.op)
        if function is None:
            raise FormatError(f"a program uses the unknown size operation {expr.op!r}")
        operands = tuple(_compile(arg) for arg in expr.args)
        return lambda env: function(*[operand(env) for operand in operands])
    constant = expr
    return lambda _env: constant


def expression_names(expr: Expression) -> set[str]:
    """Names of the values in an expression."""
    if isinstance(expr, Expr):
        return set().union(*map(expression_names, expr.args))
    return {expr.name} if isinstance(expr, Dim | Rank | Ref) else set()


def expression_text(expr: Expression) -> str:
    """Write an expression for a message.

    Example:
        >>> expression_text(Expr("gt", (Dim("tokens", 1), 64)))
        'gt(tokens.shape[1], 64)'
    """
    if isinstance(expr, Dim):
        return f"{expr.name}.shape[{expr.axis}]"
    if isinstance(expr, Rank):
        return f"{expr.name}.dim()"
    if isinstance(expr, Ref):
        return expr.name
    if isinstance(expr, Expr):
        return f"{expr.op}({', '.join(expression_text(arg) for arg in expr.args)})"
    return repr(expr)
