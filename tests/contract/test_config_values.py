"""Configs made of what trainers have: OmegaConf, dataclasses, pydantic models, NumPy scalars and paths."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from model_factory import ConfigError, ModelFactory
from model_factory.config import resolve_mapping
from model_factory_server import PolicyConstructorModelFactory
from support.cases import CONFIGS
from support.compare import assert_same_state
from support.configs import layers

MLP = {"_type_": "mlp", "dims": [3, 8, 2], "dropout": 0.25, "bias": True}
PLAIN = layers(MLP)

Make = Callable[..., ModelFactory]


@pytest.fixture(params=["remote", "local"])
def factory(request: pytest.FixtureRequest, make_remote: Make) -> ModelFactory:
    return make_remote() if request.param == "remote" else PolicyConstructorModelFactory(seed=7)


@dataclasses.dataclass
class Layer:
    _type_: str = "mlp"
    dims: tuple[int, ...] = (3, 8, 2)
    dropout: float = 0.25
    bias: bool = True


class Spec(pydantic.BaseModel):
    type_name: str = pydantic.Field("mlp", serialization_alias="_type_")
    dims: list[int] = [3, 8, 2]
    dropout: float = 0.25
    bias: bool = True


class Whole(pydantic.BaseModel):
    schema_version: int = 1
    model: dict[str, dict[str, list[Spec]]] = {"sequential": {"layers": [Spec()]}}


HYDRA = OmegaConf.create({"width": 8, "rates": {"drop": 0.25}, "policy": layers(MLP | {"dims": [3, "${width}", 2]})})
HYDRA.policy.model.sequential.layers[0].dropout = "${rates.drop}"

SAME: dict[str, Any] = {
    "a DictConfig with references to the whole config": HYDRA.policy,
    "a dict with parts of OmegaConf": layers({"_type_": "mlp"} | dict(HYDRA.policy.model.sequential.layers[0])),
    "tuples": layers(MLP | {"dims": (3, 8, 2)}),
    "NumPy scalars": layers(MLP | {"dims": [np.int64(3), np.int32(8), np.uint8(2)], "dropout": np.float64(0.25),
                                   "bias": np.bool_(True), "_type_": np.str_("mlp")}),
    "a dataclass": layers(Layer()),
    "a pydantic model": layers(Spec()),
    "a whole pydantic model": Whole(),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_values_of_libraries_are_plain_data(name: str) -> None:
    config = resolve_mapping(SAME[name], {}) if name != "a whole pydantic model" else None
    if config is not None:
        assert config.digest == resolve_mapping(PLAIN, {}).digest
    built = PolicyConstructorModelFactory(seed=7).build({"config": SAME[name]})
    assert built.build_info.config_digest == resolve_mapping(PLAIN, {}).digest


def test_a_model_cfg_may_be_a_config_of_hydra(factory: ModelFactory) -> None:
    expected = factory.build({"policy": PLAIN, "mlp": CONFIGS / "small" / "mlp.yaml"})
    cfg = OmegaConf.create({"models": {"policy": PLAIN, "mlp": "${folder}/mlp.yaml"}, "folder": str(CONFIGS / "small")})
    assert isinstance(cfg.models, DictConfig)
    for model_cfg in (cfg.models, dict(cfg.models), {"policy": cfg.models.policy, "mlp": Path(cfg.models.mlp)}):
        models = factory.build(model_cfg)
        assert list(models) == ["policy", "mlp"]
        for name, model in models.items():
            assert_same_state(model, expected[name])
    single = OmegaConf.create({"config_path": str(CONFIGS / "small" / "mlp.yaml")})
    assert isinstance(factory.build(single), torch.nn.Module)


@dataclasses.dataclass
class ModelCfg:
    config_path: Path = CONFIGS / "small" / "mlp.yaml"


def test_a_model_cfg_may_be_a_dataclass(factory: ModelFactory) -> None:
    assert isinstance(factory.build(ModelCfg()), torch.nn.Module)


def test_a_path_in_a_config_is_its_text() -> None:
    assert resolve_mapping(PLAIN | {"params": {"file": Path("a/b")}}, {}).tree.entries["params"].entries[
        "file"
    ].value == str(Path("a/b"))


def test_an_escaped_reference_is_a_reference_of_the_config() -> None:
    cfg = OmegaConf.create(layers(MLP | {"dims": [3, r"\${params.width}", 2]}) | {"params": {"width": 8}})
    assert resolve_mapping(cfg, {}).digest == resolve_mapping(PLAIN, {}).digest


class Activation(enum.Enum):
    RELU = "nn.ReLU"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.zeros(3), "numpy.ndarray is not plain data; .* Remedy: pass value.tolist()"),
        (torch.zeros(3), "torch.Tensor is not plain data; .* Remedy: pass value.tolist()"),
        (Activation.RELU, "Activation is not plain data; .* Remedy: pass the member's .value or .name"),
        ({3, 8}, "builtins.set is not plain data; .* Remedy: pass a list, for example sorted(value)"),
        (argparse.Namespace(a=1), "argparse.Namespace is not plain data; .* Remedy: pass vars(value)"),
        (np.complex64(1), "builtins.complex is not plain data"),
        (Layer, "builtins.type is not plain data"),
        (object(), "builtins.object is not plain data"),
    ],
    ids=lambda item: type(item).__name__,
)
def test_other_values_are_refused_with_the_call_that_helps(value: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text).replace(r"\.\*", ".*")) as caught:
        PolicyConstructorModelFactory().build({"config": layers(MLP | {"dims": value})})
    assert caught.value.path == ("model", "sequential", "layers", 0, "dims")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"dropout": "${nowhere.rate}"}, "Interpolation key 'nowhere.rate' not found"),
        ({"dropout": "${env:RATE}"}, "Unsupported interpolation type env"),
        ({"dropout": "???"}, "Missing mandatory value"),
    ],
)
def test_what_omegaconf_cannot_resolve_names_the_calls(change: dict[str, str], text: str) -> None:
    cfg = OmegaConf.create({"policy": layers(MLP | change)})
    for model_cfg in ({"policy": cfg.policy}, cfg):
        with pytest.raises(ConfigError, match=f"OmegaConf cannot resolve the config: {text}") as caught:
            PolicyConstructorModelFactory().build(model_cfg)
        assert "Remedy: pass what OmegaConf.to_container(cfg, resolve=True) returns; or, if" in str(caught.value)


def test_a_dataclass_inside_itself_ends() -> None:
    layer: Any = Layer()
    layer.dims = layer
    with pytest.raises(ConfigError, match="contains itself"):
        PolicyConstructorModelFactory().build({"config": layers(layer)})


def test_no_library_is_imported_for_a_config() -> None:
    code = (
        "import sys; from model_factory.config import resolve_mapping; import decimal\n"
        "try: resolve_mapping({'schema_version': decimal.Decimal(1)}, {})\n"
        "except Exception as error: print(type(error).__name__, {'numpy', 'omegaconf', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "ConfigError set()"
