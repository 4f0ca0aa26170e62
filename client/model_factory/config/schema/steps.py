"""The steps of a graph to the steps of a program: results, call, and arguments with ``$name``."""

from __future__ import annotations

import re
from collections.abc import Collection

from model_factory.config.schema.nodes_and_steps import WrittenStep, written_steps
from model_factory.config.schema.value_names import ValueNames
from model_factory.config.syntax.cursor import Cursor
from model_factory.config.syntax.nodes import ConfigPath, ListNode, MapNode, Scalar
from model_factory.program.ir import Argument, ModuleCall, OpCall, Out, Step
from model_factory.wording import nearest, quoted

_CALL = re.compile(r"(module|op):(.+)", re.DOTALL)


def read_steps(graph: Cursor, modules: Collection[str], values: ValueNames) -> dict[ConfigPath, Step]:
    """Return the steps of a graph by config path, in the order of execution; add the names of results to ``values``.

    Raises ConfigError.
    """
    written = written_steps(graph)
    # All results first: an argument that names a later result is a forward reference, not an unknown value.
    outs = [_read_out(step.out, index, values) for index, step in enumerate(written)]
    return {
        step.at.path: _read_step(step, index, out, modules, values)
        for index, (step, out) in enumerate(zip(written, outs, strict=True))
    }


def _read_out(out: Cursor, index: int, values: ValueNames) -> Out:
    if isinstance(out.node, ListNode) and out.node.items:
        return tuple(_new_value(item, index, values) for item in out.items("names"))
    if isinstance(out.node, MapNode) and out.node.entries:
        return {key: _new_value(item, index, values) for key, item in out.entries().items()}
    if not isinstance(out.node, Scalar):
        raise out.error(f"must be a name, a list of names or {{returned key: name}}, found {out.found}")
    return _new_value(out, index, values)


def _new_value(at: Cursor, index: int, values: ValueNames) -> str:
    name = at.name()
    values.add(name, index, at)
    return name


def _read_step(step: WrittenStep, index: int, out: Out, modules: Collection[str], values: ValueNames) -> Step:
    entries = step.at.entries()
    kind, name = _read_call(step.at.entry("call"), modules)
    items = entries["args"].items("arguments") if "args" in entries else []
    args = tuple(_read_argument(item, index, values) for item in items)
    keywords = entries["kwargs"].entries() if "kwargs" in entries else {}
    kwargs = {key: _read_argument(item, index, values) for key, item in keywords.items()}
    if kind == "module":
        return ModuleCall(path=name, args=args, kwargs=kwargs, out=out)
    return OpCall(name=name, args=args, kwargs=kwargs, out=out)


def _read_call(at: Cursor, modules: Collection[str]) -> tuple[str, str]:
    """Return the kind of a call, ``module`` or ``op``, and the name after the colon."""
    call = at.text()
    match = _CALL.fullmatch(call)
    if not match:
        reason = f"must be 'module:NAME' or 'op:NAME', found {quoted(call)}"
        raise at.error(reason + nearest(call, [f"module:{name}" for name in modules]))
    kind, name = match.groups()
    if kind == "module" and name not in modules:
        raise at.error(f"Unknown module {quoted(name)}{nearest(name, modules)}")
    return kind, name


def _read_argument(at: Cursor, index: int, values: ValueNames) -> Argument:
    if isinstance(at.node, MapNode):
        return {key: _read_argument(item, index, values) for key, item in at.entries().items()}
    if isinstance(at.node, ListNode):
        return [_read_argument(item, index, values) for item in at.items("arguments")]
    value = at.node.value
    if not isinstance(value, str) or not value.startswith("$"):
        return value
    if value.startswith("$$"):
        return value[1:]
    return values.ref(value[1:], at, step=index)
