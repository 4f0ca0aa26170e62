"""The wire form of a config, and its digests."""

import json
import math
from typing import Any

import pytest
from blake3 import blake3

from model_factory.config import (
    canonical_bytes,
    digest,
    order_digest,
    parse_config,
    parse_wire,
    resolve_mapping,
    wire_bytes,
)
from model_factory.config.syntax.plain_data import to_plain
from model_factory.errors import ConfigError


def config(spec: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"schema_version": 1, "model": {"sequential": {"layers": [{"_type_": "a", **spec}]}}, **more}


def graph(**body: Any) -> dict[str, Any]:
    modules = {"a": {"_type_": "t"}, "b": {"_type_": "t"}}
    nodes = [{"name": "y", "call": "module:a", "args": ["$x"]}]
    return {
        "schema_version": 1,
        "model": {"graph": {"inputs": ["x"], "modules": modules, "nodes": nodes, "outputs": ["y"]} | body},
    }


def refused(data: bytes | str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_wire(data.encode() if isinstance(data, str) else data)
    return caught.value.reason


def test_golden_bytes() -> None:
    """The bytes are in caches and are sent between versions, and never change."""
    resolved = resolve_mapping(config({"z": [1, 1.0, True, None, "é"], "b": -0.0, "i": math.inf}), {})
    assert (
        resolved.wire
        == (
            '{"schema_version":1,"model":{"sequential":{"layers":'
            '[{"_type_":"a","z":[1,1.0,true,null,"é"],"b":-0.0,"i":{"$float":"inf"}}]}}}'
        ).encode()
    )
    canonical = (
        '{"model":{"sequential":{"layers":'
        '[{"_type_":"a","b":-0.0,"i":{"$float":"inf"},"z":[1,1.0,true,null,"é"]}]}},"schema_version":1}'
    ).encode()
    assert canonical_bytes(json.loads(resolved.wire) | {"model": to_plain(resolved.tree)["model"]}) == canonical
    assert resolved.digest == blake3(canonical).hexdigest()
    assert resolved.digest == "76d535d7a5e7cc0c38f5afc83f22c3b6a5cd38dea016fc8d763f30c088e7c0b6"


def test_the_wire_form_has_the_keys_for_a_server_in_written_order() -> None:
    mapping = {
        "notes": {"x": 1},
        "settings": {"strict": True},
        "params": {"w": 3},
        "signature": {"x": None},
        **config({"w": "${params.w}"}),
        "templates": {"t": {}},
    }
    assert json.loads(resolve_mapping(mapping, {}).wire) == {
        "settings": {"strict": True},
        "signature": {"x": None},
        **config({"w": 3}),
    }
    assert list(json.loads(resolve_mapping(mapping, {}).wire)) == ["settings", "signature", "schema_version", "model"]


def test_a_server_reads_the_resolved_config_of_a_trainer() -> None:
    trainer = resolve_mapping(
        graph(outputs={"b": "y", "a": "x"}) | {"notes": 1, "signature": {"x": {"shape": [1]}}}, {}
    )
    server = parse_config(trainer.wire)
    assert (server.model, server.wire) == (trainer.model, trainer.wire)
    assert (server.digest, server.order_digest) == (trainer.digest, trainer.order_digest)
    assert list(server.model.outputs) == ["b", "a"]
    assert server.place_of(("model",)) == "<request>"


def test_nothing_is_resolved_on_the_server() -> None:
    for text in ["${env:HOME}", "${model}", "${", "${env:"]:
        server = parse_config(wire_bytes(config({"text": text})))
        assert server.model.modules["layer0"]["text"] == text
    assert "Unknown key 'defaults'" in refused(json.dumps(config({}) | {"defaults": ["/etc/passwd"]}))
    assert "Unknown key 'templates'" in refused(json.dumps(config({}) | {"templates": {}}))
    with pytest.raises(ConfigError, match="Unknown reserved keys '_template_'"):
        parse_config(wire_bytes(config({"_template_": "t"})))


@pytest.mark.parametrize(
    "value",
    [
        0, -1, 2**127, 0.0, 1.0, 1e300, 5e-324, 0.1, 1e22, True, False, None,
        "", 'é\u2028\x00"\\', "\U0001f600", [], {}, [[]], {"": {}}, math.inf, -math.inf, [math.inf],
        {"$float": "inf"}, {"$float": 1}, {"$$float": "inf"}, {"$$$float": None}, {"$float": math.inf},
        {"$float": {"$float": "nan"}}, {"$float": "inf", "x": 1}, {"float": "inf"}, {"$Float": "inf"},
    ],
)  # fmt: skip
def test_each_value_reads_back_exactly(value: Any) -> None:
    read = to_plain(parse_wire(wire_bytes({"model": value})))["model"]
    assert repr(read) == repr(value)


def test_nan_and_negative_zero_read_back() -> None:
    read = to_plain(parse_wire(wire_bytes({"model": [math.nan, -0.0]})))["model"]
    assert math.isnan(read[0])
    assert math.copysign(1, read[1]) == -1


def test_different_values_have_different_bytes() -> None:
    values = [
        1, 1.0, True, "1", "true", 0, 0.0, -0.0, False, None, "null", [], {}, [1], math.inf, -math.inf, math.nan, "inf",
        {"$float": "inf"}, {"$float": "nan"}, {"$$float": "inf"}, {"$float": math.inf}, "é", "e\u0301",
    ]  # fmt: skip
    assert len({canonical_bytes(value) for value in values}) == len(values)
    assert len({digest(value) for value in values}) == len(values)


def test_the_order_of_keys_does_not_change_the_digest() -> None:
    assert canonical_bytes({"b": {"y": 1, "x": 2}, "a": 3}) == b'{"a":3,"b":{"x":2,"y":1}}'
    assert canonical_bytes({"é": 1, "z": 2, "Z": 3, "\U0001f600": 4}).decode() == '{"Z":3,"z":2,"é":1,"😀":4}'


@pytest.mark.parametrize("value", [object(), {1: 2}, b"x", "\ud800", {"\udfff": 1}, 2**128, {"a": {1}}])
def test_other_types_than_plain_data_are_refused(value: Any) -> None:
    for write in (canonical_bytes, digest):
        with pytest.raises(ConfigError):
            write(value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not valid JSON"),
        (b"\xff", "not UTF-8"),
        ("[1]", "must be a mapping, found a list of 1"),
        ("1", "must be a mapping"),
        ('{"model":1}{}', "not valid JSON"),
        ('{"model":1,}', "not valid JSON"),
        ("{\"model\":'x'}", "not valid JSON"),
        ('{"model":1,"model":1}', "Duplicate mapping key 'model'"),
        ('{"model":{"a":1,"b":2,"a":3}}', "Duplicate mapping key 'a'"),
        ('{"model":NaN}', "NaN is not a JSON number"),
        ('{"model":-Infinity}', "-Infinity is not a JSON number"),
        ('{"model":1e999}', "too large for a float"),
        ('{"model":' + "1" * 300 + "}", "more than 200 characters"),
        ('{"model":0.' + "1" * 300 + "}", "more than 200 characters"),
        ('{"model":' + str(2**128) + "}", "an integer of 129 bits is too large"),
        ('{"model":"\\ud800"}', "lone surrogate"),
        ('{"\\udc00":1}', "lone surrogate"),
        ('{"model":"\x01"}', "not valid JSON"),
        ('{"model":{"$float":"x"}}', "'$float' must be 'inf', '-inf' or 'nan'"),
        ('{"model":{"$float":["inf"]}}', "'$float' must be"),
        ('{"modl":1}', "did you mean 'model'?"),
        ("\ufeff{}", "not valid JSON"),
    ],
)
def test_the_wire_is_read_strictly(data: bytes | str, words: str) -> None:
    assert words in refused(data)


def test_a_config_from_the_wire_is_checked() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(wire_bytes({"schema_version": 1, "model": {"sequential": {"layers": [1]}}}))
    assert caught.value.path == ("model", "sequential", "layers", 0)


def orders(mapping: dict[str, Any]) -> tuple[str, str]:
    resolved = resolve_mapping(mapping, {})
    assert resolved.order_digest == order_digest(mapping)
    return resolved.digest, resolved.order_digest


def steps(**step: Any) -> dict[str, Any]:
    return graph(nodes=[{"name": "y", "call": "module:a"} | step])


SAME_CONTENT_OTHER_MEANING = [
    (
        graph(modules={"a": {"_type_": "t"}, "b": {"_type_": "u"}}),
        graph(modules={"b": {"_type_": "u"}, "a": {"_type_": "t"}}),
    ),
    (graph(outputs={"p": "y", "q": "x"}), graph(outputs={"q": "x", "p": "y"})),
    (config({"table": {"p": 1, "q": 2}}), config({"table": {"q": 2, "p": 1}})),
    (
        config({"deep": [{"_type_": "b", "table": {"p": 1, "q": 2}}]}),
        config({"deep": [{"_type_": "b", "table": {"q": 2, "p": 1}}]}),
    ),
    (config({"_kwargs_": {"t": {"p": 1, "q": 2}}}), config({"_kwargs_": {"t": {"q": 2, "p": 1}}})),
    (config({"_args_": [{"p": 1, "q": 2}]}), config({"_args_": [{"q": 2, "p": 1}]})),
    (steps(kwargs={"k": {"p": 1, "q": 2}}), steps(kwargs={"k": {"q": 2, "p": 1}})),
    (steps(args=[[{"p": 1, "q": 2}]]), steps(args=[[{"q": 2, "p": 1}]])),
]

SAME_MEANING = [
    (config({"p": 1, "q": 2}), config({"q": 2, "p": 1})),
    (config({"_kwargs_": {"p": 1, "q": 2}}), config({"_kwargs_": {"q": 2, "p": 1}})),
    (config({"s": {"_type_": "b", "p": 1}}), config({"s": {"p": 1, "_type_": "b"}})),
    (steps(kwargs={"p": 1, "q": 2}), steps(kwargs={"q": 2, "p": 1})),
    (steps(out={"k": "y", "l": "z"}), steps(out={"l": "z", "k": "y"})),
    (graph(), {"model": dict(reversed(graph()["model"].items())), "schema_version": 1}),
]


@pytest.mark.parametrize(("one", "other"), SAME_CONTENT_OTHER_MEANING)
def test_a_meaningful_order_changes_the_order_digest(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert orders(one)[0] == orders(other)[0]
    assert orders(one)[1] != orders(other)[1]


@pytest.mark.parametrize(("one", "other"), SAME_MEANING)
def test_a_meaningless_order_changes_no_digest(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert orders(one) == orders(other)


def test_the_written_order_of_nodes_in_a_mapping_changes_no_digest() -> None:
    nodes = {
        "p": {"call": "module:a", "args": [{"k": 1, "l": 2}]},
        "q": {"call": "module:b", "args": [{"l": 1, "k": 2}]},
    }
    one = graph(nodes=nodes, order=["p", "q"], outputs=["q"])
    other = graph(nodes=dict(reversed(nodes.items())), order=["p", "q"], outputs=["q"])
    assert orders(one) == orders(other)
