"""Conditions on sizes of layers' results and of parameters: steps, added once the forward reads sizes.

A condition is a step after the op that depends on the condition. So on the trainer torch's own error comes first if a
size is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model_factory.program.ir import Expr, Expression, Require, Size, Step
from model_factory_server.export.conditions.symbolic_sizes import plain_axes
from model_factory_server.export.conditions.symbols import SymbolTable


class SizeRequirements:
    """Adds conditions to the steps of a recording."""

    def __init__(self, symbols: SymbolTable, steps: list[Step]) -> None:
        self._symbols = symbols
        self._steps = steps
        self.touched: set[str] = set()
        """Names of values used by the forward, or with a property read by the forward."""
        # By name of a torch module's result, until the forward reads a size of the result:
        self._of_result: dict[str, Sequence[Expr]] = {}
        self._ones_of_result: dict[str, Sequence[Expr]] = {}  # sizes of 1, which are not symbols
        self._used_parameters: dict[str, torch.Tensor] = {}  # by path, until the forward reads any size

    def add_new(self) -> None:
        """Add the conditions of the recording since the last call of this method."""
        for condition in self._symbols.requirements():
            self._add(condition)

    def note_result(self, name: str, conditions: Sequence[Expr], ones: Sequence[Expr]) -> None:
        """Note a torch module's result: conditions on rank and sizes, and conditions on sizes of 1."""
        self._of_result[name] = conditions
        self._ones_of_result[name] = ones

    def note_parameter(self, path: str, tensor: torch.Tensor) -> None:
        """Note a parameter or buffer in use."""
        self._used_parameters[path] = tensor

    def read_parameter(self, path: str, tensor: torch.Tensor) -> None:
        """Add the conditions for a read of a parameter's sizes or rank."""
        self._fix_ones(path, tensor)
        self._symbols.fix_own_rank(path, tensor.dim())

    def read_result(self, name: str | None) -> None:
        """Add the conditions for a read of sizes or rank of the value ``name``."""
        for condition in self._of_result.pop(name or "", ()):
            self._add(condition)

    def require_ones(self) -> None:
        """Add conditions for sizes of 1 from layers and parameters, since a read size may be a product with 1."""
        for name in [name for name in self._ones_of_result if name in self.touched]:
            for condition in self._ones_of_result.pop(name):
                self._add(condition)
        for path, tensor in self._used_parameters.items():
            self._fix_ones(path, tensor)
        self._used_parameters.clear()

    def _fix_ones(self, path: str, tensor: torch.Tensor) -> None:
        if axes := plain_axes(tensor):
            self._symbols.fix_own(path, {axis: int(tensor.shape[axis]) for axis in axes})

    def _add(self, condition: Expression) -> None:
        self._steps.append(Require(condition=Size(condition)))
