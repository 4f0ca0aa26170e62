"""The record that every built model carries, from both factories."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model_factory import BuildInfo, FormatError, ModelFactory, ModelFactoryError
from model_factory.client import assembly
from model_factory.config import resolve_file
from model_factory.descriptor.codec import encode_descriptor
from model_factory.digest import digest_of, digest_of_file
from model_factory.environment import environment
from model_factory.model_file.live import portable_model
from model_factory_server import PolicyConstructorModelFactory
from support.cases import CASES, CONFIGS
from support.compare import assert_same_state
from support.configs import layers
from support.server import ServerProcess

MLP = CONFIGS / "small" / "mlp.yaml"
TINY = layers({"_type_": "nn.Linear", "in_features": 3, "out_features": 2})

Make = Callable[..., ModelFactory]


@pytest.fixture(params=["remote", "local"])
def make(request: pytest.FixtureRequest, make_remote: Make) -> Make:
    def make_local(**arguments: Any) -> ModelFactory:
        return PolicyConstructorModelFactory(**({"seed": 7} | arguments))

    return make_remote if request.param == "remote" else make_local


def test_every_model_has_the_facts_of_the_build(make: Make) -> None:
    models = make(seed=-5, dtype=torch.bfloat16).build({"mlp": MLP, "tiny": TINY})
    for name, model in models.items():
        info = model.build_info
        assert info is BuildInfo.of(model)
        assert (info.component, info.seed, info.dtype) == (name, 2**64 - 5, "bfloat16")
        assert (info.backend, info.device_kind) == ("builtin", "cpu")
        assert info.torch_version == info.client_torch_version == torch.__version__
    assert models["mlp"].build_info.config_digest == resolve_file(MLP, environment()).digest
    assert models["mlp"].build_info.build_key != models["tiny"].build_info.build_key


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_both_factories_agree(dtype: torch.dtype | None, make_remote: Make) -> None:
    remote = make_remote(dtype=dtype).build({"mlp": MLP})["mlp"].build_info
    local = PolicyConstructorModelFactory(seed=7, dtype=dtype).build({"mlp": MLP})["mlp"].build_info
    assert dataclasses.replace(remote, programs=None) == local
    recorded = PolicyConstructorModelFactory(seed=7, dtype=dtype, all_digests=True).build({"mlp": MLP})["mlp"]
    assert recorded.build_info == remote
    unknown = {name for name, value in remote.as_dict().items() if value is None}
    assert unknown == {"checkpoint", "checkpoint_digest"}  # the config names none


@pytest.mark.parametrize("name", [name for name in CASES if "radio" not in name])
def test_digests_of_this_process_are_the_digests_of_a_server(name: str, make_remote: Make) -> None:
    request = {"config_path": CASES[name].config}
    model = make_remote().build(request)
    remote, local = model.build_info, PolicyConstructorModelFactory(seed=7).build(request).build_info
    assert digest_of(encode_descriptor(portable_model(model).descriptor)) == remote.descriptor  # of `build -o DIR`
    assert (local.descriptor, local.weights) == (remote.descriptor, remote.weights)


def test_a_model_without_a_place_in_a_file_has_no_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sparse_block.py").write_text(
        "import torch\nfrom torch import nn\n\nclass Sparse(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.register_buffer('table', torch.eye(3).to_sparse())\n\n"
        "    def forward(self, x):\n        return x\n\ndef register(registry):\n"
        "    registry.register_module('sparse', Sparse)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    model = PolicyConstructorModelFactory(plugins=["sparse_block"]).build({"config": layers({"_type_": "sparse"})})
    assert (model.build_info.descriptor, model.build_info.weights) == (None, None)


def test_digests_are_the_digests_of_the_files_in_the_cache(make_remote: Make, tmp_path: Path) -> None:
    unseen = layers({"_type_": "nn.Linear", "in_features": 23, "out_features": 29})  # its documents are not in memory
    info = make_remote().build({"config": unseen}).build_info
    for digest in (info.descriptor, info.programs, info.weights):
        assert digest_of_file(tmp_path / "cache" / "blobs" / digest[:2] / digest) == digest


def test_the_seed_changes_the_weights_alone(make_remote: Make) -> None:
    one, other = (make_remote(seed=seed).build({"config": TINY}).build_info for seed in (1, 2))
    different = {key for key, value in one.as_dict().items() if value != other.as_dict()[key]}
    assert different == {"seed", "build_key", "weights"}


def test_a_drawn_seed_is_the_seed_that_repeats_the_build(make: Make) -> None:
    first = make(seed=None).build({"config": TINY})
    assert_same_state(first, make(seed=first.build_info.seed).build({"config": TINY}))


def test_the_record_is_plain_data_and_comes_back(make: Make) -> None:
    info = make().build({"config": TINY}).build_info
    assert BuildInfo.from_dict(json.loads(json.dumps(info.as_dict()))) == info
    assert {type(value) for value in info.as_dict().values()} <= {str, int, type(None)}


def test_the_record_survives_what_trainers_do_with_a_model(make: Make) -> None:
    model = make().build({"config": TINY})
    info = model.build_info
    assert "build_info" not in "".join(model.state_dict())
    assert copy.deepcopy(model).build_info is info
    assert copy.copy(model).build_info is info
    assert model.to(torch.float64).eval().build_info is info
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.load(file, weights_only=False).build_info == info
    assert BuildInfo.of(torch.compile(model, backend="eager")) is info
    assert BuildInfo.of(nn.DataParallel(model)) is info
    twin = make(seed=8).build({"config": TINY})
    twin.load_state_dict(model.state_dict())
    exported = torch.export.export(model, (torch.ones(2, 3, dtype=torch.float64),))
    assert exported.module()(torch.ones(2, 3, dtype=torch.float64)).shape == (2, 2)


def test_a_part_of_a_model_has_no_record(make: Make) -> None:
    model = make().build({"config": TINY})
    with pytest.raises(ModelFactoryError, match=r"this Linear has no build info\. Remedy: pass the model"):
        BuildInfo.of(model.graph_modules["layer0"])


class Own(nn.Module):
    build_info = "the class's own"


def test_an_own_attribute_of_the_model_stays(make_remote: Make) -> None:
    model = Own()
    make_remote().build({"config": TINY}).build_info.attach(model)
    assert model.build_info == "the class's own"


def test_one_line_of_the_log_says_it(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    factory = make()
    with caplog.at_level(logging.INFO, "model_factory"), caplog.at_level(logging.INFO, "model_factory_server"):
        info = factory.build({"policy": TINY})["policy"].build_info
    (line,) = [record.getMessage() for record in caplog.records if "built" in record.getMessage()]
    assert line == f"built {info}"
    assert line.startswith(f"built policy: seed 7, build {info.build_key[:12]}, config {info.config_digest[:12]}")
    assert f"torch {torch.__version__}, server {info.server_version}" in line


def test_another_release_of_torch_is_said_once(
    make_remote: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.4.1+cu121")
    monkeypatch.setattr(assembly, "_warned_of", set())
    factory = make_remote()
    for _ in range(3):
        model = factory.build({"config": TINY})
    server = model.build_info.torch_version.partition("+")[0]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [text.partition(":")[0] for text in warnings] == [
        f"the server built with torch {server}, this process has torch 2.4.1"
    ]
    monkeypatch.setattr(torch, "__version__", f"{server}+other")
    caplog.clear()
    factory.build({"config": TINY})
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_server_without_its_version_is_unknown(make_remote: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from model_factory.v1 import wire  # noqa: PLC0415

    read = wire.from_manifest
    monkeypatch.setattr(wire, "from_manifest", lambda *given: dataclasses.replace(read(*given), server_version=""))
    info = make_remote().build({"config": TINY}).build_info
    assert info.server_version is None
    assert str(info).endswith("server unknown")
    assert BuildInfo.from_dict(info.as_dict()) == info


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"weights": "ab"}, "'ab' is not a digest"),
        ({"build_key": 3}, "expected str, got int"),
        ({"seed": True}, "expected int, got bool"),
        ({"seed": None}, "expected int, got NoneType"),
        ({"backend": "x\x1b[2J"}, "backend of build info is not a text"),
        ({"torch_version": "2" * 2000}, "torch_version of build info is not a text"),
    ],
)
def test_a_damaged_record_is_refused(change: dict[str, Any], text: str, server: ServerProcess) -> None:
    data = PolicyConstructorModelFactory().build({"config": TINY}).build_info.as_dict()
    assert BuildInfo.from_dict(data | {"a field of a later version": 1}).as_dict() == data
    with pytest.raises(ModelFactoryError, match=text.replace("[", r"\[")):
        BuildInfo.from_dict(data | change)
    del data["checkpoint"], data["checkpoint_digest"]  # as in a record of a version without these fields
    assert BuildInfo.from_dict(data).checkpoint is None
    for missing in data:
        with pytest.raises(FormatError, match=rf"build info without {missing}: the record is not whole\. Remedy: "):
            BuildInfo.from_dict({name: value for name, value in data.items() if name != missing})
    with pytest.raises(FormatError, match="build info without component, seed, "):
        BuildInfo.from_dict({})


def test_models_and_blocks_have_a_short_repr_and_a_table(make: Make, make_remote: Make) -> None:
    factory = make()
    assert factory._repr_html_().startswith(f"<table><tr><th>factory</th><th>{type(factory).__name__}</th></tr>")
    assert "<td>seed</td><td>7</td>" in factory._repr_html_()
    model = factory.build({"<policy>": TINY})["<policy>"]
    assert repr(model) == "<GraphModel <policy>: 3 modules, 8 parameters, seed 7>"
    assert str(model).startswith("GraphModel(\n  (graph_modules): ModuleDict(\n    (layer0): Linear(in_features=3")
    assert f"{model}" == str(model)
    assert repr(nn.Sequential(model)).startswith("Sequential(\n  (0): <GraphModel <policy>: 3 modules")
    table = model._repr_html_()
    assert table.startswith("<p>&lt;GraphModel &lt;policy&gt;: 3 modules, 8 parameters, seed 7&gt;</p><table>")
    assert "<td>graph_modules.layer0</td><td>Linear</td><td>8</td>" in table
    assert "<td>total</td><td>3 modules</td><td>8</td>" in table
    lazy = make().build({"config": layers({"_type_": "nn.LazyLinear", "out_features": 2})})
    assert repr(lazy) == "<GraphModel model: 3 modules, 0 parameters, seed 7>"
    many = make().build({"config": layers(*({"_type_": "nn.ReLU"} for _ in range(600)))})
    assert "<td>...</td><td>102 more modules</td>" in many._repr_html_()
    blocks = {block.name: block for block in make_remote().blocks()}
    linear = blocks["nn.Linear"]
    assert repr(linear) == "<Block nn.Linear(in_features, out_features, bias=True, device=None, dtype=None)>"
    assert linear._repr_html_().startswith("<table><tr><th>nn.Linear</th><th>Applies an affine")
    assert "<td>in_features</td><td>int</td><td>required</td>" in linear._repr_html_()
    assert "<td>bias</td><td>bool</td><td>True</td>" in linear._repr_html_()
    assert max(len(repr(block)) for block in blocks.values()) <= 220


def test_notebooks_show_tables(make: Make) -> None:
    factory = make()
    info = factory.build({"<b>": TINY})["<b>"].build_info
    assert "<th>&lt;b&gt;</th>" in info._repr_html_()
    assert f"<td>seed</td><td>{info.seed}</td>" in info._repr_html_()
    described = factory.describe({"config": TINY})
    assert repr(described) == "<Architecture of 3 modules, 8 parameters>"
    table = described._repr_html_()
    assert table.startswith("<table><tr><th>name</th>")
    assert "<td>nn.Linear</td>" in table
