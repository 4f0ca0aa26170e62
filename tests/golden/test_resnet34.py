"""Blocks on a ResNet-34: weights of the operator, image steps, draws, and what programs refuse."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from model_factory.errors import BuildError, ConfigError, NotPortableError
from model_factory_server.backends.hub import load_resnet34
from model_factory_server.constructor import Permissions, default_registry, instantiate
from model_factory_server.constructor.blocks import PRETRAINED
from model_factory_server.constructor.blocks.parts.resnet_layers import ResNet34
from model_factory_server.export.exporter import export_model
from model_factory_server.settings.server_settings import HubSettings
from support.large_goldens import load_formula
from support.resnet34 import NAME, weights, write_weights

RESFIT: dict[str, Any] = {
    "img_resize": False,
    "depth_data_keys": [],
    "input_img_channel": 512,
    "output_img_channel": 3,
    "input_dim": 52,
    "num_layers": 1,
    "num_hidden_dim": 8,
}


def make(name: str, load: Any = weights, /, **arguments: Any) -> Any:
    given = (RESFIT if name.startswith("resfit") else {"resize": False}) | arguments
    block = instantiate({"_type_": name} | given, default_registry(load_resnet34=load), Permissions())
    load_formula(block)
    return block.eval()


def image(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


# Weights


def test_weights_come_from_the_hub_folder(tmp_path: Path) -> None:
    write_weights(tmp_path / "hub", 0.5)
    before = torch.hub.get_dir()
    net = ResNet34(partial(load_resnet34, HubSettings(directory=tmp_path / "hub")))
    assert all(item.eq(0.5).all() for item in net.parameters())
    assert torch.hub.get_dir() == before


def test_a_missing_file_names_the_place_and_the_flag(tmp_path: Path) -> None:
    hub = HubSettings(directory=tmp_path)
    with pytest.raises(BuildError, match=rf"checkpoints/{NAME}, or start the server with --allow-hub-download") as got:
        instantiate({"_type_": "resnet34"}, default_registry(load_resnet34=partial(load_resnet34, hub)), Permissions())
    assert str(tmp_path) not in str(got.value)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_weights(tmp_path, 0.5).write_bytes(b"no weights")
    with pytest.raises(BuildError, match=rf"loading checkpoints/{NAME} of the hub folder \(--hub-dir\) failed"):
        load_resnet34(HubSettings(directory=tmp_path))


@pytest.mark.parametrize("name", PRETRAINED)
def test_configs_cannot_say_where_weights_come_from(name: str) -> None:
    with pytest.raises(ConfigError, match=f"Unknown kwargs for '{name}': 'load_weights'"):
        make(name, load_weights="evil")
    with pytest.raises(BuildError, match="this registry has none"):
        instantiate({"_type_": "resnet34"}, default_registry(), Permissions())


def test_nothing_is_loaded_for_a_plan() -> None:
    def load() -> Any:
        raise AssertionError("it was loaded")

    with torch.device("meta"):
        assert ResNet34(load).fc.weight.is_meta


def test_initial_values_are_drawn_in_the_order_of_torchvision() -> None:
    torch.manual_seed(0)
    kept: list[dict[str, torch.Tensor]] = []

    class Kept(ResNet34):
        def load_state_dict(self, *_args: Any, **_kwargs: Any) -> Any:
            kept.append({key: value.clone() for key, value in self.state_dict().items()})

    net = Kept(dict)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    convolutions = {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)}
    # A shortcut is created before the other layers of its block, and registered last.
    created = sorted(convolutions, key=lambda name: (name.split(".")[:2], "downsample" not in name))
    assert len(created) == 36
    for name in created:
        convolutions[name].reset_parameters()
    net.fc.reset_parameters()
    for name, layer in convolutions.items():
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        assert layer.weight.equal(kept[0][f"{name}.weight"]), name
    assert torch.get_rng_state().equal(after)


# Forwards


def test_state_has_both_names_of_the_same_layers() -> None:
    block = make("resnet34")
    assert len(block.state_dict()) == 434
    assert len(list(block.parameters())) == 110
    assert block.model[0] is block.encoder.conv1


@pytest.mark.parametrize("shape", [(3, 40, 50), (2, 3, 40, 50)], ids=["image", "batch"])
@pytest.mark.parametrize("resize", [True, False])
@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_images_are_scaled_resized_and_normalized(shape: tuple[int, ...], resize: bool, scale: float) -> None:
    block = make("resnet34", resize=resize)
    given = image(*shape) * scale
    x = given / 255 if scale > 1 else given
    x = x if x.ndim == 4 else x[None]
    x = functional.interpolate(x, size=(240, 320), mode="bilinear", align_corners=False) if resize else x
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    out = block(given)
    assert out.equal(block.model((x - mean) / std))
    assert out.shape == (len(x), 512, *((8, 10) if resize else (2, 2)))


def test_bytes_are_images_where_their_values_are() -> None:
    block = make("resnet34")
    given = (image(3, 33, 40) * 255).byte()
    assert block(given).equal(block(given.float()))
    with pytest.raises(TypeError, match=r"image is torch\.uint8 with values up to 1"):
        block(given // 255)


@pytest.mark.parametrize(
    ("shape", "message"), [((40, 50), "image has rank 2"), ((1, 4, 33, 33), "images must have 3 channels, got 4")]
)
def test_other_shapes_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("resnet34")(image(*shape))


def test_image_encoder_writes_the_prepared_images_to_the_dict() -> None:
    block = make("dsrl_img_encoder")
    images = {"right": image(3, 33, 40) * 255, "head": image(2, 3, 40, 33)}
    given = dict(images)
    out = block(images)
    assert list(out) == ["right", "head"]
    assert images["right"].shape == (1, 3, 33, 40)
    for camera in out:
        assert out[camera].equal(block.encoders[camera](images[camera]))
        assert not images[camera].equal(given[camera])
    with pytest.raises(KeyError, match="wrist"):
        block({"wrist": image(3, 33, 40)})


def test_actor_leaves_the_dict_as_it_is() -> None:
    block = make("resfit_residual_actor", action_dim=6)
    (call,) = block.example_inputs()
    before = dict(call["state"])
    out = block(**call)
    assert out.shape == (2, 6)
    assert all(call["state"][key] is before[key] for key in before)
    cameras = block.resnet_group({key: before[key] for key in ("head", "left", "right")})
    features = block.preprocessor({**cameras, "proprio": before["proprio"], "action": call["action"]})
    assert out.equal(block.last_layer(block.model(features)))


@pytest.mark.parametrize("members", [1, 5])
def test_q_function_draws_members_from_python(members: int) -> None:
    block = make("resfit_q_function", num_ensemble=members)
    data = block.example_inputs()[0]["data"]
    features = block._features(data, data["action"])
    values = [
        output(hidden(features))
        for hidden, output in zip(block.q_ensembles_hidden_layers, block.q_ensembles_output_layers, strict=True)
    ]
    random.seed(3)
    drawn = [values[index] for index in random.sample(range(members), k=max(members // 2, 1))]
    for arguments in ({}, {"critic": True}):
        random.seed(3)
        assert block(data, **arguments).equal(torch.stack(drawn).amin(dim=0))
    random.seed(3)
    torch.testing.assert_close(block(data, subsample_q=False, critic=True), sum(drawn) / len(drawn))
    torch.testing.assert_close(block(data, subsample_q=False), sum(values) / members)


def test_other_initialisations_are_torchs() -> None:
    assert make("resfit_q_function", init_method="none").num_ensemble == 3


def test_examples_need_sizes_that_fit() -> None:
    assert make("resfit_residual_actor", input_dim=40).example_inputs() == []
    assert make("resfit_residual_actor", depth_data_keys=["head_depth"]).example_inputs() == []
    block = make("resfit_residual_actor", input_dim=47)
    (call,) = block.example_inputs()
    block(**call)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dsrl_img_encoder", "the forward writes to its caller's argument images"),
        ("resfit_q_function", "the forward draws random numbers from Python's random"),
    ],
)
def test_programs_refuse_by_name(name: str, message: str) -> None:
    with pytest.raises(NotPortableError, match=message):
        export_model(make(name))
