"""``radiov3`` on a small local hub repository: its contract, and what it says when it is not set up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from model_factory.errors import BuildError, ConfigError
from model_factory_server.backends.hub import load_radio
from model_factory_server.constructor import Permissions, default_registry, instantiate
from model_factory_server.constructor.blocks.radio import RadioV3, radiov3_factory
from model_factory_server.settings.server_settings import HubSettings
from support.hub import write_hub


@pytest.fixture
def hub(tmp_path: Path) -> HubSettings:
    return HubSettings(repository="o/n", version="tiny", directory=write_hub(tmp_path / "hub"))


def make(settings: HubSettings, /, **arguments: Any) -> RadioV3:
    registry = default_registry(lambda: load_radio(settings))
    return instantiate({"_type_": "radiov3"} | arguments, registry, Permissions())


def contract(model: Any, image: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The forward in other words: with a branch on the values."""
    image = image[None] if image.dim() == 3 else image
    if image.max().item() > 1.5:
        image = image / 255.0
    size = model.get_nearest_supported_resolution(height, width)
    image = functional.interpolate(image, size=tuple(size), mode="bilinear", align_corners=False)
    summary, features = model(image, feature_fmt="NCHW")
    return features, summary


@pytest.mark.parametrize("scale", [1.0, 255.0], ids=["0..1", "0..255"])
@pytest.mark.parametrize("shape", [(3, 9, 14), (2, 3, 9, 14)], ids=["image", "batch"])
@pytest.mark.parametrize("resize_method", ["auto", "fixed"])
def test_forward_and_gradients_are_the_contracts(
    hub: HubSettings, scale: float, shape: tuple[int, ...], resize_method: str
) -> None:
    block = make(hub, resize_method=resize_method)
    height, width = (9, 14) if resize_method == "auto" else (336, 504)
    runs = []
    for run in (block, lambda image: contract(block.model, image, height, width)):
        image = (torch.rand(shape, generator=torch.Generator().manual_seed(1)) * scale).requires_grad_()
        features, summary = run(image)
        assert features.shape[1:] == (8, *[max(1, round(size / 4)) for size in (height, width)])
        assert summary.shape == (image.numel() // (3 * 9 * 14), 5)
        block.zero_grad()
        (features.square().sum() + summary.sum()).backward()
        runs.append([features, summary, image.grad, *[parameter.grad for parameter in block.parameters()]])
    for ours, expected in zip(*runs, strict=True):
        assert ours.equal(expected)


def test_values_decide_at_one_and_a_half(hub: HubSettings) -> None:
    block = make(hub)
    image = torch.ones(3, 8, 8)
    assert not block(image * 1.5)[0].allclose(block(image * 1.5 / 255)[0])
    assert block(image * 1.6)[0].equal(block(image * 1.6 / 255)[0])


@pytest.mark.parametrize("shape", [(8, 8), (1, 1, 3, 8, 8)])
def test_other_ranks_are_refused(hub: HubSettings, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"image has rank .*; allowed ranks: 3 \(channels, h, w\) or 4"):
        make(hub)(torch.zeros(shape))


def test_model_is_loaded_as_the_operator_says(hub: HubSettings) -> None:
    block = make(hub, channels=[8, 5])
    assert type(block.model).__name__ == "TinyRadio"
    assert block.model.version == "tiny"
    assert block.channels == [8, 5]
    assert next(iter(block.state_dict())).startswith("model.")
    before = torch.hub.get_dir()
    load_radio(hub)
    assert torch.hub.get_dir() == before


def test_weights_come_from_the_hub_folder(tmp_path: Path) -> None:
    folder = write_hub(tmp_path / "hub", wants_weights=True)
    hub = HubSettings(version="tiny", directory=folder)
    with pytest.raises(BuildError, match=r"put the file into --hub-dir as checkpoints/tiny.pth") as caught:
        load_radio(hub)
    assert str(tmp_path) not in str(caught.value)
    (folder / "checkpoints").mkdir(exist_ok=True)
    torch.save({"stem.weight": torch.full((8, 3, 4, 4), 2.0)}, folder / "checkpoints" / "tiny.pth")
    assert load_radio(hub).stem.weight.eq(2).all()


def test_not_set_up_names_the_flags() -> None:
    with pytest.raises(BuildError, match=r"NVlabs/RADIO.*--hub-dir.*--allow-hub-download"):
        make(HubSettings())


def test_what_cannot_be_loaded_is_placed() -> None:
    spec = {"_type_": "radiov3"}
    with pytest.raises(BuildError, match=r"^model\.m: radiov3 takes its model from"):
        instantiate(spec, default_registry(), Permissions(), path=("model", "m"))


def test_channels_are_looked_at_first() -> None:
    def load() -> Any:
        raise AssertionError("it was loaded")

    with pytest.raises(ValueError, match="channels must be a list of positive integers, got 3"):
        radiov3_factory(load)(channels=3)  # type: ignore[arg-type]


def test_failing_repository_names_the_flags(hub: HubSettings) -> None:
    wrong = HubSettings(repository=hub.repository, version="huge", directory=hub.directory)
    with pytest.raises(BuildError, match=r"loading version 'huge' of o/n \(--radio-version, --radio-repo\) failed"):
        load_radio(wrong)


@pytest.mark.parametrize("argument", ["hub", "repository", "directory", "model", "load_radio"])
def test_configs_cannot_say_where_it_comes_from(hub: HubSettings, argument: str) -> None:
    with pytest.raises(ConfigError, match=f"Unknown kwargs for 'radiov3': '{argument}'"):
        make(hub, **{argument: "evil/repository"})


def test_the_network_is_asked_only_where_allowed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(torch.hub, "load", lambda *args, **kwargs: calls.append((args, kwargs)) or nn.Identity())
    load_radio(HubSettings(directory=tmp_path, allow_download=True))
    assert calls == [(("NVlabs/RADIO", "radio_model"), {"trust_repo": True, "version": "c-radio_v3-l"})]
    with pytest.raises(BuildError, match="downloads nothing"):
        load_radio(HubSettings(directory=tmp_path))
    assert len(calls) == 1
