"""The top level, ``settings``, ``sequential``, and all stages together."""

from pathlib import Path
from typing import Any

import pytest

from model_factory import config as public
from model_factory.config import ResolvedConfig, Settings, resolve_file, resolve_mapping
from model_factory.errors import ConfigError
from model_factory.program.ir import ModuleCall, Program, Ref

LINEAR = {"_type_": "nn.Linear", "in_features": 2, "out_features": 3}


def config(**model: Any) -> dict[str, Any]:
    return {"schema_version": 1, "model": model}


def sequential(**body: Any) -> ResolvedConfig:
    return resolve_mapping(config(sequential={"layers": [LINEAR, {"_type_": "nn.ReLU"}]} | body), {})


def refused(mapping: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        resolve_mapping(mapping, {})
    return caught.value


def test_public_names_are_sorted() -> None:
    assert list(public.__all__) == sorted(
        public.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name)
    )
    assert all(hasattr(public, name) for name in public.__all__)


def test_a_file_passes_all_stages(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "templates: {lin: {_type_: nn.Linear, bias: false}}\nparams: {width: 8, dims: [1, 2]}\nschema_version: 1\n"
    )
    path = tmp_path / "top.yaml"
    layer = "      - {_template_: lin, in_features: '${params.dims[2]}', out_features: '${params.width}'}"
    path.write_text(
        "defaults: [base.yaml]\n"
        "params: {width: '${env:int:WIDTH}', dims: {_merge_: append, _value_: [3]}}\n"
        "model:\n"
        "  sequential:\n"
        "    layers:\n"
        f"{layer}\n"
        "notes: anything\n"
    )
    resolved = resolve_file(path, {"WIDTH": "16"})
    assert resolved.model.modules == {
        "layer0": {"_type_": "nn.Linear", "bias": False, "in_features": 3, "out_features": 16}
    }
    assert resolve_file(str(path), {"WIDTH": "16"}).digest == resolved.digest
    spec = ("model", "sequential", "layers", 0)
    column = layer.index("'${params.width}'") + 1
    assert resolved.place_of((*spec, "out_features")) == f"{path}:6:{column}"
    assert resolved.place_of((*spec, "bias")) == f"{tmp_path}/base.yaml:1:44"
    assert resolved.place_of((*spec, "no", "such")) == f"{path}:6:9"
    assert resolved.place_of(()) == f"{path}:1:1"


def test_an_error_names_file_line_column_and_path(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("schema_version: 1\nmodel:\n  graph:\n    inputs: [x, 1y]\n")
    with pytest.raises(ConfigError) as caught:
        resolve_file(path, {})
    assert caught.value.path == ("model", "graph", "inputs", 1)
    assert str(caught.value).startswith(
        f"{path}:4:17: model.graph.inputs[1]: '1y' is not a name; names match ^[A-Za-z_]"
    )


def test_defaults_in_memory_are_an_error_with_a_reason() -> None:
    error = refused(config(sequential={"layers": [LINEAR]}) | {"defaults": ["a.yaml"]})
    assert error.path == ("defaults",)
    assert "relative to a config file" in error.reason


def test_in_memory_data_is_plain() -> None:
    class Dims(list[int]):
        pass

    looped: dict[str, Any] = {}
    looped["self"] = [looped]
    for value, words in [
        (object(), "builtins.object is not plain data"),
        ({1}, "builtins.set is not plain data"),
        (b"x", "builtins.bytes is not plain data"),
        (Path, "builtins.type is not plain data"),
        (1j, "builtins.complex is not plain data"),
        ({1: "x"}, "every mapping key must be a string, found 1"),
        (looped, "the container contains itself"),
        ("\ud800", "lone surrogate"),
        ({"\ud800": 1}, "lone surrogate"),
        (2**200, "is too large"),
    ]:
        error = refused(config() | {"notes": {"deep": [value]}})
        assert words in error.reason
        assert error.path[:3] == ("notes", "deep", 0)
        assert error.place == "<config>"
    for root in ([1], None, "x"):
        assert "a config must be a mapping" in refused(root).reason
    assert sequential(layers=(LINEAR | {"dims": (1, Dims([2]))},)).model.modules["layer0"]["dims"] == [1, [2]]


def test_a_shared_container_is_not_a_loop() -> None:
    act = {"_type_": "nn.ReLU"}
    assert len(sequential(layers=[act, act]).model.modules) == 2


def test_the_callers_mapping_is_not_touched() -> None:
    mapping = config(sequential={"layers": [{"_template_": "t"}]}) | {"templates": {"t": {"_type_": "${n}"}}, "n": "a"}
    before = repr(mapping)
    resolve_mapping(mapping, {})
    assert repr(mapping) == before


@pytest.mark.parametrize("version", [2, 0, "1", 1.0, True, None, [1]])
def test_schema_version_is_one(version: Any) -> None:
    error = refused(config(sequential={"layers": [LINEAR]}) | {"schema_version": version})
    assert (error.path, error.reason.startswith("must be 1, found ")) == (("schema_version",), True)


def test_schema_version_and_model_are_required() -> None:
    assert refused({}).reason == "'schema_version' is required"
    assert refused({"shema_version": 1}).reason.endswith("; is 'shema_version' a misspelling?")
    assert refused({"schema_version": 1}).reason == "'model' is required"
    for model in (None, [], "x"):
        assert refused({"schema_version": 1, "model": model}).reason.startswith("must be a mapping")


def test_unknown_top_level_keys_are_allowed() -> None:
    extra = {"params": {"a": 1}, "notes": "x", "schema": None}
    assert resolve_mapping(config(sequential={"layers": [LINEAR]}) | extra, {}).wire == sequential(layers=[LINEAR]).wire


def test_a_model_is_exactly_one_of_two() -> None:
    assert "found neither" in refused(config()).reason
    assert "found both" in refused(config(sequential={}, graph={})).reason
    error = refused(config(grph={}))
    assert error.path == ("model", "grph")
    assert error.reason.endswith("did you mean 'graph'?")
    assert refused(config(graph=[])).path == ("model", "graph")


def settings(value: Any) -> Settings:
    return resolve_mapping(config(sequential={"layers": [LINEAR]}) | {"settings": value}, {}).model.settings


def test_settings_and_their_defaults() -> None:
    assert (
        sequential().model.settings
        == settings({})
        == Settings(
            strict=True, allow_imports=True, allowed_import_prefixes=("model_constructor.",), allow_target=False
        )
    )
    given = {"strict": False, "allow_imports": False, "allowed_import_prefixes": ["a.", "b."], "allow_target": True}
    assert settings(given) == Settings(
        strict=False, allow_imports=False, allowed_import_prefixes=("a.", "b."), allow_target=True
    )
    assert settings({"allowed_import_prefixes": []}).allowed_import_prefixes == ()


@pytest.mark.parametrize(
    ("value", "path", "words"),
    [
        (None, (), "must be a mapping"),
        ({"strikt": True}, ("strikt",), "did you mean 'strict'?"),
        ({"strict": 1}, ("strict",), "must be true or false, found the number 1"),
        ({"strict": "true"}, ("strict",), "must be true or false"),
        ({"allow_imports": None}, ("allow_imports",), "found null"),
        ({"allow_target": "yes"}, ("allow_target",), "must be true or false"),
        ({"allowed_import_prefixes": "a."}, ("allowed_import_prefixes",), "must be a list of prefixes"),
        ({"allowed_import_prefixes": [1]}, ("allowed_import_prefixes", 0), "must be a non-empty string"),
        ({"allowed_import_prefixes": [""]}, ("allowed_import_prefixes", 0), "must be a non-empty string"),
    ],
)
def test_wrong_settings(value: Any, path: tuple[str | int, ...], words: str) -> None:
    error = refused(config(sequential={"layers": [LINEAR]}) | {"settings": value})
    assert error.path == ("settings", *path)
    assert words in error.reason


def test_sequential_becomes_modules_and_steps() -> None:
    model = sequential().model
    assert model.inputs == ("x",)
    assert list(model.modules.items()) == [("layer0", LINEAR), ("layer1", {"_type_": "nn.ReLU"})]
    steps = (
        ModuleCall(path="layer0", args=(Ref("x"),), out="h0"),
        ModuleCall(path="layer1", args=(Ref("h0"),), out="h1"),
    )
    assert model.steps == steps
    assert model.outputs == Ref("h1")
    assert model.program == Program(inputs=("x",), steps=steps, result=Ref("h1"))
    layers = ("model", "sequential", "layers")
    assert model.module_paths == {"layer0": (*layers, 0), "layer1": (*layers, 1)}
    assert model.step_paths == ((*layers, 0), (*layers, 1))


def test_sequential_names_its_input_and_outputs() -> None:
    model = sequential(inputs=["image"], outputs=["$h0", "h1", "$image"]).model
    assert model.steps[0].args == (Ref("image"),)
    assert model.outputs == (Ref("h0"), Ref("h1"), Ref("image"))
    assert sequential(outputs={"mid": "$h0"}).model.outputs == {"mid": Ref("h0")}
    assert sequential(**{"return": "tuple"}).model.outputs == (Ref("h1"),)
    assert sequential(**{"return": "dict"}).model.outputs == {"h1": Ref("h1")}
    assert sequential(**{"return": "single"}).model.outputs == Ref("h1")


@pytest.mark.parametrize(
    ("body", "path", "words"),
    [
        ({"inputs": ["x", "y"]}, ("inputs",), "exactly one input, found 2"),
        ({"inputs": []}, ("inputs",), "must be a non-empty list of names"),
        ({"inputs": "x"}, ("inputs",), "must be a non-empty list of names"),
        ({"inputs": ["$x"]}, ("inputs", 0), "'$x' is not a name"),
        ({"inputs": ["h0"]}, ("layers", 0), "collision"),
        ({"layers": []}, ("layers",), "must be a non-empty list of specs"),
        ({"layers": {"a": LINEAR}}, ("layers",), "must be a non-empty list of specs, found a mapping"),
        ({"layers": ["nn.ReLU"]}, ("layers", 0), "must be a spec"),
        ({"layer": []}, ("layer",), "did you mean 'layers'?"),
        ({"modules": {}}, ("modules",), "Unknown key 'modules'"),
        ({"outputs": ["h2"]}, ("outputs", 0), "Unknown value '$h2'"),
    ],
)
def test_wrong_sequentials(body: dict[str, Any], path: tuple[str | int, ...], words: str) -> None:
    error = refused(config(sequential={"layers": [LINEAR]} | body))
    assert error.path == ("model", "sequential", *path)
    assert words in error.reason


def test_sequential_needs_layers() -> None:
    assert refused(config(sequential={})).reason == "'layers' is required"


def test_the_model_may_come_from_a_reference() -> None:
    mapping = {"schema_version": 1, "params": {"m": {"sequential": {"layers": [LINEAR]}}}, "model": "${params.m}"}
    assert resolve_mapping(mapping, {}).model.modules == {"layer0": LINEAR}
