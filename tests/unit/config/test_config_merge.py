"""Deep merge and list directives."""

from typing import Any

import pytest

from model_factory.config.resolve.merge import apply_directives, merge
from model_factory.config.syntax.cursor import Cursor
from model_factory.config.syntax.nodes import MapNode, Place
from model_factory.config.syntax.plain_data import from_plain, to_plain
from model_factory.errors import ConfigError


def tree(value: dict[str, Any]) -> MapNode:
    node = from_plain(value, Place(file="<config>"))
    assert isinstance(node, MapNode)
    return node


def merged(below: dict[str, Any], *above: dict[str, Any]) -> Any:
    result = tree(below)
    for layer in above:
        result = merge(Cursor(result), Cursor(tree(layer)))
    return to_plain(apply_directives(result))


def refused(below: Any, directive: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        merged({"a": {"xs": below}}, {"a": {"xs": directive}})
    return caught.value


def act(mode: str, *value: Any, **more: Any) -> dict[str, Any]:
    return {"_merge_": mode, "_value_": list(value), **more}


def test_mappings_merge_deeply() -> None:
    assert merged({"a": {"b": {"c": 1, "d": 2}}, "e": 3}, {"a": {"b": {"d": 4, "f": 5}}}) == {
        "a": {"b": {"c": 1, "d": 4, "f": 5}},
        "e": 3,
    }


def test_keys_keep_their_positions_and_new_ones_follow() -> None:
    assert list(merged({"b": 1, "a": 1}, {"c": 1, "a": 2, "b": 2})) == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("below", "above"),
    [([1, 2], [3]), (1, {"x": 1}), ({"x": 1}, 2), ({"x": 1}, [1]), ([1], None), ({"x": 1}, None), ({"x": 1}, [])],
)
def test_everything_else_is_replaced(below: Any, above: Any) -> None:
    assert merged({"v": below}, {"v": above}) == {"v": above}


def test_an_empty_mapping_on_top_changes_nothing() -> None:
    assert merged({"v": {"x": 1}}, {"v": {}}) == {"v": {"x": 1}}


@pytest.mark.parametrize(("mode", "expected"), [("replace", [3]), ("append", [1, 2, 3]), ("prepend", [3, 1, 2])])
def test_directives_on_a_list(mode: str, expected: list[int]) -> None:
    assert merged({"xs": [1, 2]}, {"xs": act(mode, 3)}) == {"xs": expected}


@pytest.mark.parametrize("mode", ["replace", "append", "prepend"])
@pytest.mark.parametrize("below", [{}, {"xs": None}, {"xs": []}])
def test_with_no_list_below_a_directive_acts_on_an_empty_list(mode: str, below: dict[str, Any]) -> None:
    assert merged(below, {"xs": act(mode, 3)}) == {"xs": [3]}


@pytest.mark.parametrize("mode", ["replace", "append", "prepend", "keyed"])
@pytest.mark.parametrize(
    ("below", "what"),
    [
        ("text", "the string 'text'"),
        ("", "the string ''"),
        ({"k": 1}, "a mapping"),
        ({}, "a mapping"),
        (3, "the number 3"),
        (0.5, "the number 0.5"),
        (False, "false"),
    ],
)
def test_a_directive_on_another_value_than_a_list_is_an_error(mode: str, below: Any, what: str) -> None:
    directive = act(mode, {"id": "a"}, **({"key": "id"} if mode == "keyed" else {}))
    error = refused(below, directive)
    assert error.path == ("a", "xs")
    assert error.reason == f"a list directive needs a list or null below; <config> has {what}"


def test_a_directive_on_a_reference_says_that_directives_act_first() -> None:
    assert "act before references are resolved" in refused("${params.xs}", act("append", 1)).reason


def test_the_error_of_a_directive_in_a_keyed_item_names_the_item() -> None:
    error = refused([{"id": "a", "ys": 1}], act("keyed", {"id": "a", "ys": act("append", 2)}, key="id"))
    assert error.path == ("a", "xs", 0, "ys")


def test_a_directive_without_a_layer_below_is_applied() -> None:
    nested = {"a": [{"xs": act("append", act("prepend", 1))}], "b": act("keyed", {"id": "p"}, key="id")}
    assert to_plain(apply_directives(tree(nested))) == {"a": [{"xs": [[1]]}], "b": [{"id": "p"}]}


def test_directives_of_several_layers_act_one_after_the_other() -> None:
    assert merged({"xs": act("append", 1)}, {"xs": act("prepend", 0)}, {"xs": act("append", 2)}) == {"xs": [0, 1, 2]}


def test_a_mapping_on_top_of_a_directive_replaces_it() -> None:
    assert merged({"v": act("append", 1)}, {"v": {"x": 1}}) == {"v": {"x": 1}}


def test_keyed_merges_equal_items_in_place_and_appends_new_ones() -> None:
    below = {"xs": [{"id": "a", "p": {"q": 1, "r": 1}}, {"id": "b"}]}
    above = {"xs": act("keyed", {"id": "c"}, {"id": "a", "p": {"r": 2}, "s": 3}, key="id")}
    assert merged(below, above) == {"xs": [{"id": "a", "p": {"q": 1, "r": 2}, "s": 3}, {"id": "b"}, {"id": "c"}]}


def test_directives_inside_keyed_items_act_on_the_item_below() -> None:
    below = {"xs": [{"id": "a", "ys": [1]}]}
    above = {"xs": act("keyed", {"id": "a", "ys": act("append", 2)}, {"id": "b", "ys": act("append", 3)}, key="id")}
    assert merged(below, above) == {"xs": [{"id": "a", "ys": [1, 2]}, {"id": "b", "ys": [3]}]}


def test_a_list_may_hold_the_words_of_a_directive_as_strings() -> None:
    assert merged({"xs": ["_merge_"]}, {"ys": ["_value_"]}) == {"xs": ["_merge_"], "ys": ["_value_"]}


@pytest.mark.parametrize(
    ("directive", "path", "words"),
    [
        ({"_merge_": "apend", "_value_": []}, ("a", "xs", "_merge_"), "did you mean 'append'?"),
        ({"_merge_": 1, "_value_": []}, ("a", "xs", "_merge_"), "must be a non-empty string, found the number 1"),
        ({"_merge_": "append"}, ("a", "xs"), "'_value_' is missing"),
        ({"_merge_": "append", "_vlaue_": [1]}, ("a", "xs"), "is '_vlaue_' a misspelling?"),
        ({"_merg_": "append", "_value_": [1]}, ("a", "xs"), "is '_merg_' a misspelling?"),
        ({"_value_": [1]}, ("a", "xs"), "'_merge_' is missing"),
        ({"_merge_": "append", "_value_": "${params.xs}"}, ("a", "xs", "_value_"), "must be a list of items"),
        ({"_merge_": "append", "_value_": {"x": 1}}, ("a", "xs", "_value_"), "found a mapping"),
        ({"_merge_": "append", "_value_": [], "key": "id"}, ("a", "xs", "key"), "does not belong"),
        ({"_merge_": "keyed", "_value_": [], "keys": "id"}, ("a", "xs", "keys"), "did you mean 'key'?"),
        ({"_merge_": "keyed", "_value_": []}, ("a", "xs"), "needs 'key'"),
        ({"_merge_": "keyed", "_value_": [], "key": ""}, ("a", "xs", "key"), "must be a non-empty string"),
        ({"_merge_": "keyed", "_value_": [1], "key": "id"}, ("a", "xs", "_value_", 0), "must be a mapping"),
        (
            {"_merge_": "keyed", "_value_": [{"ids": "a"}], "key": "id"},
            ("a", "xs", "_value_", 0),
            "is 'ids' a misspelling?",
        ),
        ({"_merge_": "keyed", "_value_": [{"id": 1}], "key": "id"}, ("a", "xs", "_value_", 0, "id"), "the number 1"),
        ({"_merge_": "keyed", "_value_": [{"id": ""}], "key": "id"}, ("a", "xs", "_value_", 0, "id"), "non-empty"),
        (
            {"_merge_": "keyed", "_value_": [{"id": "a"}, {"id": "a"}], "key": "id"},
            ("a", "xs", "_value_", 1),
            "two items",
        ),
    ],
)
@pytest.mark.parametrize("below", [[], None], ids=["on a list", "on nothing"])
def test_malformed_directives(below: Any, directive: dict[str, Any], path: tuple[str | int, ...], words: str) -> None:
    error = refused(below, directive)
    assert error.path == path
    assert words in error.reason
    assert error.place == "<config>"


def test_an_error_in_a_merged_item_names_the_item() -> None:
    wrong = act("keyed", {"id": "b", "ys": {"_merge_": "apend", "_value_": []}}, key="id")
    assert refused([{"id": "a"}, {"id": "b", "ys": [1]}], wrong).path == ("a", "xs", 1, "ys", "_merge_")


@pytest.mark.parametrize(
    ("below", "path", "words"),
    [
        ([1], ("a", "xs", 0), "must be a mapping"),
        ([{"x": 1}], ("a", "xs", 0), "an item of a list merged by key has no 'id'"),
        ([{"id": "a"}, {"id": "a"}], ("a", "xs", 1), "two items"),
        ([{"id": None}], ("a", "xs", 0, "id"), "found null"),
    ],
)
def test_keyed_checks_the_list_below_too(below: Any, path: tuple[str | int, ...], words: str) -> None:
    error = refused(below, act("keyed", {"id": "z"}, key="id"))
    assert (error.path, words in error.reason) == (path, True)


def test_a_malformed_directive_without_a_layer_below_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"must be one of 'replace', 'append', 'prepend', 'keyed', found 'join'"):
        apply_directives(tree({"a": [{"_merge_": "join", "_value_": []}]}))
