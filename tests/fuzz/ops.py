"""Every op of the table with hostile arguments, run as a program of an untrusted peer is run, and differentiated.

Arguments are torch's own samples for its tests (``op_db``), changed at random; ops without samples have templates here.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import sys
import types
import unittest
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import nn

from model_factory.program.codec.programs import decode_program, encode_program
from model_factory.program.ir import Device, Expr, OpCall, Program, Ref, Size, TorchConst
from model_factory.program.ops import OPS
from model_factory.program.runtime.interpreter import Runner

warnings.simplefilter("ignore")
torch.set_num_threads(1)

TRIALS = 12
"""Changed calls of one op in a case."""

MOST_ELEMENTS = 100_000
"""Of a sample's tensor: larger ones only take time."""

LARGE = [2**31, 2**31 - 1, -(2**31), 2**30, 2**16, 46341, 2**28 + 1]
SMALL = [-3, -2, -1, 0, 1, 2, 3, 5, 8, 17, 64]
BEYOND = [2**63 - 1, -(2**63), 2**62, 2**32, 2**61 + 1, 3037000500]
FLOATS = [
    math.nan,
    math.inf,
    -math.inf,
    0.0,
    -0.0,
    -1.0,
    0.5,
    1.0,
    2.0,
    3.0,
    1e-300,
    1e300,
    -1e300,
    2.0**31,
    2.0**63,
    1e10,
]
STRINGS = """sum mean max min none area linear bilinear bicubic trilinear nearest nearest-exact zeros border reflection
reflect replicate circular constant same valid tanh floor trunc ortho forward backward fro nuc prod amax amin reduced
complete r raw left right lower higher midpoint gelsd gelsy gelss gels ij xy""".split()
DTYPES = [torch.float32, torch.float64, torch.int64, torch.bool, torch.complex64, torch.bfloat16, torch.float16]
DTYPES += [torch.int32, torch.int8, torch.uint8, torch.int16, torch.complex128, torch.uint16, torch.float8_e4m3fn]
Call = tuple[list[Any], dict[str, Any]]


def case(seed: int, note: Callable[[str], None]) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(2 if seed % 16 == 0 else 1)
    name = rng.choice(NAMES)
    note(f"{name}: samples")
    call = sample(name, rng)
    for trial in range(TRIALS):
        args, kwargs = plain(call)
        if trial:
            changes = rng.choice([1, 1, 1, 2, 3, 4])
            for _ in range(changes):
                change(args, kwargs, rng)
        note(f"{name} #{trial} {text(args)} {text(kwargs)}")
        with suppress(Exception):  # an error is a right answer
            run(name, args, kwargs, rng)


def run(name: str, args: list[Any], kwargs: dict[str, Any], rng: random.Random) -> None:
    """Write the call as a document, read the document, run it, and the gradients."""
    values: dict[str, Any] = {}
    steps: list[OpCall] = []
    encoded = [argument(item, values, steps, rng) for item in args]
    named = {key: argument(item, values, steps, rng) for key, item in kwargs.items()}
    if encoded and isinstance(encoded[0], Ref) and name.endswith("_") and rng.random() < 0.7:  # no leaf of autograd
        steps.append(OpCall(name="torch.clone", args=(encoded[0],), out="copy"))
        encoded[0] = Ref("copy")
    steps.append(OpCall(name=name, args=tuple(encoded), kwargs=named, out="y"))
    if values and rng.random() < 0.1:  # what the gradient relies on is changed after the check
        other = rng.choice(list(values))
        way = rng.choice(["torch.Tensor.data", "torch.Tensor.detach", "identity"])
        steps.append(OpCall(name=way, args=(Ref(other),), out="alias"))
        steps.append(OpCall(name="torch.Tensor.fill_", args=(Ref("alias"), rng.choice(LARGE + SMALL)), out="filled"))
    has_autocast = rng.random() < 0.1
    if not has_autocast and rng.random() < 0.1:
        steps.insert(0, OpCall(name="set_grad_enabled", args=(False,), out="grad"))
    before = {key: (value.clone(), value._version, value.shape) for key, value in tensors(values).items()}
    program = Program(inputs=tuple(values), steps=tuple(steps), result=Ref("y"))
    document = json.loads(json.dumps(encode_program(program)))
    with torch.autocast("cpu", enabled=has_autocast):
        result = Runner(decode_program(document)).run(nn.Identity(), list(values.values()))
    check_inputs(name, tensors(values), before)
    outputs = [item for item in leaves(result) if isinstance(item, torch.Tensor)]
    for output in outputs[:20]:
        if output.numel() < 1 << 24:
            output.clone()
    differentiable = [item for item in outputs[:20] if item.requires_grad and item.numel() < 1 << 24]
    if differentiable:
        double = rng.random() < 0.1
        grads = [
            torch.randn_like(item) if rng.random() < 0.8 else torch.ones((), dtype=item.dtype).expand_as(item)
            for item in differentiable
        ]
        wanted = [value for value in values.values() if isinstance(value, torch.Tensor) and value.requires_grad]
        found = torch.autograd.grad(differentiable, wanted, grads, create_graph=double, allow_unused=True)
        if double:
            again = [item for item in found if item is not None and item.requires_grad]
            if again:
                torch.autograd.grad([item.abs().sum() for item in again], wanted, allow_unused=True)


def tensors(values: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in values.items() if value.numel() < 10_000}


def check_inputs(name: str, values: dict[str, torch.Tensor], before: dict[str, Any]) -> None:
    """Inputs keep their shapes, and autograd notices each change: gradients rely on both."""
    for key, value in values.items():
        old, version, shape = before[key]
        is_index = not value.dtype.is_floating_point and not value.dtype.is_complex
        if value.shape != shape or (is_index and value._version == version and not torch.equal(value, old)):
            raise Unnoticed(f"{name} changes an input: {text(old)} is now {text(value)}")


class Unnoticed(BaseException):
    """An input changed in a way that a program must not have."""


def argument(  # noqa: C901  one arm per kind of argument
    value: Any, values: dict[str, Any], steps: list[OpCall], rng: random.Random
) -> Any:
    """Return a value as a program names it; a tensor becomes an input."""
    if isinstance(value, torch.Tensor):
        for name, other in values.items():
            if other is value:
                return Ref(name)
        name = f"x{len(values)}"
        values[name] = value
        return Ref(name)
    if isinstance(value, bool) or value is None or isinstance(value, str | float):
        return value
    if isinstance(value, int):
        if abs(value) > 2**31 or rng.random() < 0.05:
            return computed(value, values, steps, rng)
        return value
    if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
        return TorchConst(str(value).removeprefix("torch."))
    if isinstance(value, torch.device):
        return Device()
    if isinstance(value, torch.Size):
        value = tuple(value)
    if isinstance(value, slice):
        return slice(*(argument(item, values, steps, rng) for item in (value.start, value.stop, value.step)))
    if isinstance(value, list | tuple):
        items = [argument(item, values, steps, rng) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if value is Ellipsis:
        return value
    raise TypeError(f"{type(value)} is nothing that a program has")


def computed(value: int, values: dict[str, Any], steps: list[OpCall], rng: random.Random) -> Any:
    """An integer that no constant is: of a tensor, or by arithmetic."""
    if rng.random() < 0.5 and abs(value) < 2**63:
        name = f"x{len(values)}"
        values[name] = torch.tensor(value)
        steps.append(OpCall(name="torch.Tensor.item", args=(Ref(name),), out=f"n{len(steps)}"))
        return Ref(f"n{len(steps) - 1}")
    high, low = divmod(value, 2**31)
    return Size(Expr("add", (Expr("mul", (high if abs(high) <= 2**31 else 2**31, 2**31)), low)))


# Hostile changes.


def change(args: list[Any], kwargs: dict[str, Any], rng: random.Random) -> None:
    """Change one place of a call."""
    spots = list(places(args)) + list(places(kwargs))
    if not spots:
        return
    if rng.random() < 0.02:
        kwargs["out"] = rng.choice([torch.zeros(2, 3), torch.zeros(0), args[0], torch.zeros(4, dtype=torch.int64)])
        return
    holder, key = rng.choice(spots)
    others = [item for item in leaves([args, kwargs]) if isinstance(item, torch.Tensor)]
    with suppress(RuntimeError, MemoryError):  # torch does not make every tensor
        holder[key] = hostile(holder[key], rng, others)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of nested lists and dicts. Tuples become lists on the way."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        if isinstance(item, tuple):
            value[key] = list(item)
        yield value, key
        if isinstance(value[key], list | dict):
            yield from places(value[key])


def hostile(value: Any, rng: random.Random, others: list[torch.Tensor]) -> Any:  # noqa: C901  one arm per kind
    if isinstance(value, torch.Tensor):
        return hostile_tensor(value, rng, others)
    if rng.random() < 0.03:
        return rng.choice([None, True, 0, -1, 2**31, 0.5, math.nan, "mean", [], [1, 1], torch.ones(2)])
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([*SMALL, *LARGE, value + 1, value - 1, -value, value * 2, rng.choice(BEYOND)])
    if isinstance(value, float):
        return rng.choice(FLOATS)
    if isinstance(value, str):
        return rng.choice(STRINGS)
    if isinstance(value, list):
        return hostile_list(value, rng, others)
    if isinstance(value, torch.dtype):
        return rng.choice(DTYPES)
    if isinstance(value, slice):
        return slice(*(rng.choice([None, *SMALL, *LARGE]) for _ in range(3)))
    if value is None:
        return rng.choice([0, 1, 2**31, -1, 0.5, [1], "mean", True, torch.ones(3), torch.ones(0)])
    return value


def hostile_list(value: list[Any], rng: random.Random, others: list[torch.Tensor]) -> list[Any]:
    match rng.randrange(5):
        case 0:
            return []
        case 1:
            return value[:-1]
        case 2:
            return [*value, *value[-1:]]
        case 3:
            return [hostile(item, rng, others) for item in value]
        case _:
            return value * rng.choice([2, 9])


def hostile_tensor(  # noqa: C901, PLR0912  one arm per change
    value: torch.Tensor, rng: random.Random, others: list[torch.Tensor]
) -> torch.Tensor:
    value = value.detach()
    shape = list(value.shape)
    axis = rng.randrange(len(shape)) if shape else 0
    kind = rng.randrange(16)
    if kind <= 3:
        return spoiled(value, rng)
    if kind == 4:
        return made(shape, rng.choice(DTYPES), rng)
    if kind == 5 and shape:
        shape[axis] = 0
    elif kind == 6 and shape:
        shape[axis] = max(0, shape[axis] + rng.choice([-1, 1, -2, 7]))
    elif kind == 7:
        shape.insert(axis, rng.choice([1, 1, 2, 3]))
    elif kind == 8 and shape:
        del shape[axis]
    elif kind == 9:
        shape = []
    elif kind == 10 and shape:
        return made([1 if at == axis else size for at, size in enumerate(shape)], value.dtype, rng).expand(shape)
    elif kind == 11 and len(shape) > 1 and rng.random() < 0.6:
        return value.transpose(axis, rng.randrange(len(shape)))
    elif kind == 11 and len(shape) > 3:
        form = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        return value.contiguous(memory_format=form) if len(shape) < 6 else value
    elif kind == 12 and others:
        return rng.choice(others)
    elif kind == 13:
        shape = [rng.choice([0, 1, 2, 3, 5, 8]) for _ in range(rng.randrange(6))]
    elif kind == 14 and shape:
        shape = [min(size, 1) for size in shape]  # a program makes no larger shapes
        shape[axis] = 0
        shape[rng.randrange(len(shape))] = rng.choice([0, 2**31, 2**33, 2**20])
        return torch.empty(shape if 0 in shape else [0], dtype=value.dtype)
    elif kind == 15 and shape:
        return made([2 * size for size in shape], value.dtype, rng)[tuple(slice(None, None, 2) for _ in shape)]
    return made(shape, value.dtype, rng)


def made(shape: list[int], dtype: torch.dtype, rng: random.Random) -> torch.Tensor:
    if math.prod(shape) > MOST_ELEMENTS:
        shape = [min(size, 3) for size in shape]
    if dtype.is_floating_point or dtype.is_complex:
        wide = torch.complex64 if dtype.is_complex else torch.float32
        return torch.randn(shape, dtype=wide).to(dtype).requires_grad_(rng.random() < 0.7)
    return torch.randint(0, 2 if dtype == torch.bool else 5, shape).to(dtype)


def spoiled(value: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """The tensor with some or all numbers at a bound."""
    value = value.clone(memory_format=torch.contiguous_format)
    grad = rng.random() < 0.7
    if value.dtype == torch.bool or not value.numel():
        return value
    if value.dtype.is_floating_point or value.dtype.is_complex:
        numbers: list[Any] = [item for item in FLOATS if abs(item) < 1e4 or not math.isfinite(item)] + [
            1e30,
            -1e30,
            2.0**40,
        ]
        if value.dtype == torch.float64:
            numbers = FLOATS
    else:
        info = torch.iinfo(value.dtype)
        numbers = [info.min, info.max, info.min + 1, *(item for item in SMALL + LARGE if info.min <= item <= info.max)]
    flat = value.view(-1)
    for _ in range(rng.choice([1, 2, 5])):
        flat[rng.randrange(flat.numel())] = rng.choice(numbers)
    if rng.random() < 0.3:
        value.fill_(rng.choice(numbers))
    if value.dtype.is_floating_point or value.dtype.is_complex:
        value.requires_grad_(grad)
    return value


# Samples.

NAMES = [name for name in OPS if not name.startswith("set_")]


def sample(name: str, rng: random.Random) -> Call:
    """Arguments that the op accepts, as far as torch's tests or the templates have some."""
    short = name.rpartition(".")[2]
    options = [item for key in (name, short) for item in TEMPLATES.get(key, [])]
    if options and rng.random() < 0.5:
        return rng.choice(options)()
    for info in rng.sample(infos(name), len(infos(name))):
        found = op_samples(info, rng)
        if found:
            return rng.choice(found)
    if options:
        return rng.choice(options)()
    tensor = made([rng.choice([1, 2, 3, 4]) for _ in range(rng.choice([1, 2, 2, 3, 4]))], rng.choice(DTYPES), rng)
    return rng.choice(
        [
            ([tensor], {}),
            ([tensor, tensor.detach().clone()], {}),
            ([tensor, rng.choice([*SMALL, *LARGE])], {}),
            ([[2, 3]], {}),
            ([5], {}),
        ]
    )


def op_samples(info: Any, rng: random.Random) -> list[Call]:
    dtypes = [dtype for dtype in DTYPES if dtype in info.dtypes]
    if not dtypes:
        return []
    dtype = rng.choice(dtypes + [item for item in dtypes if item in (torch.float32, torch.float64, torch.int64)] * 3)
    grad = dtype in info.backward_dtypes and rng.random() < 0.8
    found: list[Call] = []
    with suppress(Exception):  # a sample that this machine cannot make
        for item in itertools.islice(info.sample_inputs("cpu", dtype, requires_grad=grad), 40):
            args, kwargs = [item.input, *item.args], dict(item.kwargs)
            tensors = [leaf for leaf in leaves([args, kwargs]) if isinstance(leaf, torch.Tensor)]
            if all(tensor.numel() <= MOST_ELEMENTS and tensor.layout == torch.strided for tensor in tensors):
                found.append((plain(args), plain(kwargs)))
    return found


def plain(value: Any) -> Any:
    """Copy a call, with tensors outside of the graph of their maker; strides stay."""
    if isinstance(value, torch.Tensor):
        shared = value.detach()
        overlaps = any(stride == 0 for stride in shared.stride())
        return (shared if overlaps else shared.clone()).requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return tuple(plain(item) for item in value) if type(value) is tuple else value


@cache
def infos(name: str) -> list[Any]:
    short = name.rpartition(".")[2]
    found = by_name()
    keys = [short, short.strip("_"), short.removeprefix("__r").strip("_"), short.removeprefix("__i").strip("_")]
    return next((found[key] for key in keys if key in found), [])


@cache
def by_name() -> dict[str, list[Any]]:
    sys.modules.setdefault("expecttest", stand_in())
    from torch.testing._internal.common_methods_invocations import op_db  # noqa: PLC0415  needs the stand-in

    found: dict[str, list[Any]] = {}
    for info in op_db:
        for name in {info.name, info.aten_name, *(alias.name for alias in info.aliases)}:
            found.setdefault(name.rpartition(".")[2], []).append(info)
    for name, other in {"truediv": "div", "floordiv": "floor_divide", "mod": "remainder", "and": "bitwise_and"}.items():
        found[name] = found[other]
    for name in ("or", "xor"):
        found[name] = found[f"bitwise_{name}"]
    return found


def stand_in() -> types.ModuleType:
    """torch's own tests import a package that only their assertions need."""
    module = types.ModuleType("expecttest")
    module.TestCase = unittest.TestCase  # type: ignore[attr-defined]
    return module


def ints(*shape: int, most: int = 4) -> torch.Tensor:
    return torch.randint(0, most, shape)


def floats(*shape: int) -> torch.Tensor:
    return torch.randn(shape).requires_grad_()


TEMPLATES: dict[str, list[Callable[[], Call]]] = {
    "embedding_bag": [
        lambda: ([ints(3, 4), floats(5, 3)], {"mode": "sum", "per_sample_weights": floats(3, 4)}),
        lambda: ([ints(6), floats(5, 3), torch.tensor([0, 2, 4])], {"mode": "mean", "padding_idx": 1}),
        lambda: ([ints(6), floats(5, 3), torch.tensor([0, 2, 4])], {"mode": "max", "scale_grad_by_freq": True}),
        lambda: (
            [ints(6), floats(5, 3), torch.tensor([0, 2, 6])],
            {"mode": "sum", "include_last_offset": True, "per_sample_weights": floats(6), "max_norm": 1.0},
        ),
        lambda: ([ints(6), floats(5, 3), torch.tensor([0, 2])], {"mode": "sum", "sparse": True}),
    ],
    "embedding": [
        lambda: ([ints(3, 4), floats(5, 3)], {"padding_idx": 1, "max_norm": 1.0, "scale_grad_by_freq": True})
    ],
    "fold": [lambda: ([floats(1, 12, 6), [4, 5], [2, 2]], {"dilation": 1, "padding": 0, "stride": [1, 2]})],
    "unfold": [
        lambda: ([floats(1, 3, 5, 5), [2, 2]], {"dilation": 1, "padding": 1, "stride": 2}),
        lambda: ([floats(4, 6), 1, 3, 2], {}),
    ],
    "affine_grid": [
        lambda: ([floats(2, 2, 3), [2, 3, 4, 5]], {"align_corners": True}),
        lambda: ([floats(2, 3, 4), [2, 3, 4, 5, 2]], {"align_corners": False}),
    ],
    "grid_sample": [
        lambda mode=mode, corners=corners, dtype=dtype: (
            [floats(2, 3, 4, 5).to(dtype), torch.randn(2, 3, 2, 2).to(dtype), *mode],
            {"align_corners": corners},
        )
        for mode in itertools.product(["bilinear", "nearest", "bicubic"], ["zeros", "border", "reflection"])
        for corners in (True, False)
        for dtype in (torch.float32, torch.float64)
    ],
    "max_unpool2d": [
        lambda: ([floats(1, 2, 2, 2), ints(1, 2, 2, 2, most=16), 2], {"stride": 2, "padding": 0, "output_size": [4, 4]})
    ],
    "max_unpool1d": [
        lambda: ([floats(1, 2, 2), ints(1, 2, 2, most=4), 2], {"stride": 2, "padding": 0, "output_size": [4]})
    ],
    "max_unpool3d": [lambda: ([floats(1, 2, 2, 2, 2), ints(1, 2, 2, 2, 2, most=64), 2], {"stride": 2, "padding": 0})],
    "upsample": [lambda: ([floats(1, 2, 3, 3)], {"size": None, "scale_factor": 2.0, "mode": "bilinear"})],
    "interpolate": [
        lambda rank=rank, mode=mode, antialias=antialias: (
            [floats(1, 2, *[3] * rank)],
            {"size": None, "scale_factor": 2.0, "mode": mode, "antialias": antialias},
        )
        for rank, mode, antialias in [
            (1, "linear", False),
            (2, "bilinear", True),
            (2, "bicubic", True),
            (2, "bicubic", False),
            (3, "trilinear", False),
            (2, "area", False),
            (2, "nearest", False),
            (2, "nearest-exact", False),
        ]
    ],
    "fractional_max_pool2d": [
        lambda: ([floats(1, 2, 6, 6), [2, 2]], {"output_size": [3, 3], "_random_samples": torch.rand(1, 2, 2)}),
        lambda: ([floats(1, 2, 6, 6), [2, 2]], {"output_ratio": [0.5, 0.5], "return_indices": True}),
    ],
    "fractional_max_pool3d": [
        lambda: (
            [floats(1, 2, 6, 6, 6), [2, 2, 2]],
            {"output_size": [3, 3, 3], "_random_samples": torch.rand(1, 2, 3)},
        ),
        lambda: ([floats(1, 2, 6, 6, 6), 2], {"output_ratio": 0.5, "return_indices": True}),
    ],
    "gumbel_softmax": [lambda: ([floats(2, 3)], {"tau": 1.0, "hard": True, "dim": -1})],
    **{
        f"lp_pool{rank}d": [lambda rank=rank: ([floats(1, 2, *[6] * rank), 2.0, 2], {"stride": 2, "ceil_mode": True})]
        for rank in (1, 2, 3)
    },
    "ctc_loss": [
        lambda: (
            [floats(8, 2, 5).log_softmax(2).detach().requires_grad_(), ints(2, 3) + 1, [8, 8], [3, 2]],
            {"blank": 0, "reduction": "mean", "zero_infinity": True},
        ),
        lambda: (
            [
                floats(8, 2, 5).log_softmax(2).detach().requires_grad_(),
                ints(5) + 1,
                torch.tensor([8, 7]),
                torch.tensor([3, 2]),
            ],
            {"blank": 0, "reduction": "none"},
        ),
    ],
    "multi_head_attention_forward": [
        lambda: (
            [
                floats(3, 2, 4),
                floats(3, 2, 4),
                floats(3, 2, 4),
                4,
                2,
                floats(12, 4),
                floats(12),
                None,
                None,
                False,
                0.0,
                floats(4, 4),
                floats(4),
            ],
            {"training": True, "need_weights": True, "key_padding_mask": torch.zeros(2, 3, dtype=torch.bool)},
        )
    ],
    "scaled_dot_product_attention": [
        lambda: (
            [floats(1, 2, 3, 4), floats(1, 2, 3, 4), floats(1, 2, 3, 4)],
            {"attn_mask": torch.randn(3, 3), "dropout_p": 0.0, "is_causal": False, "scale": 1.0, "enable_gqa": True},
        )
    ],
    "batch_norm": [
        lambda training=training: (
            [floats(2, 3, 4), torch.zeros(3), torch.ones(3), floats(3), floats(3), training, 0.1, 1e-5],
            {},
        )
        for training in (True, False)
    ]
    + [lambda: ([floats(2, 3, 4), torch.zeros(3), torch.ones(3), floats(3), floats(3), True, 0.1, 1e-5, False], {})],
    "instance_norm": [
        lambda: ([floats(2, 3, 4), torch.zeros(3), torch.ones(3), floats(3), floats(3), True, 0.1, 1e-5], {})
    ],
    "__setitem__": [
        lambda: ([torch.randn(4, 5), 1, torch.randn(5)], {}),
        lambda: ([torch.randn(4, 5), ints(3), torch.randn(3, 5)], {}),
        lambda: ([torch.randn(4, 5), (slice(0, 3), ints(2)), torch.randn(3, 2)], {}),
        lambda: ([torch.randn(4, 5), torch.rand(4, 5) > 0.5, 1.0], {}),
    ],
    "__getitem__": [
        lambda: ([floats(4, 5), 1], {}),
        lambda: ([floats(4, 5), (slice(0, 3), ints(2))], {}),
        lambda: ([floats(4, 5), (None, Ellipsis, ints(2))], {}),
    ],
    "getitem": [lambda: ([floats(4, 5), (slice(0, 3), ints(2))], {}), lambda: ([[1, 2, 3], 1], {})],
    "new_tensor": [lambda: ([floats(2), [[1, 2], [3, 4]]], {})],
    "tensor": [lambda: ([[[1, 2], [3, 4]]], {"dtype": torch.int8}), lambda: ([1.5], {})],
    "as_tensor": [lambda: ([[[1, 2], [3, 4]]], {"dtype": torch.float16})],
    "rand": [lambda: ([[2, 3]], {})],
    "randperm": [lambda: ([5], {})],
    "poisson": [lambda: ([torch.rand(3, 2)], {})],
    "random_": [lambda: ([torch.zeros(4, dtype=torch.int32), 0, 10], {}), lambda: ([torch.zeros(4)], {})],
    "copy_": [lambda: ([torch.zeros(4, 3), floats(3)], {})],
    "fill_diagonal_": [lambda: ([torch.zeros(4, 3), 1.0], {"wrap": True})],
    "chain_matmul": [lambda: ([floats(2, 3), floats(3, 4), floats(4, 2)], {})],
    "fftfreq": [lambda: ([8], {"d": 1.0})],
    "rfftfreq": [lambda: ([8], {"d": 1.0})],
    "type_as": [lambda: ([floats(2, 3), torch.zeros(2, dtype=torch.int8)], {})],
    **{
        name: [
            lambda dtype=dtype: (
                [torch.tensor([torch.iinfo(dtype).min, 7], dtype=dtype), torch.tensor(-1, dtype=dtype)],
                {},
            )
            for dtype in (torch.int8, torch.int16, torch.int32, torch.int64)
        ]
        + [lambda: ([torch.tensor([-(2**63), 5]), -1], {})]
        for name in """div divide floor_divide remainder fmod true_divide gcd lcm pow bitwise_left_shift div_
        __truediv__ bitwise_right_shift __floordiv__ __mod__ __ifloordiv__ __imod__ __rfloordiv__ __rmod__ __rpow__
        __pow__ pow_ float_power ldexp __itruediv__ __rdiv__ __rtruediv__ addcdiv""".split()
    },
}


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def text(value: Any) -> str:
    """Describe arguments in one line."""
    if isinstance(value, torch.Tensor):
        numbers = value.detach().reshape(-1)[:8].tolist() if value.numel() < 1000 else ""
        strides = "" if value.is_contiguous() else f"/{value.stride()}"
        return f"{str(value.dtype)[6:]}{list(value.shape)}{strides}{'g' if value.requires_grad else ''}{numbers}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}={text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(text, value)) + "]"
    return repr(value)
