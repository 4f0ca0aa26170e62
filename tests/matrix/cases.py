"""Constructor arguments and example calls of each class of ``torch.nn``, for the matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from model_factory_server.constructor import Permissions, default_registry, instantiate

REGISTRY = default_registry()
SEED_OF_BUILD = 5


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way of building a class."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    make: Callable[[], nn.Module] | None = None
    """Builds the module if a config cannot."""
    note: str = ""
    """Text in the place of the arguments, with ``make``."""
    inputs: Callable[[], Sequence[Any]] | None = None
    """Returns new arguments for a call; None for a class without a forward."""

    def build(self, name: str) -> nn.Module:
        if self.make is not None:
            return self.make()
        spec = {"_type_": f"nn.{name}", "_args_": list(self.args), **self.kwargs}
        built = instantiate(spec, REGISTRY, Permissions())
        assert isinstance(built, nn.Module)
        return built

    @property
    def text(self) -> str:
        parts = [*map(_text, self.args), *[f"{key}={_text(value)}" for key, value in self.kwargs.items()]]
        return self.note or ", ".join(parts)


def _text(value: Any) -> str:
    if isinstance(value, dict) and "_type_" in value:
        args = [*map(_text, value.get("_args_", ()))]
        args += [f"{key}={_text(item)}" for key, item in value.items() if not key.startswith("_")]
        return f"{value['_type_']}({', '.join(args)})"
    return repr(value)


def spec(type_name: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return {"_type_": type_name, "_args_": list(args), **kwargs}


def fl(*shape: int, grad: bool = True, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    """A float input."""
    return lambda: torch.randn(shape, dtype=dtype).requires_grad_(grad)


def pos(*shape: int, grad: bool = False) -> Callable[[], Tensor]:
    """A float input between 0 and 1."""
    return lambda: torch.rand(shape).requires_grad_(grad)


def ints(high: int, *shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(high, shape)


def signs(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(2, shape).float() * 2 - 1


def value(item: Any) -> Callable[[], Any]:
    return lambda: item


def case(*args: Any, to: Sequence[Callable[[], Any]] | None = (), **kwargs: Any) -> Case:
    """A case built from a config; ``to`` are functions that make the inputs."""
    return Case(args=args, kwargs=kwargs, inputs=None if to is None else lambda: [make() for make in to])


def made(make: Callable[[], nn.Module], note: str, to: Sequence[Callable[[], Any]] | None = ()) -> Case:
    return Case(make=make, note=note, inputs=None if to is None else lambda: [item() for item in to])


X1, X2, X3 = fl(2, 4, 8), fl(2, 4, 6, 6), fl(2, 4, 4, 4, 4)  # (batch, channels, ...)
V = fl(3, 4)
LAYER = spec("nn.TransformerEncoderLayer", 4, 2, 8)
DECODER_LAYER = spec("nn.TransformerDecoderLayer", 4, 2, 8)
LOSSES = "L1Loss MSELoss HuberLoss SmoothL1Loss".split()
ELEMENTWISE = (
    "CELU ELU GELU Hardsigmoid Hardshrink Hardswish Hardtanh LeakyReLU LogSigmoid Mish PReLU RReLU ReLU ReLU6 SELU "
    "SiLU Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink Identity AlphaDropout FeatureAlphaDropout Flatten "
    "Dropout"
).split()
INPLACE = "CELU ELU Hardsigmoid Hardswish Hardtanh LeakyReLU Mish RReLU ReLU ReLU6 SELU SiLU Dropout".split()


def _unpooled(dims: int) -> Callable[[], Sequence[Any]]:
    def inputs() -> Sequence[Any]:
        pool = getattr(nn, f"MaxPool{dims}d")(2, return_indices=True)
        return list(pool(torch.randn(2, 3, *[4] * dims)))

    return inputs


def _doubled(x: Tensor) -> Callable[[], Tensor]:
    return lambda: x * 2


def _rnn_cases() -> list[Case]:
    x = fl(5, 3, 4)
    return [
        case(4, 6, to=[x]),
        case(4, 6, 2, to=[x], bidirectional=True, dropout=0.5),
        case(4, 6, to=[fl(3, 5, 4)], batch_first=True, bias=False),
    ]


def _norm_cases(dims: int, x: Callable[[], Tensor]) -> dict[str, list[Case]]:
    return {
        f"BatchNorm{dims}d": [
            case(4, to=[x]),
            case(4, to=[x], affine=False, momentum=None),
            case(4, to=[x], track_running_stats=False),
        ],
        f"InstanceNorm{dims}d": [case(4, to=[x]), case(4, to=[x], affine=True, track_running_stats=True)],
        f"LazyBatchNorm{dims}d": [case(to=[x]), case(to=[x], affine=False)],
        f"LazyInstanceNorm{dims}d": [case(to=[x]), case(to=[x], affine=True, track_running_stats=True)],
    }


def _conv_cases(dims: int, x: Callable[[], Tensor]) -> dict[str, list[Case]]:
    return {
        f"Conv{dims}d": [
            case(4, 6, 3, to=[x]),
            case(4, 6, 3, to=[x], padding="same", groups=2, bias=False, padding_mode="circular"),
        ],
        f"ConvTranspose{dims}d": [case(4, 6, 3, to=[x], stride=2, output_padding=1)],
        f"LazyConv{dims}d": [case(6, 3, to=[x])],
        f"LazyConvTranspose{dims}d": [case(6, 3, to=[x], bias=False)],
        f"Dropout{dims}d": [case(0.4, to=[x])],
        f"AdaptiveAvgPool{dims}d": [case(2, to=[x]), *([case([None] * dims, to=[x])] if dims > 1 else [])],
        f"AdaptiveMaxPool{dims}d": [case(2, to=[x], return_indices=True)],
        f"AvgPool{dims}d": [case(2, to=[x], padding=1, count_include_pad=False)],
        f"MaxPool{dims}d": [case(2, to=[x], ceil_mode=True), case(2, to=[x], return_indices=True, dilation=1)],
        f"MaxUnpool{dims}d": [Case(args=(2,), inputs=_unpooled(dims))],
        f"LPPool{dims}d": [case(2, 2, to=[x])],
        f"CircularPad{dims}d": [case(1, to=[x])],
        f"ConstantPad{dims}d": [case(1, 3.5, to=[x])],
        f"ReflectionPad{dims}d": [case(1, to=[x])],
        f"ReplicationPad{dims}d": [case([1] * (2 * dims), to=[x])],
        f"ZeroPad{dims}d": [case(1, to=[x])],
    }


def _pairs() -> dict[str, list[Case]]:
    target = fl(3, 4, grad=False)
    table = {name: [case(to=[V, target]), case(to=[V, target], reduction="none")] for name in LOSSES}
    classes, log_probs = ints(4, 3), fl(3, 4)
    weight = torch.rand(4)
    return table | {
        "BCELoss": [
            case(to=[pos(3, 4, grad=True), pos(3, 4)]),
            made(lambda: nn.BCELoss(weight), "weight", [pos(3, 4), pos(3, 4)]),
        ],
        "BCEWithLogitsLoss": [
            case(to=[V, pos(3, 4)]),
            made(lambda: nn.BCEWithLogitsLoss(weight, pos_weight=weight + 1), "weight, pos_weight", [V, pos(3, 4)]),
        ],
        "CTCLoss": [
            case(
                to=[
                    lambda: torch.randn(6, 2, 5).log_softmax(2).detach().requires_grad_(),
                    ints(4, 2, 3),
                    value((6, 6)),
                    value((3, 2)),
                ],
                zero_infinity=True,
            )
        ],
        "CosineEmbeddingLoss": [case(to=[V, V, signs(3)], margin=0.2)],
        "CosineSimilarity": [case(to=[V, V])],
        "CrossEntropyLoss": [
            case(to=[V, classes], label_smoothing=0.1),
            made(lambda: nn.CrossEntropyLoss(weight, ignore_index=1), "weight, ignore_index=1", [V, classes]),
        ],
        "GaussianNLLLoss": [case(to=[V, target, pos(3, 4, grad=True)], full=True)],
        "HingeEmbeddingLoss": [case(to=[V, signs(3, 4)])],
        "KLDivLoss": [
            case(to=[V, pos(3, 4)], reduction="batchmean"),
            case(to=[V, target], reduction="sum", log_target=True),
        ],
        "LinearCrossEntropyLoss": [case(4, 5, to=[V, ints(5, 3)], bias=True)],
        "MarginRankingLoss": [case(to=[V, V, signs(3, 4)])],
        "MultiLabelMarginLoss": [case(to=[V, value(torch.tensor([[1, -1, 0, 0]] * 3))])],
        "MultiLabelSoftMarginLoss": [
            case(to=[V, pos(3, 4)]),
            made(lambda: nn.MultiLabelSoftMarginLoss(weight), "weight", [V, pos(3, 4)]),
        ],
        "MultiMarginLoss": [case(to=[V, classes], p=2)],
        "NLLLoss": [case(to=[log_probs, classes]), made(lambda: nn.NLLLoss(weight), "weight", [log_probs, classes])],
        "NLLLoss2d": [made(_deprecated(nn.NLLLoss2d), "deprecated", [X2, ints(4, 2, 6, 6)])],
        "PairwiseDistance": [case(to=[V, V], p=1.0, keepdim=True)],
        "PoissonNLLLoss": [case(to=[V, pos(3, 4)], full=True)],
        "SoftMarginLoss": [case(to=[V, signs(3, 4)])],
        "TripletMarginLoss": [case(to=[V, V, V], swap=True)],
        "TripletMarginWithDistanceLoss": [
            case(to=[V, V, V]),
            case(to=[V, V, V], distance_function=spec("nn.CosineSimilarity")),
            made(
                lambda: nn.TripletMarginWithDistanceLoss(distance_function=nn.functional.pairwise_distance),
                "distance_function=F.pairwise_distance",
                [V, V, V],
            ),
        ],
        "Bilinear": [case(4, 4, 2, to=[V, V])],
    }


def _deprecated(cls: type[nn.Module], *args: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import warnings  # noqa: PLC0415  one caller

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", (FutureWarning, DeprecationWarning))
            return cls(*args)

    return make


def _attention() -> dict[str, list[Case]]:
    q, kv = fl(3, 2, 4), fl(5, 2, 4)
    src, tgt = fl(3, 2, 4), fl(2, 2, 4)
    return {
        "MultiheadAttention": [
            case(4, 2, to=[q, kv, kv]),
            case(4, 2, to=[q, fl(5, 2, 3), fl(5, 2, 6)], kdim=3, vdim=6, bias=False),
            case(4, 2, to=[q, kv, kv], add_bias_kv=True, add_zero_attn=True, dropout=0.3),
            case(4, 2, to=[fl(2, 3, 4), fl(2, 3, 4), fl(2, 3, 4)], batch_first=True),
        ],
        "Transformer": [
            case(4, 2, 1, 1, 8, to=[src, tgt]),
            case(4, 2, 1, 2, 8, to=[fl(2, 3, 4), fl(2, 5, 4)], batch_first=True, norm_first=True, activation="gelu"),
        ],
        "TransformerEncoder": [
            case(LAYER, 2, to=[src], enable_nested_tensor=False),
            case(
                spec("nn.TransformerEncoderLayer", 4, 2, 8, batch_first=True),
                2,
                spec("nn.LayerNorm", 4),
                to=[fl(2, 3, 4)],
            ),
        ],
        "TransformerDecoder": [case(DECODER_LAYER, 2, spec("nn.LayerNorm", 4), to=[tgt, src])],
        "TransformerEncoderLayer": [
            case(4, 2, 8, to=[src]),
            case(4, 2, 8, to=[src], activation="gelu", norm_first=True, bias=False),
            case(4, 2, 8, to=[src], activation=spec("nn.SiLU")),
            made(
                lambda: nn.TransformerEncoderLayer(4, 2, 8, activation=nn.functional.mish),
                "4, 2, 8, activation=F.mish",
                [src],
            ),
        ],
        "TransformerDecoderLayer": [
            case(4, 2, 8, to=[tgt, src]),
            case(4, 2, 8, to=[fl(2, 2, 4), fl(2, 3, 4)], batch_first=True),
        ],
    }


def _containers() -> dict[str, list[Case]]:
    linear = spec("nn.Linear", 4, 4)
    return {
        "Sequential": [case(linear, spec("nn.ReLU"), linear, to=[V]), case(to=[V])],
        "ModuleList": [case([linear, spec("nn.ModuleList", [linear])], to=None)],
        "ModuleDict": [case({"a": linear, "b": spec("nn.ModuleDict", {"c": linear})}, to=None)],
        "ParameterList": [
            made(
                lambda: nn.ParameterList([torch.randn(2), nn.Parameter(torch.randn(1), requires_grad=False), 3]),
                "two tensors and a number",
                None,
            ),
            made(lambda: nn.ParameterList([nn.ParameterList([torch.randn(2)])]), "nested", None),
        ],
        "ParameterDict": [
            made(
                lambda: nn.ParameterDict({"a": torch.randn(2), "b": nn.ParameterDict({"c": torch.randn(1)})}),
                "nested",
                None,
            )
        ],
        "Module": [made(nn.Module, "bare, as a name space", None)],
        "Container": [made(_deprecated(nn.Container), "deprecated", None)],
        "RNNBase": [case("LSTM", 4, 6, to=None)],
        "RNNCellBase": [case(4, 6, True, 3, to=None)],
    }


def _table() -> dict[str, list[Case]]:
    table: dict[str, list[Case]] = {name: [case(to=[V])] for name in ELEMENTWISE}
    for name in INPLACE:
        table[name].append(case(to=[_doubled(torch.linspace(-2, 2, 12).view(3, 4))], inplace=True))
    for dims, x in enumerate((X1, X2, X3), 1):
        table |= _conv_cases(dims, x) | _norm_cases(dims, x)
    lstm = [*_rnn_cases(), case(4, 6, 2, to=[fl(5, 3, 4)], proj_size=3, bidirectional=True)]
    return (
        table
        | _pairs()
        | _attention()
        | _containers()
        | {
            "PReLU": [case(to=[V]), case(4, to=[V], init=0.1)],
            "GELU": [case(to=[V]), case(to=[V], approximate="tanh")],
            "Hardtanh": [*table["Hardtanh"], case(-2.0, 2.0, to=[V])],
            "AdaptiveLogSoftmaxWithLoss": [case(4, 12, [3, 6], to=[V, ints(12, 3)], head_bias=True)],
            "ChannelShuffle": [case(2, to=[X2])],
            "CrossMapLRN2d": [case(3, to=[X2])],
            "LocalResponseNorm": [case(3, to=[X2])],
            "Embedding": [
                case(7, 4, to=[ints(7, 3, 2)]),
                case(7, 4, to=[ints(7, 3, 2)], padding_idx=0, scale_grad_by_freq=True),
                case(7, 4, to=[ints(7, 3, 2)], max_norm=0.5, norm_type=1.0),
                case(7, 4, to=[ints(7, 3, 2)], sparse=True),
            ],
            "EmbeddingBag": [
                case(7, 4, to=[ints(7, 3, 2)]),
                case(7, 4, to=[ints(7, 3, 2)], mode="max", padding_idx=1),
                case(7, 4, to=[ints(7, 6), value(torch.tensor([0, 2, 5]))], mode="sum", max_norm=0.5),
            ],
            "Fold": [case([4, 5], 2, to=[fl(2, 12, 12)])],
            "Unfold": [case(2, to=[X2], padding=1)],
            "FractionalMaxPool2d": [
                case(2, to=[X2], output_size=3),
                case(3, to=[X2], output_ratio=0.5, return_indices=True),
            ],
            "FractionalMaxPool3d": [case(2, to=[X3], output_size=2)],
            "GLU": [case(to=[V])],
            "GRU": _rnn_cases(),
            "LSTM": lstm,
            "RNN": [*_rnn_cases(), case(4, 6, to=[fl(5, 3, 4)], nonlinearity="relu")],
            "GRUCell": [case(4, 6, to=[V])],
            "LSTMCell": [case(4, 6, to=[V], bias=False)],
            "RNNCell": [case(4, 6, to=[V], nonlinearity="relu")],
            "GroupNorm": [case(2, 4, to=[X2]), case(2, 4, to=[X2], affine=False)],
            "LayerNorm": [
                case(4, to=[V]),
                case([6, 6], to=[X2], bias=False),
                case(4, to=[V], elementwise_affine=False),
            ],
            "RMSNorm": [case(4, to=[V]), case([6, 6], to=[X2], eps=1e-5, elementwise_affine=False)],
            "SyncBatchNorm": [case(4, to=[X2])],
            "Linear": [case(4, 5, to=[V]), case(4, 5, to=[V], bias=False)],
            "LazyLinear": [case(5, to=[V])],
            "LogSoftmax": [case(1, to=[V])],
            "Softmax": [case(-1, to=[V])],
            "Softmin": [case(1, to=[V])],
            "Softmax2d": [case(to=[X2])],
            "PixelShuffle": [case(2, to=[X2])],
            "PixelUnshuffle": [case(2, to=[X2])],
            "Threshold": [case(0.1, 20.0, to=[V])],
            "Unflatten": [
                case(1, [2, 2], to=[V]),
                made(lambda: nn.Unflatten(1, torch.Size([2, 2])), "1, torch.Size([2, 2])", [V]),
            ],
            "Upsample": [case(to=[X2], scale_factor=2.0), case(8, to=[X2], mode="bilinear", align_corners=True)],
            "UpsamplingBilinear2d": [case(to=[X2], scale_factor=2)],
            "UpsamplingNearest2d": [case(8, to=[X2])],
        }
    )


CASES = _table()
"""Class name -> its cases."""

REFUSED: dict[str, Case] = {
    "DataParallel": made(lambda: nn.DataParallel(nn.Linear(4, 4)), "nn.Linear(4, 4)", None),
    "LinearCrossEntropyLoss": made(
        lambda: nn.LinearCrossEntropyLoss(4, 5, options=nn.LinearCrossEntropyOptions()), "options given", None
    ),
    "TransformerEncoderLayer": made(
        lambda: nn.TransformerEncoderLayer(4, 2, 8, activation=lambda x: x),
        "activation is a function of one's own",
        None,
    ),
}
"""Refused class -> the case."""

NO_MODULES = frozenset({"LinearCrossEntropyOptions"})

NEWER_THAN_THE_FLOOR = frozenset({"LinearCrossEntropyLoss"})
"""Classes of the pinned torch that the oldest supported torch lacks."""

for _name in NEWER_THAN_THE_FLOOR:
    if not hasattr(nn, _name):
        del CASES[_name], REFUSED[_name]
"""Names of ``torch.nn.modules.__all__`` that are not modules."""
