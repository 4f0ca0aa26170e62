"""Specs to modules, ``_target_`` under a policy, and whole models."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model_factory.config import Settings, resolve_mapping
from model_factory.errors import BuildError, ConfigError, FormatError, GraphExecutionError
from model_factory_server.constructor import (
    Permissions,
    Registry,
    build_model,
    default_registry,
    instantiate,
    instantiate_module,
)

PATH = ("model", "graph", "modules", "m")
AT = r"model\.graph\.modules\.m"
LINEAR = {"_type_": "nn.Linear", "in_features": 3, "out_features": 4}


class Keep:
    """Keeps what it was called with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs


def fail(error: Exception) -> None:
    raise error


@pytest.fixture(scope="module")
def registry() -> Registry:
    registry = default_registry()
    registry.register_module("keep", Keep)
    registry.register_module("fail", fail)
    for name, error in {"value": ValueError("no"), "type": TypeError("no"), "run": RuntimeError("no")}.items():
        registry.register_module(f"error_{name}", lambda error=error: error)
    registry.register_module("error_own", lambda: FormatError("own"))
    return registry


def make(registry: Registry, spec: Any, policy: Permissions | None = None) -> Any:
    return instantiate(spec, registry, policy or Permissions(), path=PATH)


# Specs


def test_keywords_positionals_and_extra_keywords(registry: Registry) -> None:
    kept = make(registry, {"_type_": "keep", "_args_": [1, 2], "_kwargs_": {"b": 3}, "a": 4, "_name_": "x"})
    assert (kept.args, kept.kwargs) == ((1, 2), {"a": 4, "b": 3})


def test_specs_nest_in_arguments_lists_and_mappings(registry: Registry) -> None:
    kept = make(
        registry,
        {
            "_type_": "keep",
            "_args_": [LINEAR],
            "a": LINEAR,
            "b": [[LINEAR], 1],
            "c": {"d": LINEAR},
            "_kwargs_": {"e": LINEAR},
        },
    )
    built = [kept.args[0], kept.kwargs["a"], kept.kwargs["b"][0][0], kept.kwargs["c"]["d"], kept.kwargs["e"]]
    assert all(isinstance(module, nn.Linear) for module in built)
    assert len(set(map(id, built))) == 5
    assert kept.kwargs["b"][1] == 1


def test_plain_values_stay_as_they_are(registry: Registry) -> None:
    values = {"text": "torch.relu", "none": None, "number": 1.5, "flag": True, "empty": [], "map": {"k": []}}
    assert make(registry, {"_type_": "keep", **values}).kwargs == values
    with pytest.raises(ConfigError, match="activation must be a module"):
        make(registry, {"_type_": "mlp", "dims": [3, 4], "activation": "relu"})


def test_random_numbers_do_not_depend_on_how_keys_are_written(registry: Registry) -> None:
    spec = {"_type_": "keep", "b": LINEAR, "a": [LINEAR, LINEAR], "_kwargs_": {"aa": LINEAR}, "_args_": [LINEAR]}
    order = []
    for keys in (list(spec), list(reversed(spec))):
        torch.manual_seed(0)
        kept = make(registry, {key: spec[key] for key in keys})
        order.append([*kept.args, *kept.kwargs["a"], kept.kwargs["aa"], kept.kwargs["b"]])
    torch.manual_seed(0)
    expected = [nn.Linear(3, 4) for _ in range(5)]
    for modules in order:
        for module, reference in zip(modules, expected, strict=True):
            assert torch.equal(module.weight, reference.weight)


def test_plain_mappings_are_built_in_written_order(registry: Registry) -> None:
    model = make(registry, {"_type_": "nn.ModuleDict", "modules": {"b": LINEAR, "a": LINEAR}})
    assert list(model) == ["b", "a"]


def test_containers_of_torch_take_specs(registry: Registry) -> None:
    model = make(registry, {"_type_": "nn.Sequential", "_args_": [LINEAR, {"_type_": "nn.ReLU", "inplace": True}]})
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"_type_": "nn.Liner"}, rf"^{AT}\._type_: Unknown module type 'nn.Liner'; did you mean 'nn.Linear'"),
        ({**LINEAR, "biass": True}, rf"^{AT}\.biass: Unknown kwargs for 'nn.Linear': 'biass'; did you mean 'bias'"),
        ({**LINEAR, "_kwargs_": {"biass": 1}}, rf"^{AT}\._kwargs_\.biass: Unknown kwargs"),
        ({**LINEAR, "_kwargs_": {"_x_": 1}}, rf"^{AT}\._kwargs_\._x_: Unknown kwargs"),
        ({"_type_": "nn.LayerNorm", "_args_": [4], "eps": "1e-3"}, rf"^{AT}\.eps: 'eps' is the text '1e-3', .*1\.0e-3"),
        ({"_type_": "nn.Linear", "in_features": "4", "out_features": 2}, rf"^{AT}\.in_features: .* takes a number"),
        ({"_type_": "nn.BatchNorm1d", "_args_": [2, "1e-5"]}, rf"^{AT}\._args_\[1\]: 'eps' is the text '1e-5'"),
        ({**LINEAR, "bias": "false"}, rf"^{AT}\.bias: .* takes true or false\. Remedy: .*\$\{{env:bool:NAME\}}"),
        ({"_type_": "nn.gelu"}, rf"^{AT}\._type_: Unknown module type 'nn.gelu'; did you mean 'nn.GELU'"),
        ({"_type_": "linear"}, rf"^{AT}\._type_: Unknown module type 'linear'; did you mean 'nn.Linear'"),
        ({"_type_": "nn.Linear"}, rf"^{AT}: 'nn.Linear': missing a required argument"),
        ({**LINEAR, "_args_": [3]}, rf"^{AT}: 'nn.Linear': multiple values for argument 'in_features'"),
        ({"_type_": "keep", "a": [0, {"b": {"_type_": "nn.Liner"}}]}, rf"^{AT}\.a\[1\]\.b\._type_: Unknown module"),
        ({"_type_": "keep", "_args_": [{"_type_": "z"}]}, rf"^{AT}\._args_\[0\]\._type_: Unknown module"),
        ({"_type_": "mlp", "dims": [3]}, rf"^{AT}: 'mlp': dims must be a list of at least two widths"),
        ({"_type_": "nn.LSTM", "hiden_size": 3}, rf"^{AT}\.hiden_size: Unknown kwargs .*did you mean 'hidden_size'"),
        ({"_type_": "nn.LSTM", "nonlinearity": "relu"}, rf"^{AT}\.nonlinearity: Unknown kwargs for 'nn.LSTM'"),
        ({"_type_": "nn.GRU", "input_size": 3}, rf"^{AT}: 'nn.GRU': missing a required argument: 'hidden_size'"),
        ({"_type_": "nn.Tanh", "inplace": True}, rf"^{AT}\.inplace: Unknown kwargs for 'nn.Tanh': 'inplace'"),
        ({"_type_": "fail", "error": {"_type_": "error_value"}}, rf"^{AT}: 'fail': no"),
        ({"_type_": "fail", "error": {"_type_": "error_type"}}, rf"^{AT}: 'fail': no"),
    ],
)
def test_errors_name_the_place(registry: Registry, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(registry, spec)


def test_reserved_keys_that_strict_mode_lets_through_are_no_arguments(registry: Registry) -> None:
    assert isinstance(make(registry, {**LINEAR, "_note": "later", "_x_": 1}), nn.Linear)


def test_arguments_are_checked_before_nested_specs_are_built(registry: Registry) -> None:
    with pytest.raises(ConfigError, match="Unknown kwargs"):
        make(registry, {**LINEAR, "biass": {"_type_": "fail", "error": {"_type_": "error_run"}}})


def test_other_failures_of_a_factory_are_build_errors(registry: Registry) -> None:
    spec = {"_type_": "keep", "a": {"_type_": "fail", "error": {"_type_": "error_run"}}}
    with pytest.raises(BuildError, match=rf"^{AT}\.a: building 'fail' failed: RuntimeError: no") as caught:
        make(registry, spec)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_own_errors_pass_through(registry: Registry) -> None:
    with pytest.raises(FormatError, match=r"^own$"):
        make(registry, {"_type_": "fail", "error": {"_type_": "error_own"}})


@pytest.mark.parametrize("spec", [{"_type_": "keep"}, {"plain": 1}, 3])
def test_a_graph_module_must_be_a_module(registry: Registry, spec: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{AT}: graph module 'm' is not a torch.nn.Module"):
        instantiate_module("m", spec, registry, Permissions(), path=PATH)


# _target_

NET = """
import os
from torch import nn

class Net(nn.Linear):
    @classmethod
    def small(cls):
        return cls(2, 2)
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Packages to import from; those that are imported are found in ``sys.modules``."""
    for package in ("allowed_pkg", "allowed_pkg_too", "foreign_pkg"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
        (tmp_path / package / "net.py").write_text(NET)
    blocks = (
        "from foreign_pkg.net import Net as Foreign\nimport os\nfrom allowed_pkg.net import Net\nlinear = Net(2, 2)\n"
    )
    (tmp_path / "allowed_pkg" / "blocks.py").write_text(blocks)
    (tmp_path / "allowed_pkg" / "broken.py").write_text("1 / 0\n")
    (tmp_path / "allowed_pkg" / "needy.py").write_text("import there_is_no_such_module\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in {"allowed_pkg", "allowed_pkg_too", "foreign_pkg"}:
            del sys.modules[name]


OPEN = Permissions(allow_imports=True, allow_target=True, allowed_import_prefixes=("allowed_pkg.",))


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("target", ["allowed_pkg.net.Net", "allowed_pkg.blocks.Net", "allowed_pkg.net.Net.small"])
def test_target_builds_what_lives_under_an_allowed_prefix(registry: Registry, target: str) -> None:
    args = [] if target.endswith("small") else [2, 2]
    assert type(make(registry, {"_target_": target, "_args_": args}, OPEN)).__name__ == "Net"


@pytest.mark.usefixtures("packages")
def test_target_arguments_are_checked(registry: Registry) -> None:
    with pytest.raises(ConfigError, match=rf"^{AT}\.biass: Unknown kwargs for 'allowed_pkg.net.Net': 'biass'"):
        make(registry, {"_target_": "allowed_pkg.net.Net", "biass": 1}, OPEN)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("foreign_pkg.net.Net", "is not under the allowed prefixes: 'allowed_pkg.'"),
        ("allowed_pkg_too.net.Net", "is not under the allowed prefixes"),
        ("os.system", "is not under the allowed prefixes"),
        ("allowed_pkg.blocks.Foreign", "whose home is 'foreign_pkg.net', is not under the allowed prefixes"),
        ("allowed_pkg.net.Net.load_state_dict", "whose home is 'torch.nn.modules.module', is not under"),
        ("allowed_pkg.net.os.getenv", "whose home is 'os', is not under"),
        ("allowed_pkg.net.os.system", "is not a class or function"),
        ("allowed_pkg.net.Net.__init__", "names something private"),
        ("allowed_pkg._net.Net", "names something private"),
        ("allowed_pkg.blocks.linear", "is not a class or function"),
        ("allowed_pkg.net", "is not a class or function"),
        ("allowed_pkg.net.Nothing", "is not a class or function"),
        ("allowed_pkg.nothing.Net", "is not a class or function"),
        ("Net", "must read package.module.Name"),
        ("allowed_pkg..Net", "must read package.module.Name"),
        ("allowed_pkg/net.Net", "must read package.module.Name"),
    ],
)
def test_target_refuses(registry: Registry, target: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{AT}\._target_: .*{message}"):
        make(registry, {"_target_": target}, OPEN)


@pytest.mark.usefixtures("packages")
def test_nothing_outside_the_prefixes_is_imported(registry: Registry) -> None:
    with pytest.raises(ConfigError):
        make(registry, {"_target_": "foreign_pkg.net.Net"}, OPEN)
    assert "foreign_pkg" not in sys.modules


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(("module", "error"), [("broken", "ZeroDivisionError"), ("needy", "there_is_no_such_module")])
def test_a_failing_import_is_a_build_error(registry: Registry, module: str, error: str) -> None:
    with pytest.raises(BuildError, match=rf"^{AT}\._target_: importing 'allowed_pkg\.{module}' failed: .*{error}"):
        make(registry, {"_target_": f"allowed_pkg.{module}.Net"}, OPEN)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("closed", ["allow_imports", "allow_target"])
def test_target_is_off_unless_allowed(registry: Registry, closed: str) -> None:
    flags = {"allow_imports": True, "allow_target": True, closed: False}
    policy = Permissions(**flags, allowed_import_prefixes=("allowed_pkg.",))
    for refusing in (policy, Permissions()):
        with pytest.raises(ConfigError, match=rf"^{AT}\._target_: _target_ is not allowed"):
            make(registry, {"_target_": "allowed_pkg.net.Net"}, refusing)
    assert "allowed_pkg" not in sys.modules


def test_a_config_can_only_narrow_the_policy() -> None:
    wide = Settings(allow_imports=True, allow_target=True, allowed_import_prefixes=("",))
    assert Permissions().narrowed(wide) == Permissions()
    settings = Settings(allow_imports=True, allow_target=True, allowed_import_prefixes=("a.b.", "c", "ee"))
    policy = Permissions(allow_imports=True, allow_target=True, allowed_import_prefixes=("a", "c.d.", "e"))
    assert policy.narrowed(settings) == Permissions(
        allow_imports=True, allow_target=True, allowed_import_prefixes=("c.d.", "a.b.")
    )
    assert not policy.narrowed(Settings()).allow_target
    assert not policy.narrowed(Settings(allow_imports=False, allow_target=True)).allow_imports


# Models


def graph(modules: dict[str, Any], steps: list[dict[str, Any]], **settings: Any) -> Any:
    body = {"inputs": ["x"], "modules": modules, "steps": steps, "outputs": ["y"]}
    return resolve_mapping({"schema_version": 1, "settings": settings, "model": {"graph": body}}, {}).model


def test_a_model_runs_its_steps(registry: Registry) -> None:
    steps = [
        {"call": "module:b", "args": ["$x"], "out": "h"},
        {"call": "module:b", "args": ["$h"], "out": "k"},
        {"call": "op:relu", "args": ["$k"], "out": "y"},
    ]
    square = {**LINEAR, "out_features": 3}
    model = build_model(graph({"b": square, "a": square}, steps), registry, Permissions())
    assert list(model.graph_modules) == ["b", "a"]
    layer, x = model.graph_modules["b"], torch.randn(2, 3)
    torch.testing.assert_close(model(x), torch.relu(layer(layer(x))))


def test_a_sequential_model(registry: Registry) -> None:
    config = {"schema_version": 1, "model": {"sequential": {"layers": [LINEAR, {"_type_": "nn.ReLU"}]}}}
    model = build_model(resolve_mapping(config, {}).model, registry, Permissions())
    x = torch.randn(2, 3)
    torch.testing.assert_close(model(x), torch.relu(model.graph_modules["layer0"](x)))


def test_modules_are_built_in_written_order(registry: Registry) -> None:
    torch.manual_seed(0)
    steps = [{"call": "module:b", "args": ["$x"], "out": "y"}]
    model = build_model(graph({"b": LINEAR, "a": LINEAR}, steps), registry, Permissions())
    torch.manual_seed(0)
    for name in ("b", "a"):
        assert torch.equal(model.graph_modules[name].weight, nn.Linear(3, 4).weight)


def test_errors_name_the_step_and_the_spec(registry: Registry) -> None:
    steps = [{"call": "op:reluu", "args": ["$x"], "out": "y"}]
    with pytest.raises(ConfigError, match=r"model\.graph\.steps\[0\]\.call: Unknown op 'reluu'; did you mean"):
        build_model(graph({"m": LINEAR}, steps), registry, Permissions())
    with pytest.raises(ConfigError, match=rf"{AT}\._type_: Unknown module type"):
        build_model(graph({"m": {"_type_": "nn.Liner"}}, steps), registry, Permissions())


def test_plugin_ops_become_modules_without_state() -> None:
    def halve(x: Tensor) -> Tensor:
        return x / 2

    registry = default_registry()
    registry.register_op("my.halve", halve)
    registry.register_op("relu", halve)
    calls = ["op:my.halve", "op:my.halve", "op:relu"]
    steps = [
        {"call": call, "args": [f"$h{index}" if index else "$x"], "out": f"h{index + 1}" if index < 2 else "y"}
        for index, call in enumerate(calls)
    ]
    model = build_model(graph({}, steps), registry, Permissions())
    assert torch.equal(model(torch.tensor([8.0])), torch.tensor([1.0]))
    assert list(model.graph_modules) == ["op:my:halve", "op:relu"]
    assert not model.state_dict()


def test_arguments_of_a_plugin_op_are_checked_when_the_model_is_built() -> None:
    def scaled(x: Tensor, scale: float = 1.0) -> Tensor:
        return x * scale

    registry = default_registry()
    registry.register_op("scaled", scaled)
    registry.register_op("anything", scaled, signature_policy="runtime_only")
    step = {"args": ["$x"], "kwargs": {"scal": 2}, "out": "y"}
    place = r"model\.graph\.steps\[0\]\.kwargs\.scal: Unknown kwargs for 'scaled': 'scal'; did you mean 'scale'"
    with pytest.raises(ConfigError, match=place):
        build_model(graph({}, [{"call": "op:scaled", **step}]), registry, Permissions())
    model = build_model(graph({}, [{"call": "op:anything", **step}]), registry, Permissions())
    with pytest.raises(TypeError, match="scal") as caught:
        model(torch.ones(1))
    assert caught.value.__notes__ == ["in step 0 (op:anything) of a graph"]


def test_a_step_that_fails_is_named_as_the_config_writes_it() -> None:
    def refuse(x: Tensor) -> Tensor:
        raise BuildError("not today")

    registry = default_registry()
    registry.register_op("my.refusal", refuse)
    lstm = {"_type_": "nn.LSTM", "_args_": [3, 3]}
    refused = GraphExecutionError
    for call, out, error, message in (
        (
            "module:m",
            ["p", "q", "r"],
            refused,
            "step 0 (module:m): expected a tuple or list of 3 values, got a tuple of 2",
        ),
        ("module:m", {"w": "p"}, refused, "step 0 (module:m): expected a mapping with keys ['w'], got a tuple of 2"),
        ("op:my.refusal", "p", BuildError, "not today"),
        ("op:getitem", "p", TypeError, "argument"),
        ("op:relu", "p", TypeError, "argument"),
    ):
        arguments = ["$x"] if call != "op:relu" else ["$x", "$x", "$x"]
        steps = [{"call": call, "args": arguments, "out": out}, {"call": "op:identity", "args": ["$p"], "out": "y"}]
        model = build_model(graph({"m": lstm}, steps), registry, Permissions())
        with pytest.raises(error, match=re.escape(message)) as caught:
            model(torch.randn(2, 3))
        assert type(caught.value) is error
        if error is not refused:
            assert caught.value.__notes__ == [f"in step 0 ({call}) of a graph"]


@pytest.mark.usefixtures("packages")
def test_the_configs_settings_narrow_the_policy(registry: Registry) -> None:
    steps = [{"call": "module:m", "args": ["$x"], "out": "y"}]
    modules = {"m": {"_target_": "allowed_pkg.net.Net", "_args_": [3, 3]}}
    asks = {"allow_target": True, "allowed_import_prefixes": ["allowed_pkg."]}
    build_model(graph(modules, steps, **asks), registry, OPEN)
    for config, policy in [(graph(modules, steps), OPEN), (graph(modules, steps, **asks), Permissions())]:
        with pytest.raises(ConfigError, match="_target_ is not allowed"):
            build_model(config, registry, policy)
