"""Configs that ask for code: only what the operator allows, seen on the object and not on its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model_factory import ConfigError, RemoteModelFactory, ServerError
from model_factory.config import Settings
from model_factory_server.backends.identity import identify
from model_factory_server.constructor import Permissions
from model_factory_server.settings.server_settings import BackendSettings
from support.configs import layers
from support.guarded import PLUGINS

OPEN = {"allow_imports": True, "allow_target": True, "allowed_import_prefixes": ["allowed_blocks", "os", "subprocess"]}


def asking(target: str, settings: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
    return {"config": layers({"_target_": target, **arguments}) | {"settings": OPEN if settings is None else settings}}


def test_what_is_allowed_is_built(attacked: RemoteModelFactory) -> None:
    model = attacked.build(asking("allowed_blocks.Scale", in_features=2, out_features=3))
    assert [tuple(item.shape) for item in model.parameters()] == [(3, 2), (3,)]


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "builtins.eval",
        "importlib.import_module",
        "torch.load",
        "torch.hub.load",
        "allowed_blocks.os.system",
        "allowed_blocks.system",
        "allowed_blocks.subprocess.Popen",
        "allowed_blocks.Popen",
        "allowed_blocks._Hidden",
        "allowed_blocks.Scale.__init__",
        "allowed_blocks.Scale.__init__.__globals__",
        "allowed_blocks_other.Scale",
        "allowed_blocks",
        "hostile_blocks.Spins",
        "model_factory_server.settings.server_settings.Settings",
    ],
)
def test_what_is_not_allowed_is_refused(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the config's own settings say: they can only take away."""
    monkeypatch.syspath_prepend(str(PLUGINS))
    operator = Permissions(allow_imports=True, allow_target=True, allowed_import_prefixes=("allowed_blocks",))
    policy = operator.narrowed(Settings(**OPEN | {"allowed_import_prefixes": tuple(OPEN["allowed_import_prefixes"])}))
    with pytest.raises(ConfigError, match="_target_"):
        policy.import_target(target, ())


@pytest.mark.parametrize("target", ["os.system", "allowed_blocks.os.system"])
def test_what_is_not_allowed_does_not_run(target: str, attacked: RemoteModelFactory, tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    inner = {"_target_": target, "_args_": [f"touch {harm}"]}
    with pytest.raises(ConfigError, match=r"_args_\[0\].*_target_"):
        attacked.build({"config": layers({"_type_": "nn.Sequential", "_args_": [inner]}) | {"settings": OPEN}})
    assert not harm.exists()


def test_a_config_can_narrow(attacked: RemoteModelFactory) -> None:
    settings = OPEN | {"allowed_import_prefixes": ["allowed_blocks.inner"]}
    with pytest.raises(ConfigError, match="_target_"):
        attacked.build(asking("allowed_blocks.Scale", settings, in_features=2, out_features=3))


@pytest.mark.parametrize("module", ["os", "torch.nn", "subprocess", "model_factory_server"])
def test_an_operator_cannot_allow_everything_by_accident(module: str) -> None:
    with pytest.raises(ServerError, match=f"--allow-import {module}: a config could then call"):
        identify(BackendSettings(imports=(module,)), "cpu")
