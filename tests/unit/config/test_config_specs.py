"""The structure of specs."""

from typing import Any

import pytest

from model_factory.config import resolve_mapping
from model_factory.errors import ConfigError

LAYER = ("model", "sequential", "layers", 0)


def resolved(spec: Any, **settings: Any) -> Any:
    config = {"schema_version": 1, "model": {"sequential": {"layers": [spec]}}, "settings": settings}
    return resolve_mapping(config, {}).model.modules["layer0"]


def refused(spec: Any, **settings: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        resolved(spec, **settings)
    assert caught.value.path[:4] == LAYER
    return caught.value


@pytest.mark.parametrize(
    "spec",
    [
        {"_type_": "a"},
        {"_type_": "a", "_name_": "whatever", "x": 1},
        {"_type_": "a", "_name_": {"_type_": 3, "_odd_": 1}},
        {"_target_": "torch.nn.ReLU"},
        {"_type_": "a", "_args_": [1, {"_type_": "b"}], "_kwargs_": {"_odd": 1, "y": {"_type_": "c"}}, "z": 2},
        {"_type_": "a", "layers": [[{"_type_": "b", "act": {"x": [{"_type_": "c"}]}}]]},
        {"_type_": "a", "table": {"plain": 1, "_leading": 2, "trailing_": 3, "_": 4}},
    ],
)
def test_good_specs_stay_unchanged(spec: dict[str, Any]) -> None:
    assert resolved(spec) == spec
    assert list(resolved(spec)) == list(spec)


@pytest.mark.parametrize(
    ("spec", "path", "words"),
    [
        ("nn.ReLU", (), "must be a spec, a mapping with '_type_', found the string 'nn.ReLU'"),
        ({}, (), "needs '_type_'"),
        ({"_typ_": "a"}, (), "is '_typ_' a misspelling?"),
        ({"x": {"_type_": "a"}}, (), "needs '_type_'"),
        ({"_type_": ""}, ("_type_",), "must be a non-empty string"),
        ({"_type_": None}, ("_type_",), "must be a non-empty string, found null"),
        ({"_type_": 3}, ("_type_",), "found the number 3"),
        ({"_target_": []}, ("_target_",), "found an empty list"),
        ({"_type_": "a", "_target_": "b"}, ("_target_",), "not both"),
        ({"_type_": "a", "_args_": 1}, ("_args_",), "must be a list of positional arguments"),
        ({"_type_": "a", "_args_": {"x": 1}}, ("_args_",), "found a mapping"),
        ({"_type_": "a", "_kwargs_": [1]}, ("_kwargs_",), "must be a mapping"),
        ({"_type_": "a", "x": 1, "_kwargs_": {"x": 2}}, ("_kwargs_", "x"), "'x' is given in the spec as well"),
        ({"_type_": "a", "x": [{"_type_": 1}]}, ("x", 0, "_type_"), "found the number 1"),
        ({"_type_": "a", "x": {"k": {"_type_": "b", "_args_": 1}}}, ("x", "k", "_args_"), "must be a list"),
        ({"_type_": "a", "_kwargs_": {"x": {"_type_": ""}}}, ("_kwargs_", "x", "_type_"), "non-empty"),
        ({"_type_": "a", "_args_": [{"_type_": ""}]}, ("_args_", 0, "_type_"), "non-empty"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_malformed_specs(spec: Any, path: tuple[str | int, ...], words: str, *, strict: bool) -> None:
    error = refused(spec, strict=strict)
    assert error.path == (*LAYER, *path)
    assert words in error.reason


@pytest.mark.parametrize(
    ("spec", "path", "words"),
    [
        ({"_type_": "a", "_arg_": [1]}, ("_arg_",), "Unknown reserved keys '_arg_'"),
        ({"_type_": "a", "_arg_": [1]}, ("_arg_",), "did you mean '_args_'?"),
        ({"_type_": "a", "_private": 1, "_other": 2}, ("_private",), "Unknown reserved keys '_private', '_other'"),
        ({"_type_": "a", "act": {"_typ_": "b"}}, ("act", "_typ_"), "did you mean '_type_'?"),
        ({"_type_": "a", "act": [{"_args_": []}]}, ("act", 0, "_args_"), "Unknown reserved keys '_args_'"),
        ({"_type_": "a", "_kwargs_": {"act": {"_type_": "b", "_x": 1}}}, ("_kwargs_", "act", "_x"), "Unknown reserved"),
    ],
)
def test_unknown_reserved_keys_are_errors_in_strict_mode(
    spec: dict[str, Any], path: tuple[str | int, ...], words: str
) -> None:
    error = refused(spec)
    assert error.path == (*LAYER, *path)
    assert words in error.reason
    assert resolved(spec, strict=False) == spec


def test_keywords_of_kwargs_may_start_with_an_underscore() -> None:
    spec = {"_type_": "a", "_kwargs_": {"_type_": "b", "_x_": 1}}
    assert resolved(spec) == spec
