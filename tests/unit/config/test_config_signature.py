"""Example inputs in the optional top-level ``signature``."""

from typing import Any

import pytest

from model_factory.config import resolve_mapping
from model_factory.errors import ConfigError


def config(signature: Any, inputs: list[str]) -> dict[str, Any]:
    graph = {"inputs": inputs, "nodes": [], "outputs": inputs[:1]}
    return {"schema_version": 1, "model": {"graph": graph}, "signature": signature}


def refused(signature: Any, *inputs: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        resolve_mapping(config(signature, list(inputs) or ["x"]), {})
    return caught.value


def test_a_config_without_signature_has_no_examples() -> None:
    mapping = config(None, ["x"])
    del mapping["signature"]
    assert resolve_mapping(mapping, {}).model.signature is None


@pytest.mark.parametrize(
    "example",
    [
        {"shape": [2, 16], "dtype": "float32"},
        {"shape": [2]},
        {"shape": []},
        None,
        3,
        0.5,
        True,
        "text",
        [],
        [{"shape": [1], "dtype": "bool"}, None, [1, {"shape": [1], "dtype": "int64"}]],
        {"a": {"b": {"shape": [1], "dtype": "bfloat16"}}, "c": None},
    ],
)
def test_examples_are_kept_as_plain_data(example: Any) -> None:
    assert resolve_mapping(config({"x": example}, ["x"]), {}).model.signature == {"x": example}


def test_an_input_may_be_called_shape() -> None:
    signature = {"shape": {"shape": [1]}, "dtype": None}
    assert resolve_mapping(config(signature, ["shape", "dtype"]), {}).model.signature == signature


def test_a_sequential_model_may_have_a_signature() -> None:
    mapping = {
        "schema_version": 1,
        "model": {"sequential": {"layers": [{"_type_": "a"}]}},
        "signature": {"x": {"shape": [1]}},
    }
    assert resolve_mapping(mapping, {}).model.signature == {"x": {"shape": [1]}}


@pytest.mark.parametrize(
    ("signature", "path", "words"),
    [
        (None, (), "must be a mapping"),
        ([], (), "must be a mapping"),
        ({"image": None, "sate": None}, ("sate",), "has no input 'sate'; did you mean 'state'?"),
        ({"image": None}, (), "missing: 'state'"),
        ({"image": {"shape": [1], "dtyp": "float32"}, "state": None}, ("image", "dtyp"), "did you mean 'dtype'?"),
        ({"image": {"shape": [1], "dtype": "flaot32"}, "state": None}, ("image", "dtype"), "did you mean 'float32'?"),
        ({"image": {"shape": [1], "dtype": None}, "state": None}, ("image", "dtype"), "found null"),
        ({"image": {"shape": 3}, "state": None}, ("image", "shape"), "must be a list of sizes"),
        ({"image": {"shape": [0]}, "state": None}, ("image", "shape", 0), "positive integer, found the number 0"),
        ({"image": {"shape": [-1]}, "state": None}, ("image", "shape", 0), "positive integer"),
        ({"image": {"shape": [True]}, "state": None}, ("image", "shape", 0), "positive integer, found true"),
        ({"image": {"shape": [2.0]}, "state": None}, ("image", "shape", 0), "positive integer"),
        ({"image": {"shape": ["b"]}, "state": None}, ("image", "shape", 0), "positive integer"),
        ({"image": [{"shape": [0]}], "state": None}, ("image", 0, "shape", 0), "positive integer"),
        ({"image": {"shape": [1] * 17}, "state": None}, ("image", "shape"), "17 axes are too many"),
        ({"image": {"shape": [2**60, 2**60]}, "state": None}, (), "more than 67108864 elements"),
        ({"image": [{"shape": [2**25]}, {"shape": [2**25]}, {"shape": [1]}], "state": None}, (), "elements together"),
    ],
)
def test_wrong_signatures(signature: Any, path: tuple[str | int, ...], words: str) -> None:
    error = refused(signature, "image", "state")
    assert error.path == ("signature", *path)
    assert words in error.reason
