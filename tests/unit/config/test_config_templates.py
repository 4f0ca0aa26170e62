"""``templates`` and ``_template_``."""

from collections.abc import Callable
from typing import Any

import pytest

from model_factory.config.resolve.merge import apply_directives
from model_factory.config.resolve.templates import expand_templates
from model_factory.config.syntax.nodes import MapNode, Place
from model_factory.config.syntax.plain_data import from_plain, to_plain
from model_factory.errors import ConfigError


def expanded(config: dict[str, Any]) -> Any:
    node = from_plain(config, Place(file="<config>"))
    assert isinstance(node, MapNode)
    return to_plain(apply_directives(expand_templates(node)))


def refused(config: dict[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        expanded(config)
    return caught.value


def test_own_keys_go_on_top_of_a_deep_copy() -> None:
    block = {"_type_": "conv", "k": 3, "act": {"_type_": "relu", "inplace": True}}
    result = expanded(
        {
            "templates": {"c3": block},
            "m": [{"_template_": "c3", "k": 5, "act": {"inplace": False}}, {"_template_": "c3"}],
        }
    )
    assert result == {"m": [{"_type_": "conv", "k": 5, "act": {"_type_": "relu", "inplace": False}}, block]}
    result["m"][1]["act"]["_type_"] = "changed"
    assert block["act"]["_type_"] == "relu"


def test_templates_are_gone_whether_used_or_not() -> None:
    assert expanded({"templates": {"a": {"x": 1}}, "m": 1}) == {"m": 1}
    assert expanded({"templates": {}, "m": 1}) == {"m": 1}


def test_templates_use_templates_in_any_order() -> None:
    templates = {"c": {"_template_": "b", "z": 3}, "a": {"x": 1, "y": 1}, "b": {"_template_": "a", "y": 2}}
    assert expanded({"templates": templates, "m": {"_template_": "c"}}) == {"m": {"x": 1, "y": 2, "z": 3}}


def test_a_template_inside_the_own_keys_is_expanded_before_it_is_merged() -> None:
    templates = {"gelu": {"_type_": "gelu"}, "block": {"act": {"_type_": "relu"}}}
    config = {"templates": templates, "m": {"_template_": "block", "act": {"_template_": "gelu"}}}
    assert expanded(config) == {"m": {"act": {"_type_": "gelu"}}}


def test_a_list_directive_acts_on_the_list_of_the_template() -> None:
    directive = {"_merge_": "append", "_value_": [3]}
    config = {"templates": {"t": {"dims": [1, 2]}}, "m": {"_template_": "t", "dims": directive}}
    assert expanded(config) == {"m": {"dims": [1, 2, 3]}}
    config = {"templates": {"t": {"dims": directive}}, "m": {"_template_": "t", "dims": directive}}
    assert expanded(config) == {"m": {"dims": [3, 3]}}


def test_the_root_may_use_a_template() -> None:
    assert expanded({"templates": {"t": {"a": 1, "b": 1}}, "_template_": "t", "b": 2}) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("templates", "chain"),
    [
        ({"a": {"_template_": "a"}}, "a -> a"),
        (
            {"a": {"x": [{"_template_": "b"}]}, "b": {"_template_": "c"}, "c": {"y": {"_template_": "a"}}},
            "a -> b -> c -> a",
        ),
        ({"z": {"_template_": "a"}, "a": {"_template_": "b"}, "b": {"_template_": "a"}}, "a -> b -> a"),
    ],
)
def test_a_loop_of_unused_templates_is_an_error(templates: dict[str, Any], chain: str) -> None:
    assert refused({"templates": templates}).reason == f"Template cycle detected: {chain}"


def test_an_unknown_template_suggests_the_closest() -> None:
    error = refused({"templates": {"conv3": {}}, "m": {"x": {"_template_": "conv"}}})
    assert error.reason == "Unknown template 'conv'; did you mean 'conv3'?"
    assert error.path == ("m", "x", "_template_")
    assert refused({"m": {"_template_": "conv"}}).reason == "Unknown template 'conv'"


@pytest.mark.parametrize("name", [None, 1, "", ["a"], {"a": 1}])
def test_the_name_of_a_template_is_a_string(name: Any) -> None:
    assert refused({"templates": {"a": {}}, "m": {"_template_": name}}).path == ("m", "_template_")


@pytest.mark.parametrize("templates", [None, [], "x"])
def test_templates_is_a_mapping(templates: Any) -> None:
    assert refused({"templates": templates}).path == ("templates",)


@pytest.mark.parametrize("body", [None, [1], "x"])
def test_a_template_is_a_mapping(body: Any) -> None:
    assert refused({"templates": {"t": body}}).path == ("templates", "t")


@pytest.mark.parametrize("nested", [lambda use: use, lambda use: {"x": use}, lambda use: {"x": [[use]]}])
def test_a_long_chain_of_templates_is_an_error_not_a_crash(nested: Callable[[Any], dict[str, Any]]) -> None:
    chain: dict[str, Any] = {f"t{i}": nested({"_template_": f"t{i + 1}"}) for i in range(5000)}
    assert "steps deep" in refused({"templates": chain | {"t5000": {}}}).reason
