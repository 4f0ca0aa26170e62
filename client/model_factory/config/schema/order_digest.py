"""A digest of the key orders that are part of a model.

Most mappings mean the same in any order. Three do not: the modules of a graph (the order of the state dict), outputs
given as a mapping (the order of the dict that the forward returns), and plain mappings among the arguments of a spec
or a step (code may iterate over the mapping).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from model_factory.config.schema.specs import is_spec
from model_factory.digest import digest_of


def order_digest(config: Mapping[str, Any]) -> str:
    """Return the blake3, in hex, of the meaningful key orders of a checked config given as plain data.

    Two configs with equal ``digest`` and equal ``order_digest`` are the same model.

    >>> relu = {"_type_": "nn.ReLU"}
    >>> def graph(modules):
    ...     return {"model": {"graph": {"inputs": ["x"], "modules": modules, "steps": [], "outputs": ["x"]}}}
    >>> order_digest(graph({"a": relu, "b": relu})) == order_digest(graph({"b": relu, "a": relu}))
    False
    """
    # The mappings are visited in an order that no key order changes, so the keys alone identify each mapping.
    lines = (json.dumps(keys) for keys in _model_orders(config["model"]))
    return digest_of("\n".join(lines).encode())


def _model_orders(model: Mapping[str, Any]) -> Iterator[list[str]]:
    body = model.get("graph") or model["sequential"]
    modules = body.get("modules", {})
    yield list(modules)
    for name in sorted(modules):
        yield from _argument_orders(modules[name])
    yield from _argument_orders(body.get("layers", []))
    for step in _steps(body):
        yield from _argument_orders(step.get("args", []))
        yield from _value_orders(step.get("kwargs", {}))
    if isinstance(body.get("outputs"), dict):
        yield list(body["outputs"])


def _steps(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the steps in the order of execution."""
    steps = body.get("steps", body.get("nodes", []))
    return [steps[name] for name in body["order"]] if isinstance(steps, dict) else steps


def _argument_orders(value: Any) -> Iterator[list[str]]:
    if isinstance(value, list):
        for item in value:
            yield from _argument_orders(item)
    elif isinstance(value, dict) and is_spec(value):
        keywords = dict(value)
        extra = keywords.pop("_kwargs_", {})
        yield from _value_orders(keywords)
        yield from _value_orders(extra)
    elif isinstance(value, dict):
        yield list(value)
        yield from _value_orders(value)


def _value_orders(mapping: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the orders inside a mapping whose own order was yielded before or has no meaning."""
    for key in sorted(mapping):
        yield from _argument_orders(mapping[key])
