"""One suite over both factories: the contract for trainers, with models built on a server or in the same process."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from model_factory import ConfigError, GraphModel, ModelFactory, ModelFactoryError, RemoteModelFactory
from model_factory_server import PolicyConstructorModelFactory
from support.cases import CASES, CONFIGS
from support.compare import assert_same_state
from support.configs import graph, layers

SMALL = CONFIGS / "small"
TINY = {
    "schema_version": 1,
    "model": {"sequential": {"layers": [{"_type_": "nn.Linear", "in_features": 3, "out_features": 2}]}},
}

Make = Callable[..., ModelFactory]


@pytest.fixture(params=["remote", "local"])
def make(request: pytest.FixtureRequest) -> Make:
    return request.getfixturevalue(f"make_{request.param}")


@pytest.fixture
def make_local() -> Make:
    return lambda **arguments: PolicyConstructorModelFactory(**({"seed": 7} | arguments))


@pytest.fixture
def make_both(make_remote: Make, make_local: Make) -> Callable[..., tuple[ModelFactory, ModelFactory]]:
    return lambda **arguments: (make_remote(**arguments), make_local(**arguments))


def one(model: nn.Module | Mapping[str, nn.Module]) -> nn.Module:
    assert isinstance(model, nn.Module)
    return model


def several(models: nn.Module | Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    assert type(models) is dict
    return models


def test_is_a_model_factory(make: Make) -> None:
    assert isinstance(make(), ModelFactory)


def test_config_path_gives_one_module(make: Make) -> None:
    model = one(make().build({"config_path": SMALL / "mlp.yaml"}))
    assert isinstance(model, GraphModel)
    assert model.inputs == ["x"]
    assert isinstance(model.graph_modules, nn.ModuleDict)
    assert model(torch.zeros(2, 12)).shape == (2, 4)


def test_config_path_may_be_text(make: Make) -> None:
    assert isinstance(make().build({"config_path": str(SMALL / "mlp.yaml")}), GraphModel)


def test_config_gives_one_module(make: Make) -> None:
    model = one(make().build({"config": TINY}))
    assert type(model.graph_modules["layer0"]) is nn.Linear
    assert list(model.state_dict()) == ["graph_modules.layer0.weight", "graph_modules.layer0.bias"]


def test_names_give_a_dict_in_the_order_of_the_config(make: Make) -> None:
    asked = {"z": SMALL / "mlp.yaml", "a": TINY, "m": str(SMALL / "conv_graph.yaml")}
    models = several(make().build(asked))
    assert list(models) == ["z", "a", "m"]
    assert all(isinstance(model, GraphModel) for model in models.values())


def test_one_name_still_gives_a_dict(make: Make) -> None:
    assert list(several(make().build({"only": TINY}))) == ["only"]


@pytest.mark.parametrize(
    "asked",
    [{"config": SMALL / "mlp.yaml"}, {"config_path": TINY}, {"config": TINY, "config_path": SMALL / "mlp.yaml"}],
    ids=lambda asked: str(list(asked)),
)
def test_config_and_config_path_are_names_where_they_ask_for_no_single_module(make: Make, asked: Any) -> None:
    assert list(several(make().build(asked))) == list(asked)


@pytest.mark.parametrize("name", ["keys", "type", "forward", "add_module"])
def test_modules_may_have_names_that_torch_uses_itself(make: Make, name: str) -> None:
    steps = [{"call": f"module:{name}", "args": ["$x"], "out": "y"}]
    linear = {"_type_": "nn.Linear", "in_features": 2, "out_features": 3}
    graph_of_one = {"inputs": ["x"], "modules": {name: linear}, "steps": steps, "outputs": ["$y"]}
    model = one(make().build({"config": {"schema_version": 1, "model": {"graph": graph_of_one}}}))
    assert list(model.state_dict()) == [f"graph_modules.{name}.weight", f"graph_modules.{name}.bias"]
    assert model(torch.ones(1, 2)).shape == (1, 3)
    assert [item.shape for item in copy.deepcopy(model).eval().parameters()] == [(3, 2), (3,)]


@pytest.mark.parametrize("other", ["model.yaml", Path("model.yaml"), [1], None])
def test_what_is_no_mapping_is_refused(make: Make, other: Any) -> None:
    with pytest.raises(ConfigError, match=r"model_cfg is a mapping, found .*'config_path'"):
        make().build(other)


def test_a_config_in_place_of_components_is_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"found int; a config itself is given as {'config': MAPPING}"):
        make().build({"schema_version": 1, "model": {}})


def test_seeds_are_integers_of_any_kind(make: Make) -> None:
    config = {"config": TINY}
    assert_same_state(*[one(make(seed=seed).build(config)) for seed in (7, np.int64(7))])
    with pytest.raises(TypeError, match="integer"):
        make(seed=1.5)


@pytest.mark.parametrize("empty", [{}, yaml.safe_load("{}")])
def test_an_empty_mapping_is_a_value_error(make: Make, empty: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="model_cfg is empty"):
        make().build(empty)


def test_relative_paths_are_relative_to_base_dir(make: Make) -> None:
    models = several(make(base_dir=CONFIGS).build({"mlp": "small/mlp.yaml"}))
    assert isinstance(models["mlp"], GraphModel)


def test_relative_paths_are_else_relative_to_the_working_directory(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(SMALL)
    factory = make()
    monkeypatch.chdir(tmp_path)  # the factory keeps the working directory of its creation
    assert isinstance(one(factory.build({"config_path": "mlp.yaml"})), GraphModel)


def test_environment_variables_are_the_trainers(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = {"_type_": "nn.Linear", "in_features": "${env:int:TEST_WIDTH}", "out_features": 2}
    monkeypatch.setenv("TEST_WIDTH", "5")
    model = one(make().build({"config": TINY | {"model": {"sequential": {"layers": [layer]}}}}))
    assert model.graph_modules["layer0"].in_features == 5
    assert "TEST_WIDTH" in os.environ


def test_modules_are_in_train_mode_and_trainable(make: Make) -> None:
    model = one(make().build({"config_path": SMALL / "info_embedder.yaml"}))
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())


def test_every_build_is_a_model_of_its_own(make: Make) -> None:
    factory = make()
    first, second = (one(factory.build({"config": TINY})) for _ in range(2))
    assert_same_state(first, second)
    with torch.no_grad():
        first.graph_modules["layer0"].weight.fill_(3.0)
    assert not second.graph_modules["layer0"].weight.eq(3.0).any()
    third = one(factory.build({"config": TINY}))
    assert_same_state(third, second)


def test_components_with_one_config_do_not_share_their_tensors(make: Make) -> None:
    """Weights differ, too: the seed of a component depends on the name."""
    models = several(make().build({"left": TINY, "right": TINY}))
    left, right = (model.graph_modules["layer0"].weight for model in models.values())
    assert left.data_ptr() != right.data_ptr()
    assert not left.equal(right)


def test_the_seed_decides(make: Make) -> None:
    again = [one(make(seed=seed).build({"config": TINY})).state_dict() for seed in (1, 1, 2, -1, 2**63)]
    weights = [state["graph_modules.layer0.weight"] for state in again]
    assert weights[0].equal(weights[1])
    assert len({tuple(weight.flatten().tolist()) for weight in weights}) == 4


@pytest.mark.parametrize("seed", [0, -1, -(2**63), 2**63, 2**64 - 1])
def test_any_seed_of_torchs_gives_the_same_from_both(make_both: Callable[..., Any], seed: int) -> None:
    remote, local = (one(factory.build({"config": TINY})) for factory in make_both(seed=seed))
    assert_same_state(remote, local)


def weight_of(model: nn.Module) -> tuple[float, ...]:
    return tuple(model.graph_modules["layer0"].weight.flatten().tolist())


def test_without_a_seed_builds_in_a_row_differ_and_repeat_after_manual_seed(make: Make) -> None:
    factory = make(seed=None)

    def sequence() -> list[tuple[float, ...]]:
        single = [weight_of(one(factory.build({"config": TINY}))) for _ in range(2)]
        pair = [weight_of(model) for model in several(factory.build({"left": TINY, "right": TINY})).values()]
        return [*single, *pair, weight_of(one(make(seed=None).build({"config": TINY})))]

    torch.manual_seed(21)
    first = sequence()
    assert len(set(first)) == 5, "two builds, two components or two factories have the same weights"
    torch.manual_seed(21)
    assert sequence() == first
    torch.manual_seed(22)
    assert not set(sequence()) & set(first)


def test_both_draw_the_same_seeds(make_both: Callable[..., tuple[ModelFactory, ModelFactory]]) -> None:
    built, states = [], []
    for factory in make_both(seed=None):
        torch.manual_seed(5)
        built.append([one(factory.build({"config": TINY})), *several(factory.build({"a": TINY, "b": TINY})).values()])
        states.append(torch.get_rng_state())
    for remote, local in zip(*built, strict=True):
        assert_same_state(remote, local)
    assert states[0].equal(states[1])


def test_a_build_draws_one_number_whatever_it_builds(make: Make) -> None:
    states = []
    for asked in ({"config": TINY}, {"a": TINY}, {"a": TINY, "b": TINY, "c": str(SMALL / "mlp.yaml")}):
        torch.manual_seed(3)
        make(seed=None).build(asked)
        states.append(torch.get_rng_state())
    torch.manual_seed(3)
    assert not states[0].equal(torch.get_rng_state())
    assert all(state.equal(states[0]) for state in states)


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda factory: factory.describe({"config": TINY}), None),
        (lambda factory: factory.build({}), ValueError),
        (lambda factory: factory.build({"config": TINY | {"schema_version": 9}}), ConfigError),
        (lambda factory: factory.build({"config": layers({"_type_": "nn.Linaer"})}), ConfigError),
    ],
    ids=["describe", "empty", "wrong config", "unknown type"],
)
def test_descriptions_and_builds_that_fail_draw_nothing(
    act: Callable[[ModelFactory], Any], error: type[Exception] | None, make: Make
) -> None:
    """A rank that retries keeps the seed of the other ranks."""
    factory = make(seed=None)
    torch.manual_seed(13)
    before = torch.get_rng_state()
    if error is None:
        act(factory)
    else:
        with pytest.raises(error):
            act(factory)
    assert torch.get_rng_state().equal(before)


def test_a_server_that_cannot_be_reached_costs_no_draw(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    with pytest.raises(ModelFactoryError):
        RemoteModelFactory("127.0.0.1:1", cache_dir=tmp_path).build({"config": TINY})
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_seed_is_drawn_on_the_cpu_whatever_torchs_default_device_is(make: Make, device: str) -> None:
    torch.manual_seed(8)
    expected = weight_of(one(make(seed=None).build({"config": TINY})))
    torch.manual_seed(8)
    with torch.device(device):
        model = one(make(seed=None).build({"config": TINY}))
    assert weight_of(model) == expected


def test_the_trainers_random_state_is_left_alone(make: Make) -> None:
    torch.manual_seed(13)
    before = torch.get_rng_state()
    make(seed=1).build({"config": TINY})
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_is_what_floating_tensors_are_cast_to(make: Make, dtype: torch.dtype) -> None:
    model = one(make(dtype=dtype).build({"config_path": SMALL / "conv_graph.yaml"}))
    state = model.state_dict()
    counters = {key for key in state if key.endswith("num_batches_tracked")}
    assert counters
    assert {state[key].dtype for key in counters} == {torch.int64}
    assert {value.dtype for key, value in state.items() if key not in counters} == {dtype}


def test_device_is_where_tensors_are_put(make: Make) -> None:
    model = one(make(device="cpu").build({"config": TINY}))
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("name", CASES)
def test_both_build_the_same_model(name: str, make_both: Callable[..., tuple[ModelFactory, ModelFactory]]) -> None:
    for dtype in (None, torch.bfloat16):
        remote, local = (factory.build({name: CASES[name].config})[name] for factory in make_both(dtype=dtype))
        assert_same_state(remote, local)


def test_both_describe_a_model_alike(make_both: Callable[..., tuple[ModelFactory, ModelFactory]]) -> None:
    asked = {name: case.config for name, case in CASES.items()}
    remote, local = (factory.describe(asked) for factory in make_both())
    assert list(remote) == list(local) == list(asked)
    built = make_both()[1].build(asked)
    for name, model in built.items():
        assert str(remote[name]) == str(local[name])
        assert remote[name].parameters == sum(item.numel() for item in model.parameters())
        tensors = [*model.parameters(), *model.buffers()]
        assert remote[name].bytes == sum(item.nbytes for item in tensors)


def test_describing_one_model_gives_one_description(
    make_both: Callable[..., tuple[ModelFactory, ModelFactory]],
) -> None:
    remote, local = (factory.describe({"config": TINY}) for factory in make_both())
    assert str(remote) == str(local)
    assert remote.parameters == 8


LINEAR = TINY["model"]["sequential"]["layers"][0]

# A fault, and a part of the message from both factories.
REFUSED: dict[str, tuple[Any, type[ModelFactoryError], str]] = {
    "unknown type": (layers({"_type_": "nn.Linaer"}), ConfigError, "Unknown module type 'nn.Linaer'"),
    "unknown argument": (layers(LINEAR | {"biass": True}), ConfigError, "Unknown kwargs for 'nn.Linear': 'biass'"),
    "missing argument": (layers({"_type_": "nn.Linear", "in_features": 1}), ConfigError, "out_features"),
    "refused value": (layers({"_type_": "mlp", "dims": [3]}), ConfigError, "at least two widths"),
    "nested refused value": (
        layers({"_type_": "nn.Sequential", "_args_": [LINEAR, {"_type_": "nn.Linear", "_args_": ["a", "b"]}]}),
        ConfigError,
        "'nn.Linear': ",
    ),
    "unknown op": (
        graph(steps=[{"call": "op:sofmax", "args": ["$x"], "out": "y"}]),
        ConfigError,
        "Unknown op 'sofmax'",
    ),
    "name of torch's own": (
        {
            "schema_version": 1,
            "model": {"graph": {"inputs": ["x"], "modules": {"training": LINEAR}, "steps": [], "outputs": ["$x"]}},
        },
        ConfigError,
        "cannot be named 'training'",
    ),
    "unknown module": (graph(steps=[{"call": "module:b", "out": "y"}]), ConfigError, "Unknown module 'b'"),
    "forward reference": (
        graph(
            steps=[
                {"call": "module:a", "args": ["$z"], "out": "y"},
                {"call": "module:a", "args": ["$x"], "out": "z"},
            ]
        ),
        ConfigError,
        "Forward reference",
    ),
    "reused name": (graph(steps=[{"call": "module:a", "args": ["$x"], "out": "x"}]), ConfigError, "collision"),
    "schema version": (TINY | {"schema_version": 2}, ConfigError, "must be 1, found the number 2"),
    "no model": ({"schema_version": 1}, ConfigError, "'model' is required"),
    "target": (layers({"_target_": "os.system", "command": "true"}), ConfigError, "_target_ is not allowed"),
    "reserved key": (layers(LINEAR | {"_nmae_": "x"}), ConfigError, "Unknown reserved keys"),
    "interpolation cycle": (
        TINY | {"params": {"a": "${params.b}", "b": "${params.a}"}},
        ConfigError,
        "Interpolation cycle detected",
    ),
    "missing variable": (TINY | {"note": "${env:NOT_SET_ANYWHERE}"}, ConfigError, "NOT_SET_ANYWHERE"),
    "defaults in memory": (TINY | {"defaults": ["a.yaml"]}, ConfigError, "in-memory"),
}


@pytest.fixture
def refusals(make_both: Callable[..., tuple[ModelFactory, ModelFactory]]) -> Callable[[Any], list[Exception]]:
    def refuse(model_cfg: Any) -> list[Exception]:
        caught = []
        for factory in make_both():
            with pytest.raises(Exception) as error:  # noqa: PT011  the test compares what was raised
                factory.build(model_cfg)
            caught.append(error.value)
        return caught

    return refuse


IN_MEMORY_ONLY = {"defaults in memory"}


@pytest.mark.parametrize(
    ("form", "what"),
    [
        (form, what)
        for form in ("config", "file", "named")
        for what in REFUSED
        if form != "file" or what not in IN_MEMORY_ONLY
    ],
)
def test_both_refuse_alike(form: str, what: str, refusals: Callable[[Any], list[Exception]], tmp_path: Path) -> None:
    config, cls, text = REFUSED[what]
    if form == "config":
        asked = {"config": config}
    elif form == "named":
        asked = {"good": TINY, "bad": config}
    else:
        path = tmp_path / "bad.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        asked = {"config_path": path}
    remote, local = refusals(asked)
    assert type(remote) is type(local) is cls
    assert text in str(local)
    assert str(remote) == str(local)
    assert (remote.path, remote.reason) == (local.path, local.reason)
    if form == "file":
        assert re.match(rf"{re.escape(str(tmp_path / 'bad.yaml'))}:\d+:\d+: ", str(remote)), "the place is missing"


@pytest.mark.parametrize(
    "asked",
    [
        {"config_path": "nowhere.yaml"},
        {"config": 3},
        {"config_path": 3},
        {"config": TINY, "config_path": "nowhere.yaml"},
        {"name": 3},
        {3: TINY},
        {"": TINY},
        {f"c{index}": TINY for index in range(257)},
    ],
    ids=lambda asked: str(asked)[:40],
)
def test_both_refuse_a_wrong_model_cfg_alike(asked: Any, refusals: Callable[[Any], list[Exception]]) -> None:
    remote, local = refusals(asked)
    assert type(remote) is type(local) is ConfigError
    assert str(remote) == str(local)


def test_a_remote_factory_refuses_before_it_connects(tmp_path: Path) -> None:
    factory = RemoteModelFactory("127.0.0.1:1", cache_dir=tmp_path)
    with pytest.raises(ValueError, match="empty"):
        factory.build({})
    with pytest.raises(ConfigError, match="must be 1"):
        factory.build({"config": TINY | {"schema_version": 9}})
    with pytest.raises(ConfigError, match="'config_path' is a path, found NoneType"):
        factory.build({"config_path": None})
