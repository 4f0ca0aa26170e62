"""``GraphModel``: a model whose forward is the steps of a config."""

from __future__ import annotations

import html
import itertools
from collections.abc import Mapping
from contextlib import suppress
from keyword import iskeyword
from typing import Any

from torch import nn

from model_factory.errors import CallSignatureError, GraphExecutionError
from model_factory.identity import BuildInfo
from model_factory.program.forward_signature import ForwardParameter, ForwardSignature
from model_factory.program.ir import ModuleCall, OpCall, Program, Step, step_text
from model_factory.program.ops import short_op
from model_factory.program.recorded_program import FORWARD
from model_factory.program.runtime.interpreter import Runner
from model_factory.program.runtime.signed_class import signed_class
from model_factory.wording import html_table, nearest, printable, quoted, shortened

GRAPH_MODULES = "graph_modules"
"""Name of the child that holds a graph's modules."""

_SHOWN_MODULES = 500
"""Rows of the table for notebooks."""

_OP = "op:"
_DOT = ":"  # replaces a dot in the name of a child, where torch allows no dot

_REFUSALS = (GraphExecutionError, CallSignatureError)


class GraphModel(nn.Module):
    """A model whose forward is the steps of a config.

    ``inputs`` is the list of input names. ``graph_modules`` is an ``nn.ModuleDict`` of the config's modules by name.
    The forward takes the inputs by position or by name, in any mix. ``repr()`` is one line; ``print`` shows the tree of
    torch, and a notebook a table.

    Example:
        >>> import torch
        >>> from model_factory.program.ir import Ref
        >>> steps = (
        ...     ModuleCall(path="graph_modules.layer", args=(Ref("x"),), out="h"),
        ...     OpCall(name="torch.relu", args=(Ref("h"),), out="y"),
        ... )
        >>> program = Program(inputs=("x",), steps=steps, result=Ref("y"))
        >>> model = GraphModel(program, {"layer": nn.Linear(4, 2)})
        >>> model(torch.zeros(3, 4)).shape
        torch.Size([3, 2])
        >>> [name for name, _ in model.named_parameters()]
        ['graph_modules.layer.weight', 'graph_modules.layer.bias']
        >>> model
        <GraphModel: 3 modules, 10 parameters>
    """

    def __init__(self, program: Program, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.graph_modules = nn.ModuleDict()
        # Written to the table: the method of nn.ModuleDict refuses "keys", "type" and other good names.
        self.graph_modules._modules.update(modules)  # noqa: SLF001
        self._initialise(Runner(program))

    def _initialise(self, runner: Runner) -> None:
        """Set the class and the program of an instance with or without modules."""
        self.inputs: list[str] = list(runner.program.inputs)
        self.runner = runner
        if type(self) is GraphModel and all(name.isidentifier() and not iskeyword(name) for name in self.inputs):
            signature = ForwardSignature(tuple(ForwardParameter(name, "positional") for name in self.inputs))
            self.__class__ = signed_class(GraphModel, "GraphModel", {FORWARD: signature})

    def __repr__(self) -> str:
        info, name, seed = vars(self).get("build_info"), "", ""
        if isinstance(info, BuildInfo):
            name, seed = f" {printable(info.component)}", f", seed {info.seed}"
        return f"<GraphModel{name}: {sum(1 for _ in self.modules())} modules, {_count(self):,} parameters{seed}>"

    def __str__(self) -> str:
        return super().__repr__()

    def _repr_html_(self) -> str:
        rows = [
            (name or "(model)", type(module).__name__, f"{_count(module, recurse=False):,}")
            for name, module in itertools.islice(self.named_modules(), _SHOWN_MODULES)
        ]
        total = sum(1 for _ in self.modules())
        more = [("...", f"{total - len(rows)} more modules", "")] if total > len(rows) else []
        last = ("total", f"{total} modules", f"{_count(self):,}")
        return f"<p>{html.escape(repr(self))}</p>{html_table(('name', 'type', 'parameters'), [*rows, *more, last])}"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the steps.

        An exception from a step is raised unchanged, with a note of the step's number and call.

        Raises:
            GraphExecutionError: an input is missing, unknown or given twice, or a step's result does not fit the
                step's ``out``; for a result, the message has the step's number and call.
        """
        return self.runner.run(self, self._bind(args, kwargs), on_error=self._step_failed)

    def run_method(
        self, _method: str, _signature: ForwardSignature, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run the forward, for a class with a signature."""
        return GraphModel.forward(self, *args, **kwargs)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        if len(args) > len(self.inputs):
            known = ", ".join(self.inputs)
            raise GraphExecutionError(
                f"too many positional inputs: the model takes {len(self.inputs)} ({known}), got {len(args)}"
            )
        values = dict(zip(self.inputs, args, strict=False))
        for name, value in kwargs.items():
            if name not in self.inputs:
                known = f"the model takes {', '.join(self.inputs)}{nearest(name, self.inputs)}"
                raise GraphExecutionError(f"unknown input {quoted(name)}: {known}")
            if name in values:
                raise GraphExecutionError(f"input {name!r} is given by position and by name")
            values[name] = value
        missing = [name for name in self.inputs if name not in values]
        if missing:
            raise GraphExecutionError(f"missing input{'s' * (len(missing) > 1)}: {', '.join(missing)}")
        return [values[name] for name in self.inputs]

    def _step_failed(self, index: int, error: BaseException) -> None:
        where = f"step {index} ({_config_call(self.runner.program.steps[index])})"
        if type(error) in _REFUSALS:
            raise type(error)(f"{where}: {error}") from error
        _add_note(error, printable(shortened(f"in {where} of a graph")))


def _count(module: nn.Module, *, recurse: bool = True) -> int:
    """Return the count of numbers in parameters; parameters of lazy modules have none before the first call."""
    return sum(item.numel() for item in module.parameters(recurse) if not nn.parameter.is_lazy(item))


def plugin_op_child(name: str) -> str:
    """Return the name of the child of ``graph_modules`` for an op of a plug-in.

    Example:
        >>> plugin_op_child("my.halve")
        'op:my:halve'
    """
    return f"{_OP}{name.replace('.', _DOT)}"


def _config_call(step: Step) -> str:
    """Name the call of a graph's step as a config does."""
    if isinstance(step, OpCall):
        return f"{_OP}{short_op(step.name)}"
    if isinstance(step, ModuleCall):
        name = step.path.removeprefix(f"{GRAPH_MODULES}.")
        return _OP + name.removeprefix(_OP).replace(_DOT, ".") if name.startswith(_OP) else f"module:{name}"
    return step_text(step)


def _add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception, once: a hook may raise the same object again and again."""
    if note in getattr(error, "__notes__", ()):
        return
    with suppress(Exception):  # a class may refuse new attributes
        vars(error).setdefault("__notes__", []).append(note)  # as BaseException.add_note, new in Python 3.11
