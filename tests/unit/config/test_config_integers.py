"""Integers of a config are bounded, on both sides: torch multiplies sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model_factory.config import parse_config, resolve_file, resolve_mapping, wire_bytes
from model_factory.errors import ConfigError
from model_factory.limits import MAX_INTEGER

WORDS = "is too large; integers of a config lie between -2147483648 and 2147483648"
TOO_LARGE = [MAX_INTEGER + 1, -MAX_INTEGER - 1, 2**63 - 1, -(2**63), 2**63, 2**64, 2**127]


def pool(stride: Any) -> dict[str, Any]:
    layer = {"_type_": "nn.MaxPool1d", "kernel_size": 17, "stride": stride, "padding": 8}
    return {"schema_version": 1, "model": {"sequential": {"layers": [layer]}}}


def step(argument: Any) -> dict[str, Any]:
    written = {"call": "op:narrow", "args": ["$x", 0, argument], "out": "y"}
    graph = {"inputs": ["x"], "modules": {}, "steps": [written], "outputs": ["$y"]}
    return {"schema_version": 1, "model": {"graph": graph}}


@pytest.mark.parametrize("integer", TOO_LARGE)
@pytest.mark.parametrize("value", [lambda it: it, lambda it: [1, it], lambda it: {"_type_": "nn.ReLU", "x": [it]}])
@pytest.mark.parametrize("config", [pool, step])
def test_a_large_integer_is_refused_on_both_sides(config: Any, value: Any, integer: int) -> None:
    document = config(value(integer))
    with pytest.raises(ConfigError, match=WORDS) as caught:
        resolve_mapping(document, {})
    assert str(integer) in str(caught.value)
    assert "Remedy" in str(caught.value)
    assert caught.value.path[:2] == ("model", "sequential" if config is pool else "graph")
    with pytest.raises(ConfigError, match=WORDS) as received:
        parse_config(wire_bytes(document))
    assert received.value.path == caught.value.path


def test_the_bounds_themselves_are_allowed() -> None:
    for integer in (MAX_INTEGER, -MAX_INTEGER, 0, -1, True):
        resolve_mapping(pool(integer), {})
    resolve_mapping(pool(1e300), {})
    resolve_mapping(pool(str(2**100)), {})


def test_the_place_of_a_large_integer_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "schema_version: 1\nparams: {n: 9223372036854775807}\n"
        "model:\n  sequential:\n    layers:\n      - {_type_: nn.MaxPool1d, kernel_size: 17, stride: '${params.n}'}\n"
    )
    with pytest.raises(ConfigError, match=WORDS) as caught:
        resolve_file(tmp_path / "c.yaml", {})
    assert "model.sequential.layers[0].stride" in str(caught.value)
    assert "c.yaml:" in str(caught.value)


def test_a_variable_with_a_large_integer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=WORDS):
        resolve_mapping(pool("${env:int:N}"), {"N": str(2**40)})


def test_free_keys_hold_any_integer() -> None:
    document = pool(2) | {"notes": [2**100], "params": {"seed": 2**64 - 1}}
    assert "9223372036854775807" not in str(resolve_mapping(document, {}).plain())


def test_integers_of_a_signature() -> None:
    for example in (2**31 + 1, [2**40], {"shape": [1, 2**40]}, {"key": -(2**63)}):
        with pytest.raises(ConfigError, match=rf"{WORDS}|more than 67108864 elements"):
            resolve_mapping(pool(2) | {"signature": {"x": example}}, {})


def test_the_version_is_an_integer_like_others() -> None:
    with pytest.raises(ConfigError, match="must be 1, found the number"):
        resolve_mapping(pool(2) | {"schema_version": 2**100}, {})
