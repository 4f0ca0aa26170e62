"""The typed result of a resolved and checked config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model_factory.config.syntax.nodes import ConfigPath
from model_factory.program.ir import Argument, Program, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Permissions that a config requests. A server grants only permissions that the operator allows.

    >>> Settings().allow_target
    False
    """

    strict: bool = True
    """Whether an unknown key with a leading underscore in a spec is an error."""
    allow_imports: bool = True
    """Whether modules may be imported to register blocks."""
    allowed_import_prefixes: tuple[str, ...] = ("model_constructor.",)
    """Allowed prefixes of the names of imported modules."""
    allow_target: bool = False
    """Whether a spec may name a class or function to import by ``_target_``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedCheckpoint:
    """The checkpoint that a config names: ``model.weights``. The operator maps the name to a file.

    >>> NamedCheckpoint(name="resnet34-imagenet").strict
    True
    """

    name: str
    """Name in the catalogue of the server."""
    prefixes: Mapping[str, str] | None = None
    """Beginnings of names in the file, and their replacements in the model; None: all tensors, with unchanged names."""
    strict: bool = True
    """Whether missing and unexpected tensors are errors."""
    entry: str | None = None
    """Key of the state dict in a file with more than a state dict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A model: the specs of its modules, and the forward as steps.

    ``sequential`` and ``graph`` configs give the same kind of result. Layer i of a ``sequential`` is module
    ``layer{i}``, and its step makes value ``h{i}``.

    >>> from model_factory.config import resolve_mapping
    >>> sequential = {"layers": [{"_type_": "nn.Linear", "in_features": 4, "out_features": 2}]}
    >>> model = resolve_mapping({"schema_version": 1, "model": {"sequential": sequential}}, env={}).model
    >>> model.inputs, list(model.modules), model.outputs
    (('x',), ['layer0'], Ref(name='h0'))
    """

    inputs: tuple[str, ...]
    """Names of the forward's inputs, in order."""
    modules: Mapping[str, dict[str, Any]]
    """The spec of each module as plain data, in written order: the order of the state dict."""
    steps: tuple[Step, ...]
    """The calls in order. ``$name`` in the config is ``Ref(name)`` here, and ``$$x`` is the string ``$x``."""
    outputs: Argument
    """The result: one Ref, a tuple of Refs, or ``{key: Ref}``."""
    settings: Settings
    """The config's settings with defaults."""
    signature: Mapping[str, Any] | None = None
    """Example inputs by input name as plain data; None for a config without ``signature``."""
    weights: NamedCheckpoint | None = None
    """The checkpoint with the first weights; None for a config without ``weights``."""
    module_paths: Mapping[str, ConfigPath]
    """The config path of each module's spec."""
    step_paths: tuple[ConfigPath, ...]
    """The config path of each step."""

    @property
    def program(self) -> Program:
        """The forward as a program."""
        return Program(inputs=self.inputs, steps=self.steps, result=self.outputs)
