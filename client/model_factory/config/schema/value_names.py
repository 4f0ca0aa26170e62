"""The names of a forward's values, each with the step of its origin."""

from __future__ import annotations

from model_factory.config.syntax.cursor import NAME, Cursor
from model_factory.config.syntax.nodes import ConfigPath
from model_factory.errors import path_text
from model_factory.program.ir import Ref
from model_factory.wording import nearest, quoted

INPUT = -1
"""The step number of inputs."""


class ValueNames:
    """All inputs and all results of steps, by unique name."""

    def __init__(self) -> None:
        self._step_of: dict[str, int] = {}
        self._path_of: dict[str, ConfigPath] = {}

    def add(self, name: str, step: int, at: Cursor) -> None:
        """Add the value of the step with this number, named at ``at``. Raises ConfigError if the name is taken."""
        if name in self._step_of:
            kind = "an input" if self._step_of[name] == INPUT else "a value"
            raise at.error(f"collision: {quoted(name)} is already {kind}, named at {path_text(self._path_of[name])}")
        self._step_of[name] = step
        self._path_of[name] = at.path

    def read_inputs(self, at: Cursor) -> tuple[str, ...]:
        """Read a list of input names and add them."""
        names = []
        for item in at.items("names", empty=False):
            names.append(item.name())
            self.add(names[-1], INPUT, item)
        return tuple(names)

    def ref(self, name: str, at: Cursor, *, step: int | None = None) -> Ref:
        """Return a reference to a value; ``step`` is the number of the step with the reference, None for the outputs.

        Raises ConfigError for an unknown value, and for a value of the same step or a later step.
        """
        if not NAME.fullmatch(name):
            raise at.error(
                f"{quoted('$' + name)} is not a value; names match ^{NAME.pattern}$, and '$$x' is the string '$x'"
            )
        if name not in self._step_of:
            raise at.error(f"Unknown value {quoted('$' + name)}{nearest(name, self._step_of)}")
        if step is not None and self._step_of[name] >= step:
            made_at = path_text(self._path_of[name])
            raise at.error(f"Forward reference: {quoted('$' + name)} is made only later, at {made_at}")
        return Ref(name)
