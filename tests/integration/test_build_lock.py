"""Build locks: the same digests again, or an error that names the difference."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from model_factory import LockError, RemoteModelFactory
from model_factory.client.builds.build_lock import BuildLock
from model_factory.factories import PolicyConstructorModelFactory as DropInFactory
from model_factory.v1 import wire
from model_factory_server import PolicyConstructorModelFactory, model_digests
from support.cases import CONFIGS
from support.compare import assert_same_state
from support.configs import layers
from support.server import COMMAND, ServerProcess

MLP = CONFIGS / "small" / "mlp.yaml"
TINY = layers({"_type_": "nn.Linear", "in_features": 3, "out_features": 2})
OTHER = layers({"_type_": "nn.Linear", "in_features": 3, "out_features": 2, "bias": False})

Make = Callable[..., RemoteModelFactory]


@pytest.fixture
def lock(make_remote: Make, tmp_path: Path) -> Path:
    models = make_remote(seed=7).build({"actor": TINY, "critic": MLP})
    pinned = BuildLock(tmp_path / "models.lock", {name: model.build_info for name, model in models.items()})
    pinned.write()
    return pinned.path


def test_a_pinned_build_repeats(lock: Path, make_remote: Make) -> None:
    expected = make_remote(seed=7).build({"actor": TINY})["actor"]
    assert_same_state(make_remote(seed=7, lock=lock).build({"actor": TINY})["actor"], expected)
    before = torch.get_rng_state()
    assert_same_state(make_remote(seed=None, lock=str(lock)).build({"actor": TINY})["actor"], expected)
    assert torch.get_rng_state().equal(before), "the pinned seed is used, and none is drawn"


@pytest.mark.parametrize(
    ("arguments", "asked", "text"),
    [
        ({}, {"actor": OTHER}, "pins another build of 'actor': config [0-9a-f]{12}... is [0-9a-f]{12}.... Remedy: "),
        ({"seed": 8}, {"actor": TINY}, "pins another build of 'actor': seed 7 is 8. Remedy: "),
        ({"dtype": torch.float16}, {"actor": TINY}, "pins another build of 'actor': dtype '' is 'float16'. Remedy: "),
        ({}, {"encoder": TINY}, "pins no model 'encoder', only 'actor', 'critic'. Remedy: "),
        ({}, {"config": TINY}, "pins no model 'model', only 'actor', 'critic'. Remedy: "),
    ],
    ids=["config", "seed", "dtype", "name", "single"],
)
def test_another_request_is_refused_before_the_server_builds(
    arguments: dict[str, Any], asked: dict[str, Any], text: str, lock: Path, make_remote: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(RemoteModelFactory, "_build_on_server", None)
    with pytest.raises(LockError, match=re.escape(str(lock)) + " " + text.replace(".", r"\.")) as caught:
        make_remote(lock=lock, **arguments).build(asked)
    assert f"-o {lock}" in str(caught.value)


def changed(lock: Path, **changes: object) -> None:
    document = json.loads(lock.read_text())
    document["models"]["actor"] |= changes
    lock.write_text(json.dumps(document))


@pytest.mark.parametrize("result", ["weights", "programs", "descriptor"])
def test_other_results_are_refused_with_their_causes(result: str, lock: Path, make_remote: Make) -> None:
    changed(lock, **{result: "ab" * 32}, torch_version="2.4.0", server_version="0.0.9", code_digest="cd" * 32)
    (blob,) = [make_remote().build({"actor": TINY})["actor"].build_info.as_dict()[result]]
    with pytest.raises(LockError) as caught:
        make_remote(lock=lock, cache_dir=lock.parent / "cold").build({"actor": TINY})
    text = str(caught.value)
    assert f"{result} abababababab... is {blob[:12]}..." in text
    assert f"torch of the server '2.4.0' is '{torch.__version__}'" in text
    assert "version of the server '0.0.9' is '0.1.0'" in text
    assert "code of the backend cdcdcdcdcdcd... is " in text
    assert not list((lock.parent / "cold" / "blobs").rglob("??*")), "nothing is fetched"


def test_the_pinned_digests_of_another_server_are_the_pinned_build(
    lock: Path, make_remote: Make, caplog: pytest.LogCaptureFixture
) -> None:
    changed(lock, server_version="0.0.9", build_key="ab" * 32)
    with caplog.at_level(logging.INFO, "model_factory"):
        make_remote(lock=lock).build({"actor": TINY})
    assert "actor: the pinned digests, although: version of the server '0.0.9' is '0.1.0'; build key ab" in caplog.text


def test_a_build_that_is_repeated_is_checked_again(
    lock: Path, make_remote: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server may answer after the pinned weights are evicted."""
    read = wire.from_manifest

    def from_manifest(*given: Any) -> Any:
        manifest = read(*given)
        (built,) = manifest.components
        return dataclasses.replace(manifest, components=(dataclasses.replace(built, weights=built.descriptor),))

    monkeypatch.setattr(wire, "from_manifest", from_manifest)
    with pytest.raises(LockError, match="weights "):
        make_remote(lock=lock).build({"actor": TINY})


def test_models_of_different_seeds_need_requests_of_their_own(lock: Path, make_remote: Make) -> None:
    changed(lock, seed=9)
    with pytest.raises(LockError, match="pins 'actor' with seed 9, 'critic' with seed 7"):
        make_remote(seed=None, lock=lock).build({"actor": TINY, "critic": MLP})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "cannot be read: No such file or directory"),
        ("[]", "is not a build lock: expected dict, got list"),
        ('{"format": 1, "bundles": {}}', "is not a build lock: expected exactly the keys 'format' and 'models'"),
        ('{"format": 2, "models": {}}', "is not a build lock: expected exactly the keys"),
        ('{"format": 1, "models": {"a": {}}}', "is not a build lock: build info without component"),
        ('{"format": 1, "models": {"a": {}, "a": {}}}', "is not a build lock: .*Duplicate mapping key 'a'"),
    ],
)
def test_what_is_no_build_lock(text: str | None, fault: str, make_remote: Make, tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    if text is not None:
        path.write_text(text)
    with pytest.raises(
        LockError, match=rf"{fault}.*Remedy: write the file with `model-factory lock CONFIG --seed SEED"
    ):
        make_remote(lock=path)


def test_an_entry_names_its_model(lock: Path) -> None:
    changed(lock, component="critic")
    with pytest.raises(LockError, match="'actor' pins a model called 'critic'"):
        BuildLock.read(lock)


def test_a_model_of_this_process_is_pinned_with_all_digests(make_remote: Make, tmp_path: Path) -> None:
    model = PolicyConstructorModelFactory(seed=1).build({"config": TINY})
    with pytest.raises(LockError, match=r"'model' lacks digests.*Remedy: .*in this process with all_digests=True"):
        BuildLock(tmp_path / "models.lock", {"model": model.build_info})
    model = PolicyConstructorModelFactory(seed=1, all_digests=True).build({"config": TINY})
    lock = BuildLock(tmp_path / "models.lock", {"model": model.build_info})
    lock.write()
    assert_same_state(make_remote(seed=None, lock=lock.path).build({"config": TINY}), model)


@pytest.fixture(params=[PolicyConstructorModelFactory, DropInFactory])
def local(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """A factory that builds in this process."""
    return request.param


def test_a_pinned_build_repeats_in_this_process(
    local: Callable[..., Any], lock: Path, make_remote: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is recorded: code, torch and results are those of the lock."""
    monkeypatch.setattr(model_digests, "export_model", None)
    expected = make_remote(seed=7).build({"actor": TINY, "critic": MLP})
    before = torch.get_rng_state()
    models = local(lock=lock).build({"actor": TINY, "critic": MLP})
    assert torch.get_rng_state().equal(before), "the pinned seed is used, and none is drawn"
    for name, model in models.items():
        assert_same_state(model, expected[name])
        assert model.build_info == expected[name].build_info


@pytest.mark.parametrize(
    ("arguments", "asked", "text"),
    [
        ({}, {"actor": OTHER}, "pins another build of 'actor': config "),
        ({"seed": 8}, {"actor": TINY}, "pins another build of 'actor': seed 7 is 8"),
        ({"dtype": torch.float16}, {"actor": TINY}, "pins another build of 'actor': dtype '' is 'float16'"),
        ({}, {"encoder": TINY}, "pins no model 'encoder'"),
    ],
    ids=["config", "seed", "dtype", "name"],
)
def test_another_request_is_refused_in_this_process(
    arguments: dict[str, Any], asked: dict[str, Any], text: str, local: Callable[..., Any], lock: Path
) -> None:
    with pytest.raises(LockError, match=text):
        local(lock=lock, **arguments).build(asked)


@pytest.mark.parametrize("result", ["weights", "programs", "descriptor"])
def test_other_results_are_refused_in_this_process(result: str, lock: Path) -> None:
    changed(lock, **{result: "ab" * 32}, torch_version="2.4.0", code_digest="cd" * 32)
    with pytest.raises(LockError, match=rf"(?s){result} abababababab\.\.\. is .*code of the backend cdcdcdcdcdcd"):
        PolicyConstructorModelFactory(lock=lock).build({"actor": TINY})


def test_other_code_with_the_pinned_digests_is_the_pinned_build_in_this_process(
    lock: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed(lock, code_digest="cd" * 32)
    with caplog.at_level(logging.INFO, "model_factory"):
        model = PolicyConstructorModelFactory(lock=lock).build({"actor": TINY})["actor"]
    assert "actor: the pinned digests, although: code of the backend cdcdcdcdcdcd..." in caplog.text
    assert model.build_info.programs == BuildLock.read(lock).models["actor"].programs


def test_a_checkpoint_of_the_trainer_does_not_change_the_pinned_build(lock: Path, tmp_path: Path) -> None:
    other = PolicyConstructorModelFactory(seed=9).build({"actor": TINY})["actor"]
    save_file(other.state_dict(), tmp_path / "actor.safetensors")
    given = {"actor": tmp_path / "actor.safetensors"}
    model = PolicyConstructorModelFactory(lock=lock).build({"actor": TINY}, weights=given)["actor"]
    assert_same_state(model, other)
    assert model.build_info.weights is None


def test_the_command_writes_and_checks(server: ServerProcess, make_remote: Make, tmp_path: Path) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [COMMAND, "lock", f"model={MLP}", "--server", server.address, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, cwd=tmp_path)

    done = run("--seed", 5)
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert first.startswith("model: seed 5, build ")
    assert last == "models.lock: 1 model pinned"
    model = make_remote(seed=None, lock=tmp_path / "models.lock").build({"config_path": MLP})
    assert first == str(model.build_info)
    assert run("--check").stdout == "models.lock is up to date\n"
    document = json.loads((tmp_path / "models.lock").read_text())
    document["models"]["model"]["weights"] = "ab" * 32
    (tmp_path / "models.lock").write_text(json.dumps(document))
    done = run("--check")
    assert done.returncode == 1
    assert "error: models.lock pins another build of 'model': weights abababababab... is " in done.stderr
