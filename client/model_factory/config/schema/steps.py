"""The steps of a graph -> steps of a program."""

from __future__ import annotations

import re
from collections.abc import Collection

from model_factory.config.schema.step_forms import WrittenStep, written_steps
from model_factory.config.schema.values import Values
from model_factory.config.syntax.expect import require_entry, require_list, require_map, require_name, require_text
from model_factory.config.syntax.nodes import ConfigPath, ListNode, MapNode, Node, Scalar, error_at, found
from model_factory.program.ir import Argument, ModuleCall, OpCall, Out, Step
from model_factory.wording import nearest, quoted

_CALL = re.compile(r"(module|op):(.+)", re.DOTALL)


def read_steps(graph: MapNode, path: ConfigPath, modules: Collection[str], values: Values) -> dict[ConfigPath, Step]:
    """Return the steps of a graph by their config path, in the order they run; adds what they make to ``values``.

    Raises ConfigError.
    """
    written = written_steps(graph, path)
    # All names first: an argument that names a value made later is then a forward reference, not an unknown value.
    outs = [_read_out(step, index, values) for index, step in enumerate(written)]
    return {
        step.path: _read_step(step, index, out, modules, values)
        for index, (step, out) in enumerate(zip(written, outs, strict=True))
    }


def _read_out(step: WrittenStep, index: int, values: Values) -> Out:
    out, path = step.out, step.out_path
    if isinstance(out, ListNode) and out.items:
        return tuple(_new_value(item, (*path, i), index, values) for i, item in enumerate(out.items))
    if isinstance(out, MapNode) and out.entries:
        return {key: _new_value(item, (*path, key), index, values) for key, item in out.entries.items()}
    if not isinstance(out, Scalar):
        raise error_at(out, path, f"must be a name, a list of names or {{returned key: name}}, found {found(out)}")
    return _new_value(out, path, index, values)


def _new_value(node: Node, path: ConfigPath, index: int, values: Values) -> str:
    name = require_name(node, path)
    values.add(name, index, node, path)
    return name


def _read_step(step: WrittenStep, index: int, out: Out, modules: Collection[str], values: Values) -> Step:
    call_node = require_entry(step.node, step.path, "call")
    kind, name = _read_call(call_node, (*step.path, "call"), modules)
    args: tuple[Argument, ...] = ()
    kwargs: dict[str, Argument] = {}
    if "args" in step.node.entries:
        path = (*step.path, "args")
        items = require_list(step.node.entries["args"], path, "arguments").items
        args = tuple(_read_argument(item, (*path, i), index, values) for i, item in enumerate(items))
    if "kwargs" in step.node.entries:
        path = (*step.path, "kwargs")
        entries = require_map(step.node.entries["kwargs"], path).entries
        kwargs = {key: _read_argument(item, (*path, key), index, values) for key, item in entries.items()}
    if kind == "module":
        return ModuleCall(path=name, args=args, kwargs=kwargs, out=out)
    return OpCall(name=name, args=args, kwargs=kwargs, out=out)


def _read_call(node: Node, path: ConfigPath, modules: Collection[str]) -> tuple[str, str]:
    """Return the kind of a call, ``module`` or ``op``, and the name after the colon."""
    call = require_text(node, path)
    match = _CALL.fullmatch(call)
    if not match:
        reason = f"must be 'module:NAME' or 'op:NAME', found {quoted(call)}"
        raise error_at(node, path, reason + nearest(call, [f"module:{name}" for name in modules]))
    kind, name = match.groups()
    if kind == "module" and name not in modules:
        raise error_at(node, path, f"Unknown module {quoted(name)}{nearest(name, modules)}")
    return kind, name


def _read_argument(node: Node, path: ConfigPath, index: int, values: Values) -> Argument:
    if isinstance(node, MapNode):
        return {key: _read_argument(item, (*path, key), index, values) for key, item in node.entries.items()}
    if isinstance(node, ListNode):
        return [_read_argument(item, (*path, i), index, values) for i, item in enumerate(node.items)]
    if not isinstance(node.value, str) or not node.value.startswith("$"):
        return node.value
    if node.value.startswith("$$"):
        return node.value[1:]
    return values.ref(node.value[1:], node, path, step=index)
