"""The typed result of a resolved and checked config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model_factory.config.syntax.nodes import ConfigPath
from model_factory.program.ir import Argument, Program, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a config asks for itself. On a server it can only narrow what the operator allows."""

    strict: bool = True
    """Whether an unknown key with a leading underscore in a spec is an error."""
    allow_imports: bool = True
    """Whether modules may be imported so that they register blocks."""
    allowed_import_prefixes: tuple[str, ...] = ("model_constructor.",)
    """What the name of an imported module must start with."""
    allow_target: bool = False
    """Whether a spec may name what it builds by ``_target_``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A model: its modules, and the forward written down as steps.

    ``sequential`` and ``graph`` configs give the same kind of result. Layer i of a sequential one is module
    ``layer{i}``, whose step makes value ``h{i}``.
    """

    inputs: tuple[str, ...]
    """Names of the forward's inputs, in order."""
    modules: Mapping[str, dict[str, Any]]
    """The spec of each module as plain data, in written order, which is the order of the state dict."""
    steps: tuple[Step, ...]
    """The calls in order; ``$name`` became ``Ref(name)`` and ``$$x`` the string ``$x``."""
    outputs: Argument
    """The result: one Ref, a tuple of Refs, or ``{key: Ref}``."""
    settings: Settings
    """The config's settings, defaults filled in."""
    signature: Mapping[str, Any] | None = None
    """Example inputs by input name as plain data, or None when the config gives none."""
    module_paths: Mapping[str, ConfigPath]
    """Where in the config each module's spec stands."""
    step_paths: tuple[ConfigPath, ...]
    """Where in the config each step stands."""

    @property
    def program(self) -> Program:
        """The forward as a program."""
        return Program(inputs=self.inputs, steps=self.steps, result=self.outputs)
