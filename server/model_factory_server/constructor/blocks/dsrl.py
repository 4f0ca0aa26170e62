"""Actor and critic of reinforcement learning in the noise space of a policy (DSRL), and how features become flat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from model_factory_server.constructor.blocks.parts.checks import check_count, check_probability, check_rank
from model_factory_server.constructor.blocks.parts.example_tensors import BATCH, distinct_sizes, example

FLAT = {2: "(batch, features)"}
FEATURE_MAP = {4: "(batch, channels, h, w)"}
STEPS = {3: "(batch, steps, features)"}
XAVIER = "xavier"
INIT_METHODS = (XAVIER,)

DEPTH_CAMERAS = ("head_depth",)
CAMERAS = ("head", "left", "right")


class StateNetwork(nn.Module):
    """A network that trainers store and restore with methods of its own."""

    def serialize(self) -> dict[str, Tensor]:
        """Return the state dict."""
        return self.state_dict()

    def deserialize(self, state: Mapping[str, Tensor]) -> None:
        """Load a state dict with exactly the keys of this network."""
        self.load_state_dict(state, strict=True)


class DSRLQFunction(StateNetwork):
    """The mean of an ensemble of value networks.

    Example:
        >>> import torch
        >>> DSRLQFunction(input_dim=6, num_ensemble=2, num_layers=1, num_hidden_dim=8)(torch.zeros(4, 6)).shape
        torch.Size([4, 1])
    """

    def __init__(
        self,
        input_dim: int = 64,
        num_ensemble: int = 3,
        num_layers: int = 3,
        num_hidden_dim: int = 2048,
        dropout: float = 0.0,
        init_method: str = XAVIER,
    ) -> None:
        super().__init__()
        self.input_dim = input_dim
        check_count("num_ensemble", num_ensemble)
        self.q_ensembles_hidden_layers = nn.ModuleList(
            hidden_stack(input_dim, num_layers, num_hidden_dim, dropout) for _ in range(num_ensemble)
        )
        self.q_ensembles_output_layers = nn.ModuleList(nn.Linear(num_hidden_dim, 1) for _ in range(num_ensemble))
        check_init_method(init_method)
        initialise_linear(self)

    def forward(self, flattened_tensor: Tensor) -> Tensor:
        """Map features ``(batch, input_dim)`` to values ``(batch, 1)``.

        Raises:
            ValueError: the rank is not 2.
        """
        check_rank("flattened_tensor", flattened_tensor, FLAT)
        values = [
            output(hidden(flattened_tensor))
            for hidden, output in zip(self.q_ensembles_hidden_layers, self.q_ensembles_output_layers, strict=True)
        ]
        return torch.stack(values).mean(dim=0)

    def example_inputs(self) -> list[dict[str, object]]:
        """Return a call with a batch of features."""
        return [{"flattened_tensor": example(BATCH, self.input_dim)}]


class DSRLNoiseLatentActor(StateNetwork):
    """Maps features to a chunk of noise in [-1, 1].

    Example:
        >>> import torch
        >>> actor = DSRLNoiseLatentActor(input_dim=6, action_chunk_size=5, action_dim=2, num_layers=1, num_hidden_dim=8)
        >>> actor(torch.zeros(4, 6)).shape
        torch.Size([4, 5, 2])
    """

    def __init__(
        self,
        input_dim: int = 64,
        action_chunk_size: int = 50,
        action_dim: int = 32,
        num_layers: int = 3,
        num_hidden_dim: int = 2048,
        dropout: float = 0.0,
        init_method: str = XAVIER,
    ) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.action_chunk_size = check_count("action_chunk_size", action_chunk_size)
        self.action_dim = check_count("action_dim", action_dim)
        self.model = hidden_stack(input_dim, num_layers, num_hidden_dim, dropout)
        self.last_layer = nn.Sequential(nn.Linear(num_hidden_dim, action_chunk_size * action_dim), nn.Tanh())
        check_init_method(init_method)
        initialise_linear(self)

    def forward(self, flattened_tensor: Tensor) -> Tensor:
        """Map features ``(batch, input_dim)`` to noise ``(batch, action_chunk_size, action_dim)``.

        Raises:
            ValueError: the rank is not 2.
        """
        check_rank("flattened_tensor", flattened_tensor, FLAT)
        noise: Tensor = self.last_layer(self.model(flattened_tensor))
        return noise.reshape(noise.shape[0], self.action_chunk_size, self.action_dim)

    def example_inputs(self) -> list[dict[str, object]]:
        """Return a call with a batch of features."""
        return [{"flattened_tensor": example(BATCH, self.input_dim)}]


class DSRLNoiseActorProcessor(nn.Module):
    """Flattens feature maps of cameras, with fewer channels, and proprioception.

    Example:
        >>> import torch
        >>> block = DSRLNoiseActorProcessor(depth_data_keys=[], img_data_keys=["head"], input_img_channel=4)
        >>> block({"head": torch.zeros(2, 4, 3, 5), "proprio": torch.zeros(2, 1, 6)}).shape
        torch.Size([2, 366])
    """

    def __init__(
        self,
        proprio_key: str = "proprio",
        depth_data_keys: Sequence[str] = DEPTH_CAMERAS,
        img_data_keys: Sequence[str] = CAMERAS,
        input_img_channel: int = 64,
        input_depth_channel: int = 64,
        output_img_channel: int = 24,
        output_depth_channel: int = 24,
    ) -> None:
        super().__init__()
        self.proprio_key = check_key("proprio_key", proprio_key)
        self.depth_data_keys = check_keys("depth_data_keys", depth_data_keys)
        self.img_data_keys = check_keys("img_data_keys", img_data_keys)
        self.input_img_channel = check_count("input_img_channel", input_img_channel)
        self.input_depth_channel = check_count("input_depth_channel", input_depth_channel)
        self.output_img_channel = check_count("output_img_channel", output_img_channel)
        check_count("output_depth_channel", output_depth_channel)
        self.img_latent_vec_proj = nn.ModuleDict(
            {key: nn.Conv2d(input_img_channel, output_img_channel, 1) for key in self.img_data_keys}
        )
        self.depth_latent_vec_proj = nn.ModuleDict(
            {key: nn.Conv2d(input_depth_channel, output_depth_channel, 1) for key in self.depth_data_keys}
        )

    def forward(self, data: Mapping[str, Tensor]) -> Tensor:
        """Join depth maps, feature maps of images and proprioception to ``(batch, features)``.

        Args:
            data: By key: feature maps ``(batch, c, h, w)``, and proprioception ``(batch, s, f)``. Sizes may differ by
                key; other keys are ignored.

        Raises:
            KeyError: a key is missing.
            TypeError: the block has neither depth nor image keys.
            ValueError: an entry has another rank.
        """
        return torch.cat(self.flattened(data), dim=1)

    def flattened(self, data: Mapping[str, Tensor]) -> list[Tensor]:
        """Return depth maps, feature maps of images and proprioception, each as ``(batch, features)``."""
        maps = [(key, self.depth_latent_vec_proj[key]) for key in self.depth_data_keys]
        maps += [(key, self.img_latent_vec_proj[key]) for key in self.img_data_keys]
        if not maps:
            raise TypeError("depth_data_keys and img_data_keys are both empty; at least one needs a key")
        flat = [projection(_entry(data, key, FEATURE_MAP)).flatten(1) for key, projection in maps]
        return [*flat, _entry(data, self.proprio_key, STEPS).flatten(1)]

    def example_inputs(self) -> list[dict[str, dict[str, Tensor]]]:
        """Return a call with all keys; no call if the block has neither depth nor image keys."""
        if not self.depth_data_keys and not self.img_data_keys:
            return []
        sizes = distinct_sizes(self.input_img_channel, self.input_depth_channel)
        data = {key: example(BATCH, self.input_img_channel, next(sizes), next(sizes)) for key in self.img_data_keys}
        for key in self.depth_data_keys:
            data[key] = example(BATCH, self.input_depth_channel, next(sizes), next(sizes))
        data[self.proprio_key] = example(BATCH, next(sizes), next(sizes))
        return [{"data": data}]


class DSRLQFunctionProcessor(DSRLNoiseActorProcessor):
    """Flattens feature maps of cameras, with fewer channels, proprioception and actions.

    Example:
        >>> import torch
        >>> block = DSRLQFunctionProcessor(depth_data_keys=[], img_data_keys=["head"], input_img_channel=4)
        >>> data = {"head": torch.zeros(2, 4, 3, 5), "proprio": torch.zeros(2, 1, 6), "action": torch.zeros(2, 5, 3)}
        >>> block(data).shape
        torch.Size([2, 381])
    """

    def __init__(
        self,
        action_key: str = "action",
        proprio_key: str = "proprio",
        depth_data_keys: Sequence[str] = DEPTH_CAMERAS,
        img_data_keys: Sequence[str] = CAMERAS,
        input_img_channel: int = 64,
        input_depth_channel: int = 64,
        output_img_channel: int = 24,
        output_depth_channel: int = 24,
    ) -> None:
        super().__init__(
            proprio_key=proprio_key,
            depth_data_keys=depth_data_keys,
            img_data_keys=img_data_keys,
            input_img_channel=input_img_channel,
            input_depth_channel=input_depth_channel,
            output_img_channel=output_img_channel,
            output_depth_channel=output_depth_channel,
        )
        self.action_key = check_key("action_key", action_key)

    def flattened(self, data: Mapping[str, Tensor]) -> list[Tensor]:
        """Return depth maps, feature maps of images, proprioception and actions, each as ``(batch, features)``."""
        return [*super().flattened(data), _entry(data, self.action_key, STEPS).flatten(1)]

    def example_inputs(self) -> list[dict[str, dict[str, Tensor]]]:
        """Return a call with all keys; no call if the block has neither depth nor image keys."""
        return [{"data": self._with_action(call["data"])} for call in super().example_inputs()]

    def _with_action(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        sizes = distinct_sizes(*(size for tensor in data.values() for size in tensor.shape))
        return {**data, self.action_key: example(BATCH, next(sizes), next(sizes))}


def check_key(name: str, value: object) -> str:
    """Return a key of the data.

    Raises:
        ValueError: the key is no text.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, got {value!r}")  # noqa: TRY004
    return value


def check_keys(name: str, value: object) -> list[str]:
    """Return a list of keys of the data.

    Raises:
        ValueError: the value is not a list of texts.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} must be a list of texts, got {value!r}")  # noqa: TRY004
    return [check_key(f"{name}[{index}]", key) for index, key in enumerate(value)]


def _entry(data: Mapping[str, Tensor], key: str, layouts: Mapping[int, str]) -> Tensor:
    """Return an entry of the data."""
    value = data[key]
    check_rank(f"data[{key!r}]", value, layouts)
    return value


def hidden_stack(input_dim: int, num_layers: int, width: int, dropout: float) -> nn.Sequential:
    """Build ``num_layers`` normed layers and a linear layer: ``(batch, input_dim)`` to ``(batch, width)``."""
    features = check_count("input_dim", input_dim)
    check_count("num_hidden_dim", width)
    check_probability("dropout", dropout)
    layers: list[nn.Module] = []
    for _ in range(check_count("num_layers", num_layers)):
        layers += [nn.Linear(features, width), nn.LayerNorm(width), nn.ELU(), nn.Dropout(dropout)]
        features = width
    return nn.Sequential(*layers, nn.Linear(width, width), nn.Dropout(dropout))


def check_init_method(init_method: str) -> None:
    """Check the name of an initialisation.

    Raises:
        ValueError: the name is unknown.
    """
    if init_method not in INIT_METHODS:
        raise ValueError(f"init_method must be one of {', '.join(INIT_METHODS)}, got {init_method!r}")


def initialise_linear(module: nn.Module) -> None:
    """Draw the weights of all linear layers (``nn.init.xavier_uniform_``) and set all biases to zero."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            nn.init.zeros_(child.bias)
