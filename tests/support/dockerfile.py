"""Reads the Dockerfiles, so that tests and commands follow the files."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(slots=True)
class Stage:
    """The instructions from a FROM to the next."""

    base: str
    name: str = ""
    steps: list[tuple[str, str]] = field(default_factory=list)
    """Instruction in upper case, and the rest of the line."""

    def all(self, instruction: str) -> list[str]:
        return [rest for name, rest in self.steps if name == instruction]

    def one(self, instruction: str) -> str:
        (rest,) = self.all(instruction)
        return rest

    @property
    def environment(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for rest in self.all("ENV"):
            found |= dict(item.split("=", 1) for item in shlex.split(rest))
        return found

    @property
    def arguments(self) -> dict[str, str]:
        return {name: value for name, _, value in (rest.partition("=") for rest in self.all("ARG"))}

    @property
    def health_check(self) -> list[str]:
        command = json.loads(self.one("HEALTHCHECK").partition("CMD ")[2])
        assert isinstance(command, list)
        return command

    def command(self, instruction: str) -> list[str]:
        """Return the exec form of ENTRYPOINT or CMD; empty without the instruction."""
        return [str(item) for rest in self.all(instruction) for item in json.loads(rest)]


def read_dockerfile(path: Path) -> tuple[dict[str, str], list[Stage]]:
    """Return the arguments before the first FROM, and the stages."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    outer: dict[str, str] = {}
    stages: list[Stage] = []
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(base=base, name=name))
        elif stages:
            stages[-1].steps.append((instruction, rest.strip()))
        else:
            assert instruction == "ARG", line
            name, _, value = rest.partition("=")
            outer[name] = value
    return outer, stages
