"""The three ways to write the steps of a graph: a list of nodes, a mapping of nodes with an order, a list of steps."""

from __future__ import annotations

from dataclasses import dataclass

from model_factory.config.syntax.bounded_nodes import make_scalar
from model_factory.config.syntax.expect import (
    check_name,
    require_entry,
    require_keys,
    require_list,
    require_map,
    require_name,
    require_text,
)
from model_factory.config.syntax.nodes import ConfigPath, MapNode, Node, error_at
from model_factory.wording import listed, nearest, quoted

_STEP_KEYS = ("call", "args", "kwargs", "out")
_NODE_KEYS = ("name", *_STEP_KEYS)


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenStep:
    """A step as it stands in the config."""

    node: MapNode
    """Its mapping."""
    path: ConfigPath
    """Where it stands."""
    out: Node
    """The node that says where the result goes; a node's name where it has no ``out``."""
    out_path: ConfigPath
    """Where that stands."""


def written_steps(graph: MapNode, path: ConfigPath) -> list[WrittenStep]:
    """Return the steps of a graph in the order they run. Raises ConfigError."""
    given = [key for key in ("nodes", "steps") if key in graph.entries]
    if len(given) != 1:
        raise error_at(graph, path, f"a graph has either 'nodes' or 'steps', found {'both' if given else 'neither'}")
    form = given[0]
    body = graph.entries[form]
    if form == "nodes" and isinstance(body, MapNode):
        return _node_mapping(body, graph, path)
    if "order" in graph.entries:
        raise error_at(graph.entries["order"], (*path, "order"), "'order' goes with nodes in mapping form only")
    return _node_list(body, (*path, form)) if form == "nodes" else _step_list(body, (*path, form))


def _step_list(body: Node, path: ConfigPath) -> list[WrittenStep]:
    steps = []
    for index, item in enumerate(require_list(body, path, "steps").items):
        item_path = (*path, index)
        step = require_map(item, item_path)
        require_keys(step, item_path, _STEP_KEYS)
        out = require_entry(step, item_path, "out")
        steps.append(WrittenStep(node=step, path=item_path, out=out, out_path=(*item_path, "out")))
    return steps


def _node_list(body: Node, path: ConfigPath) -> list[WrittenStep]:
    steps: dict[str, WrittenStep] = {}
    for index, item in enumerate(require_list(body, path, "nodes").items):
        item_path = (*path, index)
        node = require_map(item, item_path)
        require_keys(node, item_path, _NODE_KEYS)
        name_node = require_entry(node, item_path, "name")
        name = require_name(name_node, (*item_path, "name"))
        if name in steps:
            raise error_at(name_node, (*item_path, "name"), f"collision: a node {quoted(name)} stands above already")
        steps[name] = _node_step(node, item_path, name_node, (*item_path, "name"))
    return list(steps.values())


def _node_mapping(body: MapNode, graph: MapNode, path: ConfigPath) -> list[WrittenStep]:
    if "order" not in graph.entries:
        raise error_at(body, (*path, "nodes"), "nodes mapping form requires 'order', the list of all node names")
    order_path = (*path, "order")
    order = require_list(graph.entries["order"], order_path, "node names")
    steps: dict[str, WrittenStep] = {}
    for index, item in enumerate(order.items):
        name = require_text(item, (*order_path, index))
        if name not in body.entries:
            raise error_at(item, (*order_path, index), f"Unknown node {quoted(name)}{nearest(name, body.entries)}")
        if name in steps:
            raise error_at(item, (*order_path, index), f"'order' lists the node {quoted(name)} twice")
        steps[name] = _mapped_node(name, body.entries[name], (*path, "nodes", name))
    missing = [name for name in body.entries if name not in steps]
    if missing:
        raise error_at(order, order_path, f"'order' must list every node once, it lacks {listed(missing)}")
    return list(steps.values())


def _mapped_node(name: str, body: Node, path: ConfigPath) -> WrittenStep:
    node = require_map(body, path)
    check_name(name, node, path)
    require_keys(node, path, _STEP_KEYS)
    return _node_step(node, path, make_scalar(name, node.place), path)


def _node_step(node: MapNode, path: ConfigPath, name: Node, name_path: ConfigPath) -> WrittenStep:
    if "out" in node.entries:
        return WrittenStep(node=node, path=path, out=node.entries["out"], out_path=(*path, "out"))
    return WrittenStep(node=node, path=path, out=name, out_path=name_path)
