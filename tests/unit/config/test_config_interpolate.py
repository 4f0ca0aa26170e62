"""``${...}`` references to other values of the config."""

from typing import Any

import pytest

from model_factory.config.resolve.interpolate import interpolate
from model_factory.config.syntax.cursor import Cursor
from model_factory.config.syntax.nodes import MapNode, Place
from model_factory.config.syntax.plain_data import from_plain, to_plain
from model_factory.config.syntax.yaml_tree import parse_yaml
from model_factory.errors import ConfigError


def replaced(config: dict[str, Any], **env: str) -> Any:
    node = from_plain(config, Place(file="<config>"))
    assert isinstance(node, MapNode)
    return to_plain(interpolate(node, env))


def refused(config: dict[str, Any], **env: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        replaced(config, **env)
    return caught.value


@pytest.mark.parametrize("value", [1, 1.0, True, None, "text", "", [1, [2]], {"a": {"b": [None]}}, [], {}])
def test_a_reference_without_other_text_keeps_the_type(value: Any) -> None:
    result = replaced({"v": value, "w": "${v}"})
    assert result == {"v": value, "w": value}
    assert type(result["w"]) is type(value)


def test_mappings_and_lists_are_copied_deeply() -> None:
    result = replaced({"v": {"a": [1]}, "w": "${v}", "x": "${v.a}"})
    result["w"]["a"].append(2)
    result["x"].append(3)
    assert result == {"v": {"a": [1]}, "w": {"a": [1, 2]}, "x": [1, 3]}


def test_paths_of_keys_and_indices() -> None:
    config = {
        "a": {"b": [{"c": 1}, [5, 6]], "d-e": 7, "ü": 8},
        "r": ["${a.b[0].c}", "${a.b[1][1]}", "${a.d-e}", "${a.ü}", "${ a.b[0] }"],
    }
    assert replaced(config)["r"] == [1, 6, 7, 8, {"c": 1}]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "x"),
        (8, "8"),
        (0.1, "0.1"),
        (1e-05, "1e-05"),
        (True, "True"),
        (None, "None"),
        ([1, "ü", None, True], '[1, "ü", null, true]'),
        ({"b": 1.5, "a": {}}, '{"b": 1.5, "a": {}}'),
        ([], "[]"),
    ],
)
def test_a_reference_in_a_longer_string_is_written_as_text(value: Any, text: str) -> None:
    assert replaced({"v": value, "s": "<${v}>"})["s"] == f"<{text}>"


def test_several_references_in_a_string() -> None:
    assert replaced({"a": 1, "b": "x", "s": "${a}${b}-${a} $ { } $a}"})["s"] == "1x-1 $ { } $a}"


def test_a_space_beside_a_reference_gives_text() -> None:
    assert replaced({"a": 1, "s": " ${a}"})["s"] == " 1"


def test_chains() -> None:
    config = {"s": "${a}", "a": "${b.c}", "b": {"c": "${d[0]}"}, "d": ["<${e}>"], "e": 1}
    assert replaced(config)["s"] == "<1>"


def test_a_path_may_lead_through_other_references() -> None:
    config = {
        "base": {"lr": 1, "more": {"x": 2}},
        "alias": "${base}",
        "twice": "${alias}",
        "r": ["${twice.lr}", "${alias.more.x}"],
    }
    assert replaced(config)["r"] == [1, 2]


def test_a_value_may_refer_to_its_neighbours() -> None:
    assert replaced({"a": {"x": "${a.y}", "y": 1, "z": "${a.x}"}})["a"] == {"x": 1, "y": 1, "z": 1}


def test_the_value_of_a_reference_is_not_searched_for_references() -> None:
    assert replaced({"v": "${env:X}", "w": "${v}"}, X="${env:Y} ${v}")["w"] == "${env:Y} ${v}"
    config = {"v": "${env:json:X}", "w": "${v.a}", "x": "${v.a}!"}
    assert replaced(config, X='{"a": "${v}"}') == {"v": {"a": "${v}"}, "w": "${v}", "x": "${v}!"}
    assert replaced({"v": "$", "w": "${v}{v}"})["w"] == "${v}"


def test_keys_are_not_interpolated() -> None:
    assert replaced({"a": 1, "${a}": 2}) == {"a": 1, "${a}": 2}


def test_a_reference_through_another_reference_needs_only_the_named_value() -> None:
    """The other values of the mapping on the path may contain the reference."""
    config = {"params": {"base": {"width": 8, "hidden": "${alias.width}"}}, "alias": "${params.base}"}
    result = replaced(config)
    assert result["alias"] == result["params"]["base"] == {"width": 8, "hidden": 8}
    far = {"a": {"x": "${c.y}", "y": 1}, "b": "${a}", "c": "${b}"}
    assert replaced(far)["c"] == {"x": 1, "y": 1}


@pytest.mark.parametrize(
    ("config", "chain"),
    [
        ({"a": "${a}"}, "a -> a"),
        ({"a": "${b}", "b": "x${c}", "c": "${a}"}, "a -> b -> c -> a"),
        ({"a": {"x": "${a}"}}, "a -> a.x -> a"),
        ({"a": [["${a[0]}"]]}, "a[0] -> a[0][0] -> a[0]"),
        ({"a": "${b.x}", "b": "${c}", "c": {"x": "${a}"}}, "a -> b -> c.x -> a"),
        ({"a": "${b.x}", "b": "${c}", "c": "${b}"}, "b -> c -> b"),
    ],
)
def test_the_error_of_a_loop_shows_the_chain(config: dict[str, Any], chain: str) -> None:
    assert refused(config).reason == f"Interpolation cycle detected: {chain}"


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("params.widht", "Unknown path '${params.widht}': 'params' has no 'widht'; did you mean 'width'?"),
        ("parms.width", "Unknown path '${parms.width}': the config has no 'parms'; did you mean 'params'?"),
        ("params.width.x", "Unknown path '${params.width.x}': 'params.width' is a single value and has no key 'x'"),
        ("params.dims[2]", "Unknown path '${params.dims[2]}': 'params.dims' is a list of 2 and has no index 2"),
        (
            "params.dims.first",
            "Unknown path '${params.dims.first}': 'params.dims' is a list of 2 and has no key 'first'",
        ),
        ("params[0]", "Unknown path '${params[0]}': 'params' is a mapping and has no index 0"),
        ("now:%Y", "Unknown path '${now:%Y}': the config has no 'now:%Y'"),
    ],
)
def test_an_unknown_path_suggests_the_closest(reference: str, reason: str) -> None:
    error = refused({"params": {"width": 8, "dims": [1, 2]}, "m": {"x": [f"a ${{{reference}}}"]}})
    assert error.reason == reason
    assert error.path == ("m", "x", 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("${", "opens a reference without a closing '}'"),
        ("a ${b", "opens a reference without a closing '}'"),
        ("${env:json:X,{}", "opens a reference without a closing '}'"),
        ("${}", "is not a reference"),
        ("${ }", "is not a reference"),
        ("${a..b}", "is not a reference"),
        ("${.a}", "is not a reference"),
        ("${a.}", "is not a reference"),
        ("${a[x]}", "is not a reference"),
        ("${a[-1]}", "is not a reference"),
        ("${a[0]b}", "is not a reference"),
        ("${[0]}", "is not a reference"),
        ("${a[0}", "is not a reference"),
        ("${a[99999999999999999999]}", "is not a reference"),
        ("${a.${b}}", "references do not nest"),
        ("${env:X,${b}}", "references do not nest"),
    ],
)
def test_a_malformed_reference_names_the_place(text: str, words: str) -> None:
    tree = parse_yaml(f"b: 1\na:\n  - {text!r}", "c.yaml")
    with pytest.raises(ConfigError) as caught:
        interpolate(tree, {})
    assert str(caught.value).startswith("c.yaml:3:5: a[0]: ")
    assert words in caught.value.reason


def test_values_keep_their_places() -> None:
    tree = interpolate(parse_yaml("params:\n  m: {k: 1}\nuse: ${params.m}\ntext: a${use.k}", "c"), {})
    places = [str(Cursor(tree).nearest(path).node.place) for path in [("use",), ("use", "k"), ("text",)]]
    assert places == ["c:3:6", "c:2:10", "c:4:7"]


def test_json_text_cannot_hold_infinity() -> None:
    assert replaced({"v": float("inf"), "s": "<${v}>"})["s"] == "<inf>"
    assert "infinite" in refused({"v": [float("inf")], "s": "<${v}>"}).reason


def test_a_long_chain_is_an_error_not_a_crash() -> None:
    chain = {f"v{i}": f"${{v{i + 1}}}" for i in range(5000)} | {"v5000": 1}
    assert "steps deep" in refused(chain).reason


def test_nothing_else_is_evaluated() -> None:
    for text in ["$(id)", "`id`", "{{ 7*7 }}", "%(x)s", "{x}", "$HOME", "$$", "!!python/name:os.system"]:
        assert replaced({"v": text}, HOME="/root") == {"v": text}
