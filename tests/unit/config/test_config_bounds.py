"""Bombs: configs of exponential or quadratic cost are refused before time or memory grows."""

import re
from pathlib import Path
from typing import Any

import pytest

from model_factory.config import (
    MAX_CONFIG_BYTES,
    ConfigBounds,
    canonical_bytes,
    parse_config,
    parse_wire,
    resolve_file,
    resolve_mapping,
)
from model_factory.config.bounds import MAX_FILES, MAX_INT_BITS, MAX_NESTING, MAX_NODES, MAX_TEXT_BYTES
from model_factory.config.syntax.yaml_tree import parse_yaml
from model_factory.errors import ConfigError, LimitError


def nested(depth: int, leaf: Any = 1) -> Any:
    for _ in range(depth):
        leaf = [leaf]
    return leaf


def in_memory(**top_level: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve_mapping({"schema_version": 1, "model": {"sequential": {"layers": [{"_type_": "a"}]}}} | top_level, {})
    return caught.value.reason


def in_yaml(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "c.yaml")
    return caught.value.reason


def on_the_wire(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_wire(text.encode())
    return caught.value.reason


@pytest.mark.parametrize("copies", ["[*a{0}, *a{0}]", "{{x: *a{0}, y: *a{0}}}", "{{<<: *a{0}, k{1}: *a{0}}}"])
def test_billion_laughs_by_aliases(copies: str) -> None:
    lines = ["a0: &a0 {k0: lol}"] + [f"a{i}: &a{i} " + copies.format(i - 1, i) for i in range(1, 60)]
    assert "too large" in in_yaml("\n".join(lines))


def test_billion_laughs_in_memory() -> None:
    laugh: Any = "lol"
    for _ in range(60):
        laugh = [laugh, laugh]
    assert "too large" in in_memory(params=laugh)


@pytest.mark.parametrize("form", ["[${{v{0}}}, ${{v{0}}}]", "list", "text", "json"])
def test_billion_laughs_by_interpolation(form: str) -> None:
    params: dict[str, Any] = {"v0": ["lol"]}
    for i in range(1, 60):
        below = f"${{params.v{i - 1}}}"
        params[f"v{i}"] = {"list": [below, below], "text": below + below, "json": {"a": below + below}}.get(
            form, [below] * 9
        )
    assert "too large" in in_memory(params=params)


def test_billion_laughs_by_the_environment() -> None:
    mapping = {"schema_version": 1, "params": ["${env:BIG}"] * 40, "model": {}}
    with pytest.raises(ConfigError, match="too large"):
        resolve_mapping(mapping, {"BIG": "x" * 100_000})
    with pytest.raises(ConfigError, match="too long"):
        resolve_mapping(mapping, {"BIG": "x" * (MAX_TEXT_BYTES + 1)})


def test_billion_laughs_by_templates() -> None:
    templates: dict[str, Any] = {"t0": {"x": 1}}
    for i in range(1, 60):
        templates[f"t{i}"] = {"a": {"_template_": f"t{i - 1}"}, "b": {"_template_": f"t{i - 1}"}}
    assert "too large" in in_memory(templates=templates)


def test_wide_templates_used_often() -> None:
    wide = {f"k{i}": i for i in range(5000)}
    assert "too large" in in_memory(templates={"t": wide}, params=[{"_template_": "t", "k1": 0}] * 5000)


def test_billion_laughs_by_list_directives(tmp_path: Path) -> None:
    for i in range(6):
        include = f"defaults: [f{i - 1}.yaml]\n" if i else ""
        (tmp_path / f"f{i}.yaml").write_text(f"{include}xs: {{_merge_: append, _value_: [{'1,' * 20_000}]}}\n")
    with pytest.raises(ConfigError, match="too large"):
        resolve_file(tmp_path / "f5.yaml", {})


def test_doubling_includes(tmp_path: Path) -> None:
    (tmp_path / "f0.yaml").write_text("a: 1")
    for i in range(1, 40):
        (tmp_path / f"f{i}.yaml").write_text(f"defaults: [f{i - 1}.yaml, f{i - 1}.yaml]")
    with pytest.raises(ConfigError, match=f"more than {MAX_FILES} files"):
        resolve_file(tmp_path / "f39.yaml", {})


@pytest.mark.parametrize(
    "text", ["a: " + "[" * 50_000, "a: " + "{a: " * 50_000, "- " * 50_000, "a: " + "[" * 65 + "]" * 65]
)
def test_yaml_nested_too_deeply(text: str) -> None:
    # libyaml from 0.2.6 on has a limit of its own for brackets, and reads ahead.
    assert re.search("nested deeper than|exceeded maximum nesting depth", in_yaml(text))


def test_yaml_nested_in_keys_is_refused_at_the_first_key() -> None:
    assert in_yaml("? " * 50_000) == "every mapping key must be a string, found a mapping or a list"


def test_aliases_nested_too_deeply() -> None:
    lines = ["a0: &a0 1"] + [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 100)]
    assert "nested deeper than" in in_yaml("\n".join(lines))


def test_nesting_up_to_the_bound_is_allowed() -> None:
    good = nested(MAX_NESTING - 1)
    base = {"schema_version": 1, "model": {"sequential": {"layers": [{"_type_": "a", "x": nested(MAX_NESTING - 5)}]}}}
    wire = resolve_mapping(base | {"notes": good}, {}).wire
    assert parse_config(wire).wire == wire
    deepest_float = {
        "schema_version": 1,
        "model": {"sequential": {"layers": [{"_type_": "a", "x": nested(MAX_NESTING - 5, 1e999)}]}},
    }
    assert parse_config(resolve_mapping(deepest_float, {}).wire)
    assert "nested deeper than" in in_memory(notes=nested(MAX_NESTING))
    parse_yaml("a: " + "[" * (MAX_NESTING - 1) + "]" * (MAX_NESTING - 1), "c")


def test_deep_python_data_raises_a_config_error_not_a_recursion_error() -> None:
    assert "nested deeper than" in in_memory(notes=nested(100_000))
    with pytest.raises(ConfigError):
        canonical_bytes(nested(100_000))


def test_interpolation_nested_too_deeply() -> None:
    params: dict[str, Any] = {"v0": 1}
    for i in range(1, 80):
        params[f"v{i}"] = [f"${{params.v{i - 1}}}"]
    assert "nested deeper than" in in_memory(params=params)


@pytest.mark.parametrize("brackets", ["[", '{"a":', '[{"a":'])
def test_wire_nested_too_deeply(brackets: str) -> None:
    assert "nested deeper than" in on_the_wire('{"model":' + brackets * 50_000)
    closing = {"[": "]", '{"a":': "}"}.get(brackets, "}]")
    assert "nested deeper than" in on_the_wire('{"model":' + brackets * 70 + "1" + closing * 70 + "}")
    assert "nested deeper than" in on_the_wire('{"model":' + "[" * MAX_NESTING + "{}" + "]" * MAX_NESTING + "}")


def test_wire_with_too_many_values() -> None:
    assert "more than" in on_the_wire('{"model":[' + "1," * MAX_NODES + "1]}")
    assert "not valid JSON" in on_the_wire('{"model":[' + "1," * (MAX_NODES - 5))
    good = '{"model":[' + "{}," * (MAX_NODES - 4) + "1]}"
    assert len(parse_wire(good.encode()).entries) == 1


@pytest.mark.parametrize(
    "text", ['{"model":"' + '\\"' * 500_000, '{"model":' + '"' * 900_001, '{"model":"' + "\\" * 900_001]
)
def test_wire_with_unclosed_strings_is_read_in_linear_time(text: str) -> None:
    assert "not valid JSON" in on_the_wire(text)


def test_wire_with_duplicates_among_many_keys_is_read_in_linear_time() -> None:
    keys = ",".join(f'"{i}":1' for i in range(90_000))
    assert "Duplicate mapping key 'x'" in on_the_wire('{"model":{' + keys + ',"x":1,"x":2}}')


def test_too_large_documents(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"a: 1\n" + b"#" * MAX_CONFIG_BYTES)
    with pytest.raises(ConfigError, match=f"larger than {MAX_CONFIG_BYTES} bytes"):
        resolve_file(path, {})
    assert "at most" in on_the_wire(" " * (MAX_CONFIG_BYTES + 1))
    many = [f"{i:030}" for i in range(MAX_NODES // 4)]
    assert "the resolved config takes" in in_memory(
        model={"sequential": {"layers": [{"_type_": "a", "x": many, "y": [float(f"1.{i}") for i in range(30_000)]}]}}
    )


def test_too_long_text() -> None:
    assert "too long" in in_memory(notes="x" * (MAX_TEXT_BYTES + 1))
    assert "too large" in in_memory(notes=["é" * (MAX_TEXT_BYTES // 4)] * 3)
    assert "too large" in in_memory(notes=[{"k" * 250: 1}] * 5000)
    assert "a key of 257 characters" in in_memory(notes={"k" * 257: 1})


def test_too_long_numbers() -> None:
    assert "more than 200 characters" in in_yaml("a: 1" + "0" * 500_000)
    assert "more than 200 characters" in in_yaml("a: 1" + ":1" * 400_000)
    assert "more than 200 characters" in in_yaml("a: 1" + ":1" * 400_000 + ".0")
    assert "bits is too large" in in_yaml("a: 0x" + "f" * (MAX_INT_BITS // 4 + 1))
    assert in_memory(notes=1 << MAX_INT_BITS) == "an integer of 129 bits is too large; at most 128 bits are allowed"


def test_long_names_make_short_messages_quickly() -> None:
    name = "a" * 200_000
    error = in_memory(
        model={"graph": {"inputs": ["x"], "nodes": [{"name": "y", "call": f"module:{name}"}], "outputs": ["y"]}}
    )
    assert len(error) < 200
    assert len(in_memory(settings={name: {name: object()}})) < 300


def test_many_unknown_keys_make_short_messages() -> None:
    spec = {"_type_": "a"} | {f"_{i}": 1 for i in range(5000)}
    assert len(in_memory(model={"sequential": {"layers": [spec]}})) < 500


RELU = b'{"schema_version":1,"model":{"sequential":{"layers":[{"_type_":"a"}]}}}'


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (ConfigBounds(max_bytes=len(RELU) - 1), f"a config takes at most {len(RELU) - 1} bytes, got {len(RELU)}"),
        (ConfigBounds(max_values=6), "a config has at most 6 values, got 7"),
        (ConfigBounds(max_nesting=3), "a config nests at most 3 deep, got 5"),
    ],
)
def test_a_servers_own_bounds(bounds: ConfigBounds, message: str) -> None:
    with pytest.raises(LimitError) as caught:
        parse_config(RELU, bounds)
    assert str(caught.value) == message


def test_a_config_within_a_servers_own_bounds() -> None:
    assert parse_config(RELU, ConfigBounds(max_bytes=len(RELU), max_values=7, max_nesting=5)).wire == RELU


def test_a_servers_own_bounds_do_not_widen_the_bounds_of_every_config() -> None:
    wide = ConfigBounds(max_bytes=2 * MAX_CONFIG_BYTES, max_values=2 * MAX_NODES, max_nesting=2 * MAX_NESTING)
    with pytest.raises(ConfigError, match="the config takes 1048577 bytes"):
        parse_config(b" " * (MAX_CONFIG_BYTES + 1), wide)
    with pytest.raises(ConfigError, match="nested deeper than 64"):
        parse_config(b"[" * 100, wide)
    with pytest.raises(ConfigError, match="more than 100000 values"):
        parse_config(b"[" + b"1," * MAX_NODES, wide)
