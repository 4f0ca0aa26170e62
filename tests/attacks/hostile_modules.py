"""Attacks on a trainer by descriptors of torch's own modules; each was a crash, a hang or a read beyond a tensor.

``python hostile_modules.py`` runs all attacks and prints a JSON line for each: the name, and the error or ``null``.
With ``--from-file``, the descriptors and tensors are read from model files.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from model_factory.describe.describe import describe, named_tensors
from model_factory.descriptor.codec import decode_descriptor, encode_descriptor
from model_factory.descriptor.rebuild import rebuild
from model_factory.model_file.load import load
from support.model_files import write_model_file

sys.path.insert(0, str(Path(__file__).parents[1]))

HUGE = 2**63 - 1
FROM_FILE = False


def rebuilt(
    module: nn.Module, attributes: dict[str, Any] | None = None, tensors: dict[str, Tensor] | None = None, at: int = 0
) -> Any:
    """Rebuild a module from its document, with other attributes of the module at a position, and with other tensors."""
    described = describe(module)
    document = json.loads(encode_descriptor(described))
    node = document["modules"][at]
    node["attributes"] = [[name, (attributes or {}).get(name, value)] for name, value in node["attributes"]]
    found = {name: tensor.detach() for name, tensor in named_tensors(module, described).items()} | (tensors or {})
    for entry in document["tensors"]:
        if entry[0] in found:  # a lazy tensor has no shape
            entry[2] = list(found[entry[0]].shape)
    return received(document, found)


def received(document: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    """Rebuild the module of a document as a trainer does: from a server, or from a file."""
    data = json.dumps(document).encode()
    if not FROM_FILE:
        return rebuild(decode_descriptor(data), tensors)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.mf"
        write_model_file(path, data, tensors)
        return load(path)


def run(module: Any, *inputs: Any) -> None:
    module(*inputs).sum().backward()


def weight_norm(magnitudes: Tensor, directions: Tensor, name: str = "weight", dim: int = 0) -> None:
    layer = nn.LSTM(4, 6) if name != "weight" else nn.Linear(4, 5)
    module = parametrizations.weight_norm(layer, name, dim)
    path = f"parametrizations.{name}.original"
    built = rebuilt(module, tensors={f"{path}0": magnitudes, f"{path}1": directions})
    getattr(built, name)


def spectral_norm() -> None:
    module = parametrizations.spectral_norm(nn.RNN(4, 6), "weight_hh_l0")
    rebuilt(module, {"n_power_iterations": 2**31 - 1}, at=3)


def attention(heads: int) -> None:
    module = rebuilt(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), {"num_heads": heads}, at=1)
    with torch.no_grad():
        module(torch.randn(2, 3, 8))


def convolution(cls: Any, stride: Any, channels: int = 4) -> None:
    module = rebuilt(cls(channels, 6, 3), {"stride": stride})
    run(module, torch.randn(2, channels, *[8] * len(stride["tuple"]), requires_grad=True))


def transposed(cls: Any, stride: int = 64, **kwargs: Any) -> None:
    """A kernel for bfloat16 writes outside of the result."""
    axes = int(cls.__name__[-2])
    size = [4] if "Lazy" not in cls.__name__ else []
    module = rebuilt(
        cls(*size, 6, 1, bias=False, dtype=torch.bfloat16, **kwargs), {"stride": {"tuple": [stride] * axes}}
    )
    with torch.no_grad():
        module(torch.zeros(1, 4, *[3] * axes, dtype=torch.bfloat16))


def transposed_parametrized() -> None:
    module = parametrizations.weight_norm(nn.ConvTranspose1d(4, 6, 1, bias=False))
    run(rebuilt(module, {"stride": {"tuple": [64]}}), torch.zeros(1, 4, 3))


def many_channels(module: nn.Module, channels: int = 32768) -> None:
    """The gradient for the input writes outside of the input; the rebuild does not know the channels."""
    run(rebuilt(module), torch.zeros(1, channels, 600, requires_grad=True))


def normed(channels: int, groups: int = 1) -> nn.Module:
    layer = nn.Conv1d(channels, 2 * groups, 1, stride=256, bias=False, groups=groups)
    return parametrizations.weight_norm(layer)


def spectral(channels: int) -> nn.Module:
    return parametrizations.spectral_norm(nn.Conv1d(channels, 2, 1, stride=256, bias=False))


def swapped_bag() -> None:
    """torch takes integers for the indices, whatever the order: here the weight, which the check takes for a table."""
    document = json.loads(encode_descriptor(describe(nn.EmbeddingBag(5, 4, include_last_offset=True, mode="sum"))))
    weight = torch.zeros(4, 5, dtype=torch.int64)
    weight[-1] = 10**9
    document["tensors"][0][1:4] = ["int64", [4, 5], False]
    module = received(document, {"weight": weight})
    module(torch.zeros(5, 3, requires_grad=True)).sum().backward()


def activation(name: str) -> None:
    """A function as an attribute is called without the checks of a program."""
    layer = nn.TransformerEncoderLayer(4, 1, dim_feedforward=3, dropout=0.0, bias=False)
    layer.linear2 = nn.Linear(3, 4, bias=False)
    rebuilt(layer, {"activation": {"stock": name}})(torch.zeros(0, 4, requires_grad=True)).sum().backward()


def pooling() -> None:
    with torch.no_grad():
        rebuilt(nn.MaxPool1d(17, padding=8), {"stride": HUGE})(torch.randn(2, 4, 1))


def window() -> None:
    """A window of padding only: the gradient went to a position outside of the input."""
    module = rebuilt(nn.MaxPool1d(2, stride=1, padding=1, dilation=2), {"dilation": 17})
    run(module, torch.randn(2, 4, 18, requires_grad=True)[..., :16])


def folding() -> None:
    run(rebuilt(nn.Fold((4, 5), 2), {"padding": 2**31}), torch.randn(2, 12, 12))


def padding() -> None:
    rebuilt(nn.ReplicationPad2d(1), {"padding": {"tuple": [HUGE] * 4}})(torch.randn(2, 4, 6, 6))


def bag(*inputs: Tensor, **kwargs: Any) -> None:
    """A bag by itself, as a trainer's loss head."""
    run(rebuilt(nn.EmbeddingBag(7, 4, **kwargs)), *inputs)


def nested_bag(indices: Tensor) -> None:
    run(rebuilt(nn.Sequential(nn.Sequential(nn.EmbeddingBag(7, 4, mode="max")))), indices)


def ctc() -> None:
    log_probs = torch.randn(6, 2, 5).log_softmax(2).requires_grad_()
    rebuilt(nn.CTCLoss())(log_probs, torch.full((2, 3), 10**6), (6, 6), (3, 2)).backward()


def samples() -> None:
    module = nn.FractionalMaxPool2d(2, output_size=3, _random_samples=torch.full((2, 4, 2), 1e8))
    run(rebuilt(module), torch.randn(2, 4, 6, 6, requires_grad=True))


def empty_shape() -> None:
    document = json.loads(encode_descriptor(describe(nn.Linear(2, 3))))
    document["tensors"][0][2] = [0, 2**62, 2**62]
    received(document, {"weight": torch.ones(0), "bias": torch.ones(3)})


def parametrized_shape() -> None:
    """The weight of a recurrent module is as large as its parametrization makes it."""
    module = parametrizations.weight_norm(nn.LSTM(4, 6), "weight_hh_l0")
    path = "parametrizations.weight_hh_l0.original"
    rebuilt(module, tensors={f"{path}0": torch.ones(24, 1), f"{path}1": torch.ones(24, 1)})


ATTACKS: dict[str, tuple[Callable[[], None], str]] = {
    "weight norm of one row, inside build": (
        lambda: weight_norm(torch.ones(1, 1), torch.ones(24, 6), "weight_hh_l0"),
        "magnitudes",
    ),
    "weight norm of one row": (lambda: weight_norm(torch.ones(1, 1), torch.ones(1025, 4)), "magnitudes"),
    "weight norm of one column": (lambda: weight_norm(torch.ones(1, 1), torch.ones(5, 900), dim=1), "magnitudes"),
    "weight norm without elements": (lambda: weight_norm(torch.ones(0, 1), torch.ones(0, 4)), "with elements"),
    "spectral norm without end, inside build": (spectral_norm, "n_power_iterations"),
    "recurrent weight of a parametrization's shape": (parametrized_shape, "weight_hh_l0 is not a tensor of the shape"),
    "attention of no heads": (lambda: attention(0), "num_heads"),
    "attention of fewer than no heads": (lambda: attention(-1), "num_heads"),
    "stride beyond the kernels": (lambda: convolution(nn.Conv1d, {"tuple": [65536]}), "stride"),
    "stride beyond the kernels, 3d": (lambda: convolution(nn.Conv3d, {"tuple": [4096] * 3}), "stride"),
    "stride and channels": (lambda: convolution(nn.Conv1d, {"tuple": [1500]}, 1024), "1024 channels"),
    "stride of a transposed convolution": (lambda: convolution(nn.ConvTranspose1d, {"tuple": [65536]}), "stride"),
    "stride of a pooling": (pooling, "allowed"),
    "window of a pooling without numbers": (window, "dilation"),
    "padding of a fold": (folding, "padding"),
    "padding by replication": (padding, "allowed"),
    "offsets of a bag": (lambda: bag(torch.arange(6), torch.tensor([0, 10**6, 3])), "offsets"),
    "indices of a bag": (lambda: bag(torch.full((6,), 10**6), torch.tensor([0]), mode="max"), "indices"),
    "indices of a nested bag": (lambda: nested_bag(torch.full((2, 3), -(10**6))), "indices"),
    "last offset of a bag": (
        lambda: bag(torch.arange(6), torch.tensor([0, 2, 5]), mode="sum", include_last_offset=True),
        "last of the offsets",
    ),
    "only offset of a bag": (
        lambda: bag(torch.arange(6), torch.tensor([0]), mode="max", include_last_offset=True),
        "last of the offsets",
    ),
    "targets of a CTC loss": (ctc, "targets"),
    **{
        f"stride of {cls.__name__} beyond the kernel": (lambda cls=cls: transposed(cls), "stride of a")
        for cls in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.LazyConvTranspose1d)
    },
    "stride of a parametrized transposed convolution": (transposed_parametrized, "stride of a ConvTranspose1d"),
    "channels of a lazy convolution": (
        lambda: many_channels(nn.LazyConv1d(2, 1, stride=256, bias=False)),
        "32768 channels",
    ),
    "channels of a weight norm": (lambda: many_channels(normed(32768)), "32768 channels"),
    "channels of a weight norm with groups": (lambda: many_channels(normed(32768, 2)), "32768 channels"),
    "channels of a spectral norm": (lambda: many_channels(spectral(32768)), "32768 channels"),
    "swapped arguments of a bag": (swapped_bag, "must be integers"),
    "distances as an activation": (lambda: activation("torch.nn.functional.pdist"), "is not a value"),
    "a bag as an activation": (lambda: activation("torch.nn.functional.embedding_bag"), "is not a value"),
    "samples of a fractional pooling": (samples, "random samples"),
    "an empty tensor with strides beyond 64 bits": (empty_shape, "shape"),
}
"""Name, attack, and a part of the error."""


def main() -> None:
    for name, (attack, _) in ATTACKS.items():
        error = None
        try:
            attack()
        except Exception as caught:  # noqa: BLE001  the test compares the error
            error = f"{type(caught).__name__}: {caught}"
        print(json.dumps([name, error]), flush=True)  # noqa: T201


if __name__ == "__main__":
    FROM_FILE = "--from-file" in sys.argv
    chosen = [name for name in sys.argv[1:] if name != "--from-file"]
    ATTACKS = {name: item for name, item in ATTACKS.items() if not chosen or name in chosen}
    main()
