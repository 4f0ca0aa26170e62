"""``nodes`` and ``steps`` of a graph: a list of nodes, a mapping of nodes with ``order``, or a list of steps."""

from __future__ import annotations

from dataclasses import dataclass

from model_factory.config.syntax.cursor import Cursor
from model_factory.config.syntax.nodes import MapNode
from model_factory.wording import listed, nearest, quoted

STEP_KEYS = ("call", "args", "kwargs", "out")
NODE_KEYS = ("name", *STEP_KEYS)


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenStep:
    """A step of the config, not yet read."""

    at: Cursor
    """The mapping of the step."""
    out: Cursor
    """The names of the results: ``out``, or the name of a node without ``out``."""


def written_steps(graph: Cursor) -> list[WrittenStep]:
    """Return the steps of a graph in the order of execution. Raises ConfigError."""
    entries = graph.entries()
    given = [key for key in ("nodes", "steps") if key in entries]
    if len(given) != 1:
        raise graph.error(f"a graph has either 'nodes' or 'steps', found {'both' if given else 'neither'}")
    body = entries[given[0]]
    if given[0] == "nodes" and isinstance(body.node, MapNode):
        return _node_mapping(body, entries.get("order"))
    if "order" in entries:
        raise entries["order"].error("'order' goes with nodes in mapping form only")
    return _node_list(body) if given[0] == "nodes" else _step_list(body)


def _step_list(body: Cursor) -> list[WrittenStep]:
    steps = []
    for step in body.items("steps"):
        step.entries(STEP_KEYS)
        steps.append(WrittenStep(at=step, out=step.entry("out")))
    return steps


def _node_list(body: Cursor) -> list[WrittenStep]:
    steps: dict[str, WrittenStep] = {}
    for node in body.items("nodes"):
        entries = node.entries(NODE_KEYS)
        at_name = node.entry("name")
        name = at_name.name()
        if name in steps:
            raise at_name.error(f"collision: a node {quoted(name)} is given twice")
        steps[name] = WrittenStep(at=node, out=entries.get("out", at_name))
    return list(steps.values())


def _node_mapping(body: Cursor, order: Cursor | None) -> list[WrittenStep]:
    if order is None:
        raise body.error("nodes mapping form requires 'order', the list of all node names")
    nodes = body.entries()
    steps: dict[str, WrittenStep] = {}
    for item in order.items("node names"):
        name = item.text()
        if name not in nodes:
            raise item.error(f"Unknown node {quoted(name)}{nearest(name, nodes)}")
        if name in steps:
            raise item.error(f"'order' lists the node {quoted(name)} twice")
        steps[name] = _mapped_node(name, nodes[name])
    missing = [name for name in nodes if name not in steps]
    if missing:
        raise order.error(f"'order' must list every node once; missing: {listed(missing)}")
    return list(steps.values())


def _mapped_node(name: str, node: Cursor) -> WrittenStep:
    node.entries()
    node.check_name(name)
    return WrittenStep(at=node, out=node.entries(STEP_KEYS).get("out", node.on(node.scalar(name))))
