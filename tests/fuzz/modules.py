"""Hostile descriptors of stock modules: seeded cases, each run through the whole life of a module on a trainer.

A case is an honest module's document with up to four changes: of attributes, tensors, children, classes. The document
is decoded and rebuilt over tensors of a weights file; the module is called, forward and backward, copied, moved and
saved. Python's errors are allowed; crashes, reads outside of tensors and hangs are for the harness to notice.
"""

from __future__ import annotations

import copy
import json
import math
import random
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations

from matrix.cases import CASES
from model_factory.describe.describe import describe
from model_factory.descriptor.codec import decode_descriptor, encode_descriptor
from model_factory.descriptor.rebuild import rebuild
from model_factory.descriptor.stock import STOCK_CLASSES
from model_factory.descriptor.weights import DTYPES, map_weights, write_weights
from model_factory.documents import encode_document
from model_factory.errors import ModelFactoryError

Document = dict[str, Any]
Make = Callable[[], nn.Module]

MAX_ELEMENTS = 1 << 16
"""Of a tensor of a case; a larger tensor would only cost time."""

INTS = (0, 1, -1, 2, 3, 4, 5, 7, 8, 17, 257, 2**31 - 1, -(2**31), 2**31, 2**62, 2**63 - 1, -(2**63))
FLOATS = (
    0.0,
    -0.0,
    0.5,
    1.0,
    -1.0,
    2.5,
    1e-30,
    1e-8,
    1e8,
    1e30,
    3e38,
    1e300,
    math.nan,
    math.inf,
    -math.inf,
    0.9999999,
    1.0000001,
)
NAMED = {"nan": {"float": "nan"}, "inf": {"float": "inf"}, "-inf": {"float": "-inf"}}
SIZES = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 17, 33, 64)


def _norm(name: str, dim: int | None, make: Make) -> Make:
    return lambda: parametrizations.weight_norm(make(), name, dim)  # type: ignore[arg-type]


def _orthogonal(name: str, trivial: bool) -> Make:
    return lambda: parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map=name, use_trivialization=trivial)


def _fractional(dims: int) -> nn.Module:
    cls = (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)[dims - 2]
    samples = torch.rand(2, 4, dims)
    module: nn.Module = cls(2, output_size=3, return_indices=False, _random_samples=samples)
    return module


def _encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, activation="gelu"), 2)


def _masked() -> list[Any]:
    return [torch.randn(2, 5, 4), None, torch.tensor([[False] * 5, [False] * 3 + [True] * 2])]


def _lazy_parent() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(3, 2), nn.LazyBatchNorm2d(), nn.ReLU(inplace=True))


def _base_cases() -> list[tuple[str, Make, Callable[[], Any] | None]]:
    rows: list[tuple[str, Make, Callable[[], Any] | None]] = []
    for name, cases in CASES.items():
        for number, case in enumerate(cases):
            rows.append((f"{name}-{number}", lambda case=case, name=name: case.build(name), case.inputs))
    v, x1, x2, seq = _t(3, 4), _t(2, 4, 8), _t(2, 4, 6, 6), _t(5, 3, 4)
    for dim in (0, 1, -1, None):
        rows.append((f"weight_norm-linear-{dim}", _norm("weight", dim, lambda: nn.Linear(4, 5)), v))
        rows.append((f"weight_norm-conv-{dim}", _norm("weight", dim, lambda: nn.Conv2d(4, 6, 3)), x2))
        rows.append((f"weight_norm-lstm-{dim}", _norm("weight_hh_l0", dim, lambda: nn.LSTM(4, 6)), seq))
    rows.append(("weight_norm-gru", _norm("weight_ih_l0", 0, lambda: nn.GRU(4, 6, 2)), seq))
    rows.append(("weight_norm-convt", _norm("weight", 1, lambda: nn.ConvTranspose1d(4, 6, 3)), x1))
    for map_ in ("matrix_exp", "cayley", "householder"):
        rows += [(f"orthogonal-{map_}-{trivial}", _orthogonal(map_, trivial), v) for trivial in (True, False)]
    rows.append(("spectral-linear", lambda: parametrizations.spectral_norm(nn.Linear(4, 5)), v))
    rows.append(("spectral-conv", lambda: parametrizations.spectral_norm(nn.Conv2d(4, 5, 3), dim=1), x2))
    rows.append(("spectral-rnn", lambda: parametrizations.spectral_norm(nn.RNN(4, 6), "weight_hh_l0"), seq))
    rows.append(("fractional-2", lambda: _fractional(2), x2))
    rows.append(("fractional-3", lambda: _fractional(3), _t(2, 4, 4, 4, 4)))
    rows.append(("lazy", _lazy_parent, x2))
    rows.append(("encoder-mask", _encoder, _masked))
    rows.append(
        ("attention", lambda: nn.MultiheadAttention(8, 2, batch_first=True), lambda: [torch.randn(2, 3, 8)] * 3)
    )
    rows.append(
        ("attention-out", lambda: nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)), _t(2, 3, 8))
    )
    rows.append(
        ("sequential", lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.MaxPool2d(2), nn.Flatten()), x2)
    )
    rows.append(
        (
            "bag-in-sequential",
            lambda: nn.Sequential(nn.EmbeddingBag(7, 4, mode="max"), nn.ReLU()),
            lambda: [torch.randint(7, (3, 2))],
        )
    )
    rows.append(
        (
            "upsamples",
            lambda: nn.Sequential(
                nn.Upsample(scale_factor=(1.5, 2.0), mode="bicubic"), nn.Upsample(size=(3, 4), mode="area")
            ),
            x2,
        )
    )
    rows.append(("pixels", lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.PixelShuffle(2), nn.ChannelShuffle(2)), x2))
    return rows


def _t(*shape: int) -> Callable[[], Any]:
    return lambda: [torch.randn(shape).requires_grad_()]


class Base:
    """An honest module: the document, and the inputs."""

    def __init__(self, name: str, make: Make, inputs: Callable[[], Any] | None) -> None:
        self.name = name
        self.inputs = inputs
        self.document: Document = json.loads(encode_descriptor(describe(make())))


_BASES: list[Base] = []


def bases() -> list[Base]:
    """Return the honest modules, described once."""
    if not _BASES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            _BASES.extend(Base(*row) for row in _base_cases())
    return _BASES


_TYPES = sorted(STOCK_CLASSES)
_STRINGS = (
    "zeros reflect replicate circular same valid nearest bilinear bicubic trilinear linear area nearest-exact mean sum "
    "none max batchmean tanh relu LSTM GRU RNN_TANH RNN_RELU weight"
).split()


def hostile(rng: random.Random, old: Any = None) -> Any:
    """A value for an attribute, near to the old one or far from it."""
    kind = rng.random()
    if isinstance(old, dict) and len(old) == 1 and next(iter(old)) in {"tuple", "size"} and kind < 0.7:
        (key,) = old
        return {key: _sequence(rng, old[key])}
    if isinstance(old, list) and kind < 0.7:
        return _sequence(rng, old)
    if isinstance(old, bool) and kind < 0.7:
        return not old
    if isinstance(old, int) and not isinstance(old, bool) and kind < 0.8:
        return rng.choice((*INTS, old + 1, old - 1, -old, old * 2))
    if isinstance(old, float) and kind < 0.8:
        return _float(rng)
    if isinstance(old, str) and kind < 0.7:
        return rng.choice(_STRINGS)
    return rng.choice((
        lambda: rng.choice(INTS), lambda: _float(rng), lambda: None, lambda: rng.random() < 0.5,
        lambda: rng.choice(_STRINGS), lambda: {"tuple": [rng.choice(INTS) for _ in range(rng.randrange(5))]},
        lambda: [rng.choice((*SIZES, *INTS)) for _ in range(rng.randrange(7))],
        lambda: {"tuple": [_float(rng), _float(rng)]},
        lambda: {"stock": "torch.nn.functional.relu"}, lambda: {"torch": "float64"},
        lambda: {"tuple": [2, 2]}, lambda: {"tuple": [1, 1, 1]},
    ))()  # fmt: skip


def _float(rng: random.Random) -> Any:
    value = rng.choice(FLOATS)
    return NAMED.get(repr(value), value)


def _sequence(rng: random.Random, old: list[Any]) -> list[Any]:
    new = list(old)
    match rng.randrange(4):
        case 0 if new:
            new[rng.randrange(len(new))] = hostile(rng, new[0]) if rng.random() < 0.3 else rng.choice(INTS)
        case 1 if new:
            new.pop()
        case 2:
            new.append(new[-1] if new else 1)
        case _:
            new = [rng.choice(INTS) if isinstance(item, int) else hostile(rng, item) for item in new]
    return new


def change_attribute(rng: random.Random, document: Document) -> None:
    nodes = [node for node in document["modules"] if node["attributes"]]
    if nodes:
        attributes = rng.choice(nodes)["attributes"]
        entry = rng.choice(attributes)
        if rng.random() < 0.04:
            attributes.remove(entry)
        else:
            entry[1] = hostile(rng, entry[1])


def change_many_sizes(rng: random.Random, document: Document) -> None:
    """All attributes with one old number get one new number, with the tensors' sizes of that number."""
    sizes = sorted({size for node in document["tensors"] for size in node[2] or ()})
    if not sizes:
        return change_attribute(rng, document)
    old, new = rng.choice(sizes), rng.choice(SIZES)
    for node in document["tensors"]:
        if node[2] is not None and (rng.random() < 0.8):
            node[2] = [new if size == old else size for size in node[2]]
    if rng.random() < 0.5:
        for node in document["modules"]:
            for entry in node["attributes"]:
                if entry[1] == old and type(entry[1]) is int:
                    entry[1] = new
    return None


def change_tensor(rng: random.Random, document: Document) -> None:  # noqa: C901  one case per change
    if not document["tensors"]:
        return change_attribute(rng, document)
    node = rng.choice(document["tensors"])
    shape = list(node[2] or ())
    match rng.randrange(9):
        case 0 | 1 if shape:
            shape[rng.randrange(len(shape))] = rng.choice(SIZES)
        case 2 if shape:
            shape.pop(rng.randrange(len(shape)))
        case 3:
            shape.insert(rng.randrange(len(shape) + 1), rng.choice((1, 1, 2, 0)))
        case 4:
            rng.shuffle(shape)
        case 5:
            node[1] = rng.choice(
                [
                    "float64",
                    "float16",
                    "bfloat16",
                    "int64",
                    "uint8",
                    "bool",
                    "complex64",
                    "float8_e4m3fn",
                    "int32",
                    "uint16",
                ]
            )
            if not node[1].startswith(("float", "bfloat", "complex")):
                node[3] = False
        case 6:
            order = list(range(len(shape)))
            rng.shuffle(order)
            node[5] = [] if order == sorted(order) else order
        case 7:
            shape = None  # type: ignore[assignment]
        case _:
            shape = [rng.choice(SIZES) for _ in range(rng.randrange(6))]
    node[2] = shape
    if node[5] and sorted(node[5]) != list(range(len(shape or ()))):
        node[5] = []
    return None


def change_tables(rng: random.Random, document: Document) -> None:
    node = rng.choice(document["modules"])
    table = rng.choice([node["parameters"], node["buffers"]])
    if not table:
        return change_tensor(rng, document)
    entry = rng.choice(table)
    match rng.randrange(4):
        case 0:
            entry[1] = None
        case 1:
            table.remove(entry)
        case 2 if document["tensors"]:
            entry[1] = rng.randrange(len(document["tensors"]))
        case _:
            other = rng.choice(table)
            entry[1], other[1] = other[1], entry[1]
    return None


def change_children(rng: random.Random, document: Document) -> None:
    modules = document["modules"]
    parents = [node for node in modules if node["children"]]
    if not parents:
        return wrap(rng, document)
    children = rng.choice(parents)["children"]
    entry = rng.choice(children)
    match rng.randrange(4):
        case 0:
            other = rng.choice(children)
            entry[1], other[1] = other[1], entry[1]
        case 1:
            entry[1] = rng.randrange(1, len(modules))
        case 2:
            entry[1] = graft(rng, document)
        case _:
            children.remove(entry)
    return None


def graft(rng: random.Random, document: Document) -> int:
    """Append another honest module's tables, and return the position of its root."""
    other = copy.deepcopy(rng.choice(bases()).document)
    modules, tensors = len(document["modules"]), len(document["tensors"])
    for node in other["modules"]:
        for entry in node["children"]:
            entry[1] = None if entry[1] is None else entry[1] + modules
        for entry in (*node["parameters"], *node["buffers"]):
            entry[1] = None if entry[1] is None else entry[1] + tensors
        for entry in node["attributes"]:
            if isinstance(entry[1], dict) and "tensor" in entry[1]:
                entry[1]["tensor"] += tensors
    for node in other["tensors"]:
        node[0] = f"graft{tensors}.{node[0]}"
    document["modules"] += other["modules"]
    document["tensors"] += other["tensors"]
    return modules


def wrap(rng: random.Random, document: Document) -> None:
    """Put the root into a Sequential, or a weight of a module below a parametrization."""
    root = document["modules"][0]
    outer = {**root, "kind": "stock", "type": "nn.Sequential", "attributes": [], "parameters": [], "buffers": []}
    document["modules"].append(root)
    document["modules"][0] = {**outer, "children": [["0", len(document["modules"]) - 1]]}


def change_type(rng: random.Random, document: Document) -> None:
    rng.choice(document["modules"])["type"] = rng.choice(_TYPES)


CHANGES = (
    *[change_attribute] * 10, *[change_tensor] * 6, *[change_many_sizes] * 3, change_tables, change_tables,
    change_children, change_children, wrap, change_type,
)  # fmt: skip


def prune(document: Document) -> None:
    """Drop the modules and tensors that the root no longer reaches."""
    modules = document["modules"]
    reached: dict[int, int] = {}
    pending = [0]
    while pending:
        index = pending.pop()
        if index not in reached:
            reached[index] = len(reached)
            pending += [child for _, child in modules[index]["children"] if child is not None]
    document["modules"] = [modules[index] for index in reached]
    for node in document["modules"]:
        node["children"] = [[name, None if child is None else reached[child]] for name, child in node["children"]]


def make_document(rng: random.Random) -> tuple[Base, Document]:
    base = rng.choice(bases())
    document = copy.deepcopy(base.document)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 4))):
        rng.choice(CHANGES)(rng, document)
    prune(document)
    return base, document


_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}


def make_tensors(rng: random.Random, document: Document) -> dict[str, torch.Tensor]:  # noqa: C901  one case per style
    """Tensors that fit the document, with values that may be hostile."""
    tensors = {}
    style = rng.choice(["plain", "plain", "plain", "huge", "nan", "inf", "negative", "mixed"])
    for name, dtype_name, shape, _, _, order, _ in document["tensors"]:
        dtype = _DTYPES.get(dtype_name)
        if shape is None or dtype is None or any(type(size) is not int or size < 0 for size in shape):
            continue
        stored = [shape[axis] for axis in order] or shape
        if math.prod(stored) > MAX_ELEMENTS:
            continue
        value = torch.randn(stored, dtype=torch.float64)
        match style:
            case "huge":
                value *= 1e30
            case "nan":
                value[value > 1] = math.nan
            case "inf":
                value[value > 1] = math.inf
            case "negative":
                value = -value.abs() * 100
            case "mixed":
                value = torch.where(value > 0, value * 1e9, -math.inf)
        if dtype is torch.bool:
            tensors[name] = value > 0
        elif not dtype.is_floating_point and not dtype.is_complex:
            tensors[name] = (value.nan_to_num(0, 9, -9).clamp(-1e9, 1e9) * 3).to(torch.int64).to(dtype)
        else:
            tensors[name] = value.to(torch.float32).to(dtype)
    return tensors


def through_file(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Write and map a weights file; copies, since a mapping hides reads beyond a tensor."""
    with tempfile.TemporaryFile(buffering=0) as file:
        write_weights(file, tensors)
        return {name: tensor.clone() for name, tensor in map_weights(file).items()}


def random_inputs(rng: random.Random) -> list[Any]:
    """Arguments of any shape."""
    inputs: list[Any] = []
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        shape = [rng.choice((0, 1, 2, 3, 4, 4, 5, 6, 8)) for _ in range(rng.randrange(6))]
        match rng.randrange(8):
            case 0:
                inputs.append(torch.randint(-2, 8, shape))
            case 1:
                inputs.append(torch.randn(shape).double())
            case 2:
                inputs.append(None)
            case 3:
                inputs.append(torch.randint(2**62, shape) * rng.choice((1, -1)))
            case 4:
                inputs.append(torch.full(shape, rng.choice((math.nan, math.inf, 1e30))))
            case _:
                inputs.append(torch.randn(shape).requires_grad_())
    return inputs


def exercise(rng: random.Random, module: nn.Module, base: Base) -> None:
    """Use a module as a trainer does."""
    with suppress(Exception):
        repr(module)
    with suppress(Exception):
        module.state_dict()
    for mode in (True, False):
        for attempt in range(3):
            with suppress(Exception):
                module.train(mode)
            with suppress(Exception):
                inputs = list(base.inputs()) if base.inputs is not None and attempt < 2 else random_inputs(rng)
                with torch.set_grad_enabled(attempt != 1):
                    result = module(*inputs)
                flat = [item for item in torch.utils._pytree.tree_leaves(result) if isinstance(item, torch.Tensor)]
                loss = sum(item.abs().double().sum() for item in flat if item.requires_grad)
                if isinstance(loss, torch.Tensor):
                    loss.backward()  # type: ignore[no-untyped-call]
    with suppress(Exception):
        copy.deepcopy(module).double()
    with suppress(Exception):
        module.load_state_dict(module.state_dict())
    with suppress(Exception):
        module.bfloat16()(*list(base.inputs() if base.inputs else ()))
    with suppress(Exception):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def case(seed: int, note: Callable[[str], None]) -> None:
    """Rebuild the module of a seed and use the module; an error other than a refusal leaves the case."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    base, document = make_document(rng)
    note(f"{base.name}: {changes(base, document)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tensors = through_file(make_tensors(rng, document))
            module = rebuild(decode_descriptor(encode_document(document)), tensors)
        except ModelFactoryError:
            return
        exercise(rng, module, base)


def changes(base: Base, document: Document) -> str:
    """The attributes and tensors of a document that the honest one lacks."""
    honest = [[node["type"], entry] for node in base.document["modules"] for entry in node["attributes"]]
    attributes = [[node["type"], entry] for node in document["modules"] for entry in node["attributes"]]
    tensors = [node for node in document["tensors"] if node not in base.document["tensors"]]
    types = [node["type"] for node in document["modules"]]
    return f"{types} {[item for item in attributes if item not in honest]} {tensors}"[:2000]
