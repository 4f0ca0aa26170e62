"""The names of a forward's values: who makes each one, and who may use it."""

from __future__ import annotations

from model_factory.config.syntax.expect import NAME
from model_factory.config.syntax.nodes import ConfigPath, Node, error_at
from model_factory.errors import path_text
from model_factory.program.ir import Ref
from model_factory.wording import nearest, quoted

INPUT = -1
"""Stands for the number of a step where a value is an input."""


class Values:
    """All inputs, and all values that steps make, each under one name."""

    def __init__(self) -> None:
        self._step_of: dict[str, int] = {}
        self._path_of: dict[str, ConfigPath] = {}

    def add(self, name: str, step: int, node: Node, path: ConfigPath) -> None:
        """Add a value made by the step with this number, named by ``node`` at ``path``; a name is used once."""
        if name in self._step_of:
            kind = "an input" if self._step_of[name] == INPUT else "a value"
            reason = f"collision: {quoted(name)} is already {kind}, named at {path_text(self._path_of[name])}"
            raise error_at(node, path, reason)
        self._step_of[name] = step
        self._path_of[name] = path

    def ref(self, name: str, node: Node, path: ConfigPath, *, step: int | None = None) -> Ref:
        """Return a reference to a value; ``step`` is the number of the step that uses it, None for the result."""
        if not NAME.fullmatch(name):
            reason = f"{quoted('$' + name)} is not a value; names match ^{NAME.pattern}$, and '$$x' is the string '$x'"
            raise error_at(node, path, reason)
        if name not in self._step_of:
            raise error_at(node, path, f"Unknown value {quoted('$' + name)}{nearest(name, self._step_of)}")
        if step is not None and self._step_of[name] >= step:
            made_at = path_text(self._path_of[name])
            raise error_at(node, path, f"Forward reference: {quoted('$' + name)} is made only later, at {made_at}")
        return Ref(name)
