"""Decisions by the values of tensors: each becomes a guard of the program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy

from model_factory.errors import NotPortableError
from model_factory.program.ir import Argument, Guard, GuardKind, Outcome, Program, Size, Step
from model_factory_server.export.conditions.symbols import SymbolTable, is_truth

MAX_DECISIONS = 64
"""Maximum number of decisions by values in a program."""

_TYPES = {"bool": bool, "int": int}


class DecidesByValuesError(Exception):
    """The forward reads a tensor's values without a possible guard, for example with ``tolist()``."""


class UndecidedError(NotPortableError):
    """The forward has reached a decision by values without a given outcome."""

    def __init__(self, program: Program, kind: GuardKind) -> None:
        super().__init__("the forward decides by the values of a tensor")
        self.program = program
        """The steps recorded so far; the result is the value of the decision."""
        self.kind = kind
        """Type of the decision's outcome."""


class ValueDecisions:
    """The decisions of a recording."""

    def __init__(
        self, inputs: tuple[str, ...], steps: list[Step], symbols: SymbolTable, outcomes: Sequence[Outcome]
    ) -> None:
        """Begin a recording.

        Args:
            inputs: Names of the program's inputs.
            steps: The steps of the recording; guards are added.
            symbols: Meanings of symbols.
            outcomes: Given outcomes of the first decisions, in order.
        """
        self._inputs = inputs
        self._steps = steps
        self._symbols = symbols
        self._outcomes = outcomes
        self._numbers: dict[Any, Any] = {}  # expression -> value
        self.taken: list[Outcome] = []
        """Outcomes so far."""
        self.backward_of = ""
        """The autograd function whose backward is recorded; a backward decides nothing by values."""
        self.undecided: UndecidedError | None = None
        """The first decision without a given outcome."""

    def decide(self, kind: GuardKind, condition: Argument, *, asserts: bool = False) -> Outcome:
        """Add a guard on ``condition`` and return its outcome; ``asserts`` is whether False is an error.

        Raises:
            UndecidedError: the outcome is not given.
            NotPortableError: the call has too many decisions, or an outcome of another type.
        """
        if self.backward_of:
            raise NotPortableError(
                f"the backward of {self.backward_of} decides by the values of a tensor. Remedy: decide with torch.where"
            )
        if len(self.taken) == MAX_DECISIONS:
            raise NotPortableError(
                f"the forward decides by values more than {MAX_DECISIONS} times in one call. Remedy: decide with "
                "torch.where"
            )
        if len(self.taken) == len(self._outcomes):
            program = Program(inputs=self._inputs, steps=tuple(self._steps), result=condition)
            self.undecided = self.undecided or UndecidedError(program, kind)
            raise self.undecided
        outcome = self._outcomes[len(self.taken)]
        if type(outcome) is not _TYPES[kind]:
            raise NotPortableError(f"the forward decides by a {kind}, and the call has the outcome {outcome!r}")
        self.taken.append(outcome)
        self._steps.append(Guard(value=condition, outcome=outcome, asserts=asserts and outcome is True))
        return outcome

    def decide_number(self, expr: Any) -> Any:
        """As :meth:`decide`, for a sympy expression with numbers from tensors; return a sympy value."""
        if expr not in self._numbers:
            condition = Size(self._symbols.translate(expr))
            if is_truth(expr):
                self._numbers[expr] = sympy.true if self.decide("bool", condition) else sympy.false
            elif expr.is_integer:
                self._numbers[expr] = sympy.Integer(self.decide("int", condition))
            else:
                raise DecidesByValuesError
        return self._numbers[expr]
