"""Custom blocks, one for each property of modules; also a plug-in for a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  everyone's name for it
from torch.nn.utils import parametrizations, parametrize

WIDTH = 4
BLOCKS: dict[str, Callable[[], nn.Module]] = {}
"""Name -> maker of a block whose forward takes ``x (batch, 4)``, and which is portable."""


def is_portable(cls: type[nn.Module]) -> type[nn.Module]:
    BLOCKS[cls.__name__] = cls
    return cls


class Block(nn.Module):
    """The base class of the blocks, with an example call."""

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.zeros(2, WIDTH)}]


class Inner(nn.Module):
    """A block inside others."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)) + x


@is_portable
class TiedParameters(Block):
    """A weight under three names, of two modules and the block itself."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(WIDTH, WIDTH, bias=False)
        self.decode = nn.Linear(WIDTH, WIDTH, bias=False)
        self.decode.weight = self.encode.weight
        self.alias = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.relu(self.encode(x))) @ self.alias


@is_portable
class SharedModules(Block):
    """A block under three paths, also inside an `nn.Sequential`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Inner()
        self.again = self.first
        self.all = nn.ModuleList([self.first, nn.Sequential(self.first)])

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.all[1](self.first(x)))


@is_portable
class Buffers(Block):
    """Buffers: persistent, not persistent, None, counted up in place, an `nn.Buffer`, a parameter as a buffer, a buffer
    with gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.randn(WIDTH))
        self.register_buffer("dropped", torch.randn(WIDTH), persistent=False)
        self.register_buffer("absent", None)
        self.register_buffer("count", torch.tensor(3))
        self.marked = nn.Buffer(torch.randn(WIDTH), persistent=False)
        self.register_parameter("no_bias", None)
        self.register_buffer("learned", nn.Parameter(torch.randn(WIDTH)))
        self.register_buffer("leaf", torch.randn(WIDTH, requires_grad=True))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        assert self.absent is None
        assert self.no_bias is None
        return x * self.kept + self.dropped * self.count + self.marked * self.learned * self.leaf


@is_portable
class ParameterContainers(Block):
    """`nn.ParameterList` and `nn.ParameterDict`, nested."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList([torch.randn(WIDTH), torch.randn(WIDTH)])
        self.named = nn.ParameterDict({"a": torch.randn(WIDTH), "deep": nn.ParameterList([torch.randn(1)])})

    def forward(self, x: Tensor) -> Tensor:
        for scale in self.scales:
            x = x * scale
        return x + self.named["a"] + self.named["deep"][0]


@is_portable
class ModuleContainers(Block):
    """`nn.ModuleDict`s in an `nn.ModuleList`, with blocks inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.ModuleDict({"a": Inner(), "b": nn.Linear(WIDTH, WIDTH)}) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage["b"](stage["a"](x))
        return x


@is_portable
class SequentialOfBlocks(Block):
    """Blocks inside nested `nn.Sequential`s."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Inner(), nn.Sequential(Inner(), nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + 1


@is_portable
class Recurrent(Block):
    """A bidirectional `nn.LSTM` with projections, an `nn.GRU` and an `nn.LSTMCell`."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, 3, 2, bidirectional=True, proj_size=2, batch_first=True, dropout=0.2)
        self.gru = nn.GRU(WIDTH, WIDTH)
        self.cell = nn.LSTMCell(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        sequence, (hidden, _) = self.lstm(x[:, None])
        state, _ = self.gru(sequence.transpose(0, 1))
        return self.cell(state[0])[0] + hidden.sum()


@is_portable
class Attention(Block):
    """`nn.MultiheadAttention` with other key and value sizes and bias, and an `nn.TransformerEncoder` with masks."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(WIDTH, 2, add_bias_kv=True, kdim=3, vdim=2, batch_first=True)
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 2, 8, 0.1, F.gelu, batch_first=True), 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x[:, None].expand(-1, 3, -1)
        mask = torch.zeros(x.shape[0], 3, dtype=torch.bool, device=x.device)
        attended, _ = self.attend(tokens, tokens[..., :3], tokens[..., :2], key_padding_mask=mask)
        return self.layers(attended, src_key_padding_mask=mask).mean(1)


@is_portable
class Embeddings(Block):
    """`nn.Embedding` with padding and `max_norm`, and an `nn.EmbeddingBag`."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, WIDTH, padding_idx=0, max_norm=0.5)
        self.bag = nn.EmbeddingBag(5, WIDTH, mode="max")

    def forward(self, x: Tensor) -> Tensor:
        index = (x > 0).long()
        return self.table(index).sum(1) + self.bag(index)


@is_portable
class Parametrized(Block):
    """`weight_norm`, `spectral_norm` and `orthogonal` of `torch.nn.utils.parametrizations`."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))
        self.spectral = parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))
        self.orthogonal = parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH))
        self.recurrent = parametrizations.weight_norm(nn.GRUCell(WIDTH, WIDTH), "weight_hh")

    def forward(self, x: Tensor) -> Tensor:
        x = self.orthogonal(self.spectral(self.normed(x)))
        return self.recurrent(x) @ self.normed.weight


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).mT


@is_portable
class OwnParametrization(Block):
    """A custom parametrisation, on the block and on a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.linear = nn.Linear(WIDTH, WIDTH)
        parametrize.register_parametrization(self, "weight", Symmetric())
        parametrize.register_parametrization(self.linear, "weight", Symmetric())

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) @ self.weight


@is_portable
class Dtypes(Block):
    """Parameters and buffers of ten dtypes, complex and conjugate tensors among them, scalars and an empty tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.halves = nn.Parameter(torch.randn(WIDTH).half())
        self.doubles = nn.Parameter(torch.randn(WIDTH).double())
        self.wave = nn.Parameter(torch.randn(WIDTH, dtype=torch.complex64))
        self.scalar = nn.Parameter(torch.tensor(0.5))
        self.empty = nn.Parameter(torch.empty(0, WIDTH))
        self.index = nn.Parameter(torch.arange(WIDTH), requires_grad=False)
        self.register_buffer("mask", torch.tensor([True, False, True, True]))
        self.register_buffer("small", torch.arange(WIDTH, dtype=torch.uint8))
        self.register_buffer("tiny", torch.randn(WIDTH).to(torch.float8_e4m3fn))
        self.register_buffer("conjugate", torch.randn(WIDTH, dtype=torch.complex64).conj())

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, self.index] * self.halves.float() + self.doubles.float() * self.scalar
        x = torch.cat([x, self.empty.sum(0)[None]]) * self.mask + self.small
        return (x * self.wave * self.conjugate).real + self.tiny.float()


@is_portable
class Frozen(Block):
    """Parts without gradients, a part in eval mode, and a part left in eval mode by train()."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)).requires_grad_(False)
        self.left = nn.BatchNorm1d(WIDTH).eval()

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.left(self.backbone(x)) if self.training else self.left(x)


@is_portable
class PlainTensors(Block):
    """Tensors in plain attributes: private, with gradients, the same as a buffer, written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.randn(WIDTH)
        self._private = torch.randn(WIDTH)
        self.learned = torch.randn(WIDTH, requires_grad=True)
        self.register_buffer("known", torch.randn(WIDTH), persistent=False)
        self.same = self.known
        self.calls = torch.zeros((), dtype=torch.long)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.scale + self._private * self.learned + self.same + self.calls


@is_portable
class TensorAttributes(Block):
    """Attributes on parameters, for optimisers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH))
        self.weight._no_weight_decay = True
        self.weight.lr = {"scale": 0.1}

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


@is_portable
class Strides(Block):
    """A `channels_last` convolution, a transposed parameter, an expanded buffer, buffers side by side in one memory
    block.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, 2, 2).to(memory_format=torch.channels_last)
        self.register_buffer("expanded", torch.randn(1).expand(WIDTH))
        self.register_buffer("side", torch.randn(2, WIDTH)[0])
        self.turned = nn.Parameter(torch.randn(WIDTH, 3).mT)
        whole = torch.randn(2 * WIDTH)
        self.register_buffer("low", whole[:WIDTH])
        self.register_buffer("high", whole[WIDTH:])

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.expanded + self.side + self.turned.sum() + self.low * self.high
        return self.conv(x[:, :, None, None].expand(-1, -1, 2, 2).contiguous()).flatten(1)


class ScaledLinear(nn.Linear):
    """A subclass of a torch module with a custom forward."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


@is_portable
class ComputedWeight(nn.Linear):
    """A subclass of `nn.Linear` with a property in the place of the weight."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.mean = nn.Parameter(torch.linspace(-1, 1, WIDTH * WIDTH).view(WIDTH, WIDTH))
        self.deviation = nn.Parameter(torch.full((WIDTH, WIDTH), 0.1))
        self.register_parameter("bias", None)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """A weight of another value in train mode."""
        return self.mean + self.deviation if self.training else self.mean

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"input": torch.zeros(2, WIDTH)}]


class Stem(nn.Sequential):
    """A stock subclass with a constructor only."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(WIDTH, WIDTH), nn.ReLU())
        self.width = WIDTH


@is_portable
class StockSubclasses(Block):
    """Subclasses of torch's classes, with and without a forward of their own, and a replaced forward."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled = ScaledLinear(WIDTH, WIDTH)
        self.stem = Stem()
        self.replaced = nn.Linear(WIDTH, WIDTH)
        self.replaced.forward = lambda x: F.linear(x, self.replaced.weight) - 1

    def forward(self, x: Tensor) -> Tensor:
        return self.replaced(self.stem(self.scaled(x)))


@is_portable
class UnregisteredActivations(Block):
    """A plain list of modules without tensors; the program contains the calls in the modules' forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.activations = [nn.ReLU(), nn.Softplus()]

    def forward(self, x: Tensor) -> Tensor:
        for activation in self.activations:
            x = activation(x)
        return nn.Tanh()(x)


@is_portable
class Decides(Block):
    """Branches on values: a number from a tensor, the truth of a tensor, and a bound; each branch is a program."""

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Linear(WIDTH, WIDTH)
        self.large = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if x.detach().max().item() > 0.5:
            x = self.large(x)
        if (x < -100).any():
            raise ValueError("out of range")
        for _ in range(int((x > 100).sum())):
            x = x / 2
        return self.small(x)

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.zeros(2, WIDTH)}, {"x": torch.ones(2, WIDTH)}]


@is_portable
class CachedMask(Block):
    """Caches a computed mask; a program computes the mask in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self._mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._mask is None or self._mask.shape[0] != x.shape[0]:
            self._mask = torch.ones(x.shape[0], x.shape[0], device=x.device).tril()
        return self._mask @ self.linear(x)


class Helper(nn.Module):
    """Called by the owner only, with a default other than plain data."""

    def forward(self, x: Tensor, act: Callable[[Tensor], Tensor] = torch.sigmoid) -> Tensor:
        return act(x)


class NoForward(nn.Module):
    """A holder of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()


@is_portable
class Names(Block):
    """Attributes of every kind, and names with a meaning in rebuilt modules."""

    _version = 3

    def __init__(self) -> None:
        super().__init__()
        self.type = "hides a method"
        self.inputs = [1, (2, "three"), {"four": None, 5: float("inf")}]
        self.runner = torch.Size([2, 3])
        self._hidden = -0.0
        self.dtype = torch.bfloat16
        self.activation = F.gelu
        self.settings = Callable
        self.helper = Helper()
        self.holder = NoForward()
        self.space = nn.Module()
        self.space.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.helper(self.activation(self.space.linear(self.holder.inner(x))))


@is_portable
class Lazy(nn.Module):
    """Gets sizes from the first call, and is recorded at the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LazyLinear(WIDTH), nn.LazyBatchNorm1d(), nn.Dropout(0.5))
        self.out = nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.layers(x)))


def register(registry: Any) -> None:
    """Register every block as ``kind_NAME``."""
    for name, block in BLOCKS.items():
        registry.register_module(f"kind_{name}", block)
