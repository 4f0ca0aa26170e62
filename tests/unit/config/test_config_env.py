"""``${env:...}``."""

import math
import traceback
from typing import Any

import pytest

from model_factory.config.resolve.env import read_variable
from model_factory.config.resolve.interpolate import interpolate
from model_factory.config.resolve.references import EnvReference, split_references
from model_factory.config.syntax.cursor import Cursor
from model_factory.config.syntax.nodes import MapNode, Place
from model_factory.config.syntax.plain_data import from_plain, to_plain
from model_factory.errors import ConfigError


def read(text: str, **env: str) -> Any:
    node = from_plain({"v": text}, Place(file="<config>"))
    assert isinstance(node, MapNode)
    return to_plain(interpolate(node, env))["v"]


def refused(text: str, **env: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text, **env)
    return str(caught.value)


@pytest.mark.parametrize("raw", ["x", "", "  padded \n", "8", "true", "${v}", "a}b"])
def test_the_plain_form_gives_the_raw_string(raw: str) -> None:
    assert read("${env:VAR}", VAR=raw) == raw
    assert read("<${env:VAR}>", VAR=raw) == f"<{raw}>"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${env:VAR,x}", "x"),
        ("${env:VAR,}", ""),
        ("${env:VAR, a, b }", " a, b"),
        ("${env:VAR, spaced }", " spaced"),
        ("${env:VAR,\t\n}", ""),
        ("${ env:VAR, x}", " x"),
        ("${env:VAR,http://h:80/}", "http://h:80/"),
    ],
)
def test_a_default_is_raw_as_well(text: str, value: str) -> None:
    assert read(text) == value
    assert read(text, VAR="set") == "set"
    assert read(text, VAR="") == ""


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("8", 8),
        (" -8\n", -8),
        ("+8", 8),
        ("0x1F", 31),
        ("0X1f", 31),
        ("0o17", 15),
        ("0b101", 5),
        ("-0x10", -16),
        ("007", 7),
        ("1_000", 1000),
    ],
)
def test_int(raw: str, value: int) -> None:
    assert read("${env:int:VAR}", VAR=raw) == value
    assert read(f"${{env:int:VAR,{raw}}}") == value
    assert type(read("${env:int:VAR}", VAR=raw)) is int


@pytest.mark.parametrize(("raw", "value"), [("1", 1.0), (" 1e-3 ", 0.001), ("-.5", -0.5), ("inf", math.inf)])
def test_float(raw: str, value: float) -> None:
    assert read("${env:float:VAR}", VAR=raw) == value
    assert type(read("${env:float:VAR}", VAR=raw)) is float


@pytest.mark.parametrize("word", ["true", "1", "yes", "on", "TRUE", " Yes ", "oN"])
def test_bool_true(word: str) -> None:
    assert read("${env:bool:VAR}", VAR=word) is True


@pytest.mark.parametrize("word", ["false", "0", "no", "off", "False", "\tNO", "OFF"])
def test_bool_false(word: str) -> None:
    assert read("${env:bool:VAR}", VAR=word) is False


@pytest.mark.parametrize(
    ("raw", "value"),
    [('{"a": [1, 2.0, null]}', {"a": [1, 2.0, None]}), (" [] ", []), ('"x"', "x"), ("null", None), ("1", 1)],
)
def test_json(raw: str, value: Any) -> None:
    assert read("${env:json:VAR}", VAR=raw) == value
    assert read(f"${{env:json:VAR,{raw}}}") == value


def test_a_json_default_may_hold_braces() -> None:
    assert read('${env:json:VAR,{"a": {"}": 1}}}') == {"a": {"}": 1}}
    assert read('x ${env:json:VAR,{}} y ${env:json:VAR,{"a": "\\"}"}}') == 'x {} y {"a": "\\"}"}'


def test_a_cast_inside_a_longer_string() -> None:
    assert read("${env:int:VAR}-${env:bool:B}", VAR=" 0x10 ", B="on") == "16-True"


@pytest.mark.parametrize("text", ["${env:VAR}", "${env:int:VAR}", "${env:json:VAR}", "a${env:VAR}"])
def test_missing_without_a_default(text: str) -> None:
    message = refused(text, VAL="1")
    assert message.startswith("<config>: v: ")
    assert "VAR is not set" in message


@pytest.mark.parametrize("cast", ["int", "float", "bool", "json"])
def test_empty_after_trimming(cast: str) -> None:
    for env in ({"VAR": ""}, {"VAR": " \t\n"}):
        assert "VAR is empty" in refused(f"${{env:{cast}:VAR,1}}", **env)
    assert "VAR is empty" in refused(f"${{env:{cast}:VAR,}}")


@pytest.mark.parametrize(
    ("cast", "raw"),
    [
        ("int", "s3cret"), ("int", "1.5"), ("int", "0x"), ("int", "0xg3cret"), ("int", "--1"),
        ("int", "1" * 100), ("int", "1" * 5000),
        ("float", "s3cret"), ("float", "0x1F"), ("float", "1" * 5000),
        ("bool", "s3cret"), ("bool", "2"), ("bool", "y"),
        ("json", "{s3cret"), ("json", '{"s3cret": 1, "s3cret": 2}'), ("json", "[1] s3cret"), ("json", "NaN"),
        ("json", "Infinity"), ("json", "1e999"), ("json", "1" * 5000), ("json", "[" * 100_000), ("json", '"\\ud800"'),
    ],
)  # fmt: skip
def test_a_failed_cast_names_the_variable_and_the_type_never_the_value(cast: str, raw: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(f"${{env:{cast}:TOKEN}}", TOKEN=raw)
    assert "TOKEN" in caught.value.reason
    assert cast.upper() in caught.value.reason.upper()
    assert "3cret" not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None


def test_a_variable_with_invalid_text_is_an_error() -> None:
    assert "surrogate" in refused("${env:VAR}", VAR="\udcff")


@pytest.mark.parametrize(
    "text", ["${env:}", "${env:,x}", "${env:1X}", "${env:A B}", "${env:A-B}", "${env: A}", "${env:int:}", "${env::X}"]
)
def test_a_malformed_variable_name(text: str) -> None:
    assert refused(text, X="1").startswith("<config>: v: ")


def test_an_unknown_cast_suggests_the_closest() -> None:
    assert refused("${env:integer:X}", X="1").endswith("; did you mean 'int'?")
    assert "Unknown cast 'str'" in refused("${env:str:X}", X="1")


def test_a_variable_may_be_called_like_a_cast() -> None:
    assert read("${env:int}", int="raw") == "raw"
    assert read("${env:int:int}", int="3") == 3


@pytest.mark.parametrize("text", ["${ env:VAR }", "${env:VAR }", "${\tenv:VAR\n}", "${ env:json:VAR }"])
def test_space_at_the_ends_of_a_reference_is_ignored(text: str) -> None:
    assert read(text, VAR="[1]") in ("[1]", [1])


def test_space_before_a_json_reference_leaves_its_braces_matched() -> None:
    assert read('${ env:json:VAR, {"a": {"}": 1}} }') == {"a": {"}": 1}}


def test_only_the_given_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_FACTORY_PROBE", "leak")
    assert "is not set" in refused("${env:MODEL_FACTORY_PROBE}")


def test_pieces_of_a_string() -> None:
    assert split_references("a${env:int:X,8}b") == ["a", EnvReference(variable="X", cast="int", default="8"), "b"]
    assert split_references("") == []
    reference = EnvReference(variable="X", cast=None, default=None)
    assert to_plain(read_variable(reference, {"X": "1"}, Cursor(from_plain("${env:X}", Place(file="f"))))) == "1"
