"""Actor and critic on camera images, which learn corrections of the actions of a policy (residual fine-tuning)."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from model_factory_server.constructor.blocks.dsrl import (
    CAMERAS,
    DEPTH_CAMERAS,
    XAVIER,
    DSRLQFunctionProcessor,
    StateNetwork,
    hidden_stack,
    initialise_linear,
)
from model_factory_server.constructor.blocks.parts.checks import check_count, check_flag
from model_factory_server.constructor.blocks.parts.example_tensors import BATCH, example
from model_factory_server.constructor.blocks.parts.resnet_layers import LoadWeights
from model_factory_server.constructor.blocks.resnet import EXAMPLE_MAP, RESIZED_MAP, DSRLImgEncoder, camera_images

PROPRIO = "proprio"
ACTION = "action"


class _ImageFeatures(StateNetwork):
    """Flat features of all cameras, proprioception and an action."""

    def __init__(  # noqa: PLR0913  the config's arguments
        self,
        load_weights: LoadWeights,
        *,
        img_resize: bool,
        action_key: str,
        proprio_key: str,
        depth_data_keys: Sequence[str],
        img_data_keys: Sequence[str],
        input_img_channel: int,
        input_depth_channel: int,
        output_img_channel: int,
        output_depth_channel: int,
    ) -> None:
        super().__init__()
        self.resnet_group = DSRLImgEncoder(load_weights, resize=check_flag("img_resize", img_resize))
        self.preprocessor = DSRLQFunctionProcessor(
            action_key=action_key,
            proprio_key=proprio_key,
            depth_data_keys=depth_data_keys,
            img_data_keys=img_data_keys,
            input_img_channel=input_img_channel,
            input_depth_channel=input_depth_channel,
            output_img_channel=output_img_channel,
            output_depth_channel=output_depth_channel,
        )

    def _features(self, data: Mapping[str, Tensor], action: Tensor) -> Tensor:
        """Return ``(batch, features)`` of the images and the proprioception of ``data``, and of an action."""
        features = self.resnet_group({camera: data[camera] for camera in CAMERAS})
        return self.preprocessor({**features, PROPRIO: data[PROPRIO], ACTION: action})  # type: ignore[no-any-return]

    def _example(self, input_dim: int) -> list[tuple[dict[str, Tensor], Tensor]]:
        """Return images with proprioception, and an action; nothing where no sizes give ``input_dim`` features."""
        block = self.preprocessor
        keys = (block.proprio_key, block.action_key, *block.depth_data_keys)
        if keys != (PROPRIO, ACTION) or not set(CAMERAS).issuperset(block.img_data_keys):
            return []
        area = math.prod(RESIZED_MAP if self.resnet_group.resize else EXAMPLE_MAP)
        rest = input_dim - area * block.output_img_channel * len(block.img_latent_vec_proj)
        width = 4 - rest % 2  # three steps of proprioception leave an even number for two steps of actions
        if rest < 3 * width + 2:
            return []
        data = {**camera_images(), PROPRIO: example(BATCH, 3, width)}
        return [(data, example(BATCH, 2, (rest - 3 * width) // 2))]


class ResfitResidualActor(_ImageFeatures):
    """Maps camera images, proprioception and an action to a correction of the action, in [-1, 1].

    Every image goes through a ResNet-34 of its camera. ``preprocessor`` finds only the keys ``head``, ``left``,
    ``right``, ``proprio`` and ``action``, so ``depth_data_keys`` has to be empty and ``input_img_channel`` 512.
    """

    def __init__(  # noqa: PLR0913, PLR0917  the config's arguments
        self,
        load_weights: LoadWeights,
        /,
        img_resize: bool,
        action_key: str = ACTION,
        proprio_key: str = PROPRIO,
        depth_data_keys: Sequence[str] = DEPTH_CAMERAS,
        img_data_keys: Sequence[str] = CAMERAS,
        input_img_channel: int = 64,
        input_depth_channel: int = 64,
        output_img_channel: int = 24,
        output_depth_channel: int = 24,
        input_dim: int = 64,
        action_dim: int = 32,
        num_layers: int = 3,
        num_hidden_dim: int = 2048,
        dropout: float = 0.0,
        init_method: str = XAVIER,
    ) -> None:
        super().__init__(
            load_weights,
            img_resize=img_resize,
            action_key=action_key,
            proprio_key=proprio_key,
            depth_data_keys=depth_data_keys,
            img_data_keys=img_data_keys,
            input_img_channel=input_img_channel,
            input_depth_channel=input_depth_channel,
            output_img_channel=output_img_channel,
            output_depth_channel=output_depth_channel,
        )
        self.input_dim = input_dim
        self.model = hidden_stack(input_dim, num_layers, num_hidden_dim, dropout)
        self.last_layer = nn.Sequential(nn.Linear(num_hidden_dim, check_count("action_dim", action_dim)), nn.Tanh())
        _initialise(init_method, self.model, self.last_layer)

    def forward(self, state: Mapping[str, Tensor], action: Tensor) -> Tensor:
        """Map a state and an action to a correction of one step, ``(batch, action_dim)``.

        Args:
            state: Images ``head``, ``left`` and ``right`` as for ``resnet34``, and ``proprio (batch, s, f)``; the dict
                stays as it is.
            action: ``(batch, c, a)``.

        Raises:
            KeyError: a key is missing.
            ValueError: an image or another entry has a wrong rank.
        """
        return self.last_layer(self.model(self._features(state, action)))  # type: ignore[no-any-return]

    def example_inputs(self) -> list[dict[str, object]]:
        """Return a call, where some sizes give ``input_dim`` features."""
        return [{"state": state, "action": action} for state, action in self._example(self.input_dim)]


class ResfitQFunction(_ImageFeatures):
    """An ensemble of values of camera images, proprioception and an action.

    Members are drawn from Python's global random generator, as in the reference, and no program can record this draw:
    a server refuses the block, unless the source code of the block is sent.
    """

    def __init__(  # noqa: PLR0913, PLR0917  the config's arguments
        self,
        load_weights: LoadWeights,
        /,
        img_resize: bool,
        action_key: str = ACTION,
        proprio_key: str = PROPRIO,
        depth_data_keys: Sequence[str] = DEPTH_CAMERAS,
        img_data_keys: Sequence[str] = CAMERAS,
        input_img_channel: int = 64,
        input_depth_channel: int = 64,
        output_img_channel: int = 24,
        output_depth_channel: int = 24,
        input_dim: int = 64,
        num_ensemble: int = 3,
        num_layers: int = 3,
        num_hidden_dim: int = 2048,
        dropout: float = 0.0,
        init_method: str = XAVIER,
    ) -> None:
        super().__init__(
            load_weights,
            img_resize=img_resize,
            action_key=action_key,
            proprio_key=proprio_key,
            depth_data_keys=depth_data_keys,
            img_data_keys=img_data_keys,
            input_img_channel=input_img_channel,
            input_depth_channel=input_depth_channel,
            output_img_channel=output_img_channel,
            output_depth_channel=output_depth_channel,
        )
        self.input_dim = input_dim
        self.num_ensemble = check_count("num_ensemble", num_ensemble)
        self.q_ensembles_hidden_layers = nn.ModuleList(
            hidden_stack(input_dim, num_layers, num_hidden_dim, dropout) for _ in range(num_ensemble)
        )
        self.q_ensembles_output_layers = nn.ModuleList(nn.Linear(num_hidden_dim, 1) for _ in range(num_ensemble))
        _initialise(init_method, self.q_ensembles_hidden_layers, self.q_ensembles_output_layers)

    def forward(self, data: Mapping[str, Tensor], subsample_q: bool = True, critic: bool = False) -> Tensor:
        """Map a state and an action to values ``(batch, 1)``.

        Args:
            data: Images ``head``, ``left`` and ``right`` as for ``resnet34``, ``proprio (batch, s, f)`` and ``action
                (batch, c, a)``; the dict stays as it is.
            subsample_q: Return the minimum over half of the members, at least one, drawn anew by each call.
            critic: Without ``subsample_q``, return the mean over such a draw; otherwise the mean over all members.

        Raises:
            KeyError: a key is missing.
            ValueError: an image or another entry has a wrong rank.
        """
        features = self._features(data, data[ACTION])
        members: Sequence[int] = range(self.num_ensemble)
        if subsample_q or critic:
            members = random.sample(members, k=max(self.num_ensemble // 2, 1))
        values = torch.stack(
            [
                self.q_ensembles_output_layers[member](self.q_ensembles_hidden_layers[member](features))
                for member in members
            ]
        )
        return values.amin(dim=0) if subsample_q else values.mean(dim=0)

    def example_inputs(self) -> list[dict[str, object]]:
        """Return a call of each kind, where some sizes give ``input_dim`` features."""
        kinds: tuple[dict[str, object], ...] = ({}, {"subsample_q": False, "critic": True}, {"subsample_q": False})
        examples = [{**data, ACTION: action} for data, action in self._example(self.input_dim)]
        return [{"data": data, **kind} for data in examples for kind in kinds]


def _initialise(init_method: str, *modules: nn.Module) -> None:
    """Initialise the linear layers; any other method than ``xavier`` leaves torch's initialisation."""
    if init_method == XAVIER:
        for module in modules:
            initialise_linear(module)
