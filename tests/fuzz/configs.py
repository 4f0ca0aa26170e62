"""Hostile configs with signatures: every class of ``torch.nn`` and every op, with templates and nesting.

``document`` makes a config in wire form from a seed. ``case`` does the work of a worker in the harness: parse,
construct on meta and on the CPU, run the example inputs, record and verify. ``test_configs`` also sends documents to a
server.
"""

from __future__ import annotations

import inspect
import json
import math
import random
import signal
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch

from fuzz import ops
from matrix.cases import CASES, Case, spec
from model_factory.config import ResolvedConfig, parse_config, resolve_mapping, wire_bytes
from model_factory.config.schema.signature_examples import DTYPES
from model_factory.errors import ConfigError, ModelFactoryError
from model_factory_server.backends.builtin import BuiltinBackend
from model_factory_server.export.exporter import export_model
from model_factory_server.export.out_of_memory import is_out_of_memory
from model_factory_server.settings.server_settings import BackendSettings
from model_factory_server.worker.construction import construct, size_of

warnings.simplefilter("ignore")

Document = dict[str, Any]

INTS = (0, 1, -1, 2, 3, 5, 8, 17, 64, 1023, 46341, 2**16, 2**30, 2**31 - 1, 2**31, -(2**31), 1 - 2**31)
BEYOND = (2**31 + 1, 2**32, 2**62, 2**63 - 1, -(2**63), 2**64, 2**100)
FLOATS = (0.0, -0.0, 0.5, 1.0, -1.0, 1e-30, 1e8, 1e30, 1e300, -1e300, 2.0**31, 2.0**63, math.nan, math.inf, -math.inf)
STRINGS = tuple(
    "zeros reflect replicate circular same valid nearest bilinear bicubic trilinear linear area mean sum max none "
    "batchmean tanh relu gelu complex128 float16 int64 cpu meta".split()
)
REPEATS = ("num_layers", "num_encoder_layers", "num_decoder_layers")  # a loop of Python: bounded by time
MOST_REPEATS = 6
MOST_BYTES = 1 << 28
MOST_INPUT = 1 << 20
SECONDS = 15.0


def case(seed: int, note: Callable[[str], None]) -> None:
    """Do the work of a worker in this process."""
    wire = document(seed)
    note(wire.decode(errors="backslashreplace"))
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        build(parse_config(wire))
    except (ModelFactoryError, OutOfTimeError):
        pass
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class OutOfTimeError(BaseException):
    """The case takes long, as a worker may: a worker has bounds on time."""


def _out_of_time(*_: Any) -> None:
    raise OutOfTimeError


def build(config: ResolvedConfig) -> None:
    """Construct and export a model as a worker does."""
    backend = BuiltinBackend(BackendSettings())
    try:
        planned = construct(backend, config, 1, "meta")
        if size_of(planned, "").weights_bytes > MOST_BYTES:
            return
    except OutOfTimeError:
        raise
    except Exception:  # noqa: BLE001, S110  a worker then constructs with real tensors, and a bound on memory
        pass
    model = construct(backend, config, 1, "cpu")
    if size_of(model, "").weights_bytes <= MOST_BYTES:
        export_model(model, config.model, refused={})


# Documents.


def document(seed: int) -> bytes:
    """Return a config in wire form."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    config = rng.choice([_of_module, _of_module, _of_modules, _of_op, _of_op])(rng)
    if rng.random() < 0.2:
        config = _through_the_language(config, rng)
    if rng.random() < 0.3:
        _mutate(config, rng, hostile=rng.random() < 0.5)
    return _wire(config)


def _wire(config: Document) -> bytes:
    """Return the wire form without the client's checks: a hostile client has none."""
    try:
        return wire_bytes(config)
    except ConfigError:
        return json.dumps(config, allow_nan=False).encode()


def _through_the_language(config: Document, rng: random.Random) -> Document:
    """Return the config after templates, references and copies of the config language; as written if refused."""
    layers = config["model"].get("sequential", {}).get("layers")
    if not layers:
        return config
    sizes = [rng.choice(INTS) for _ in range(3)]
    written = config | {
        "params": {"n": sizes[0], "list": sizes, "layer": layers[0]},
        "templates": {"layer": layers[0]},
        "model": {
            "sequential": {"layers": ["${params.layer}", {"_template_": "layer"}, *layers][: rng.randrange(1, 5)]}
        },
    }
    try:
        resolved: Document = resolve_mapping(written, {}).plain()
    except ConfigError:
        return config
    return resolved


def _of_module(rng: random.Random) -> Document:
    name, item = rng.choice(_module_cases())
    layer = {"_type_": f"nn.{name}", "_args_": [*item.args], **item.kwargs}
    changes = rng.choice([0, 1, 1, 1, 2, 3])
    layer = json.loads(_dumps(layer))
    for _ in range(changes):
        _change_spec(layer, rng)
    inputs = [] if item.inputs is None else [*item.inputs()]
    if len(inputs) > 1 or not all(isinstance(leaf, torch.Tensor) for leaf in inputs):
        return _graph(rng, {"m": layer}, "module:m", inputs, {})
    examples = {"x": _example(inputs[0], rng) if inputs else {"shape": [2, 4]}}
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        layer = rng.choice([
            lambda it: spec("nn.Sequential", it),
            lambda it: spec("nn.Sequential", spec("nn.Identity"), spec("nn.Sequential", it)),
            lambda it: spec("nn.ModuleList", [it, it]),
            lambda it: spec("nn.ModuleDict", {"a": it}),
            lambda it: spec("nn.TransformerEncoder", it, 2),
        ])(layer)  # fmt: skip
    config: Document = {"schema_version": 1, "model": {"sequential": {"layers": [layer]}}}
    return config | ({"signature": examples} if rng.random() < 0.95 else {})


def _of_modules(rng: random.Random) -> Document:
    """Several layers after each other."""
    layers = []
    first = None
    for _ in range(rng.randrange(2, 5)):
        name, item = rng.choice(_module_cases())
        layer = json.loads(_dumps({"_type_": f"nn.{name}", "_args_": [*item.args], **item.kwargs}))
        if rng.random() < 0.5:
            _change_spec(layer, rng)
        layers.append(layer)
        if first is None:
            first = item
    inputs = [] if first is None or first.inputs is None else [*first.inputs()]
    tensors = [leaf for leaf in inputs if isinstance(leaf, torch.Tensor)]
    example = _example(tensors[0], rng) if tensors else {"shape": [2, 4]}
    return {
        "schema_version": 1,
        "model": {"sequential": {"layers": layers}},
        "signature": {"x": example},
    }


def _of_op(rng: random.Random) -> Document:
    name = rng.choice(ops.NAMES)
    args, kwargs = ops.sample(name, rng)
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        ops.change(args, kwargs, rng)
    return _graph(rng, {}, f"op:{name}", args, kwargs)


def _graph(rng: random.Random, modules: Document, call: str, args: list[Any], kwargs: Document) -> Document:
    """Return a config with a call of tensors and constants; every tensor is an input, or filled by a step."""
    inputs: Document = {}
    steps: list[Document] = []

    def argument(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            name = f"x{len(inputs)}"
            inputs[name] = _example(value, rng)
            if value.numel() and rng.random() < (0.3 if value.is_floating_point() else 0.8) and value.numel() < 200:
                fill = (
                    rng.choice(value.detach().flatten().tolist()) if rng.random() < 0.7 else _scalar(rng, value.dtype)
                )
                if not isinstance(fill, complex):
                    steps.append({"call": "op:full_like", "args": [f"${name}", fill], "out": f"f{len(steps)}"})
                    return f"$f{len(steps) - 1}"
            return f"${name}"
        if isinstance(value, list | tuple):
            return [argument(item) for item in value]
        if isinstance(value, dict):
            return {str(key): argument(item) for key, item in value.items()}
        return value if value is None or type(value) in (bool, int, float, str) else str(value)

    step = {"call": call, "args": argument([*args]), "kwargs": argument(kwargs), "out": "y"}
    if not inputs:
        inputs["x"] = {"shape": [2, 3]}
    graph = {"inputs": [*inputs], "modules": modules, "steps": [*steps, step], "outputs": ["$y"]}
    return {"schema_version": 1, "model": {"graph": graph}, "signature": inputs}


@cache
def _module_cases() -> list[tuple[str, Case]]:
    return [(name, item) for name, items in CASES.items() for item in items if item.make is None and _is_plain(item)]


def _is_plain(item: Case) -> bool:
    try:
        _dumps([item.args, item.kwargs])
    except (TypeError, ValueError):
        return False
    return True


def _dumps(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def _example(tensor: torch.Tensor, rng: random.Random) -> Any:
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape = [*tensor.shape]
    if rng.random() < 0.15 and shape:
        shape[rng.randrange(len(shape))] = rng.choice([1, 2, 3, 7, 8, 33, 1025, 2**16, 2**31])
    if rng.random() < 0.05:
        shape = shape[1:] if rng.random() < 0.5 else [1, *shape]
    if math.prod(shape) > MOST_INPUT and rng.random() < 0.99:
        shape = [min(size, 9) for size in shape]
    shape = [max(1, size) for size in shape]
    if rng.random() < 0.05 or dtype not in DTYPES:
        dtype = rng.choice(DTYPES)
    return {"shape": shape, "dtype": dtype}


# Changes.


def _scalar(rng: random.Random, dtype: torch.dtype) -> Any:
    if dtype == torch.bool:
        return rng.random() < 0.5
    return rng.choice(FLOATS) if dtype.is_floating_point or dtype.is_complex else rng.choice(INTS)


def _change_spec(layer: Document, rng: random.Random) -> None:
    """Change an argument, or give another argument of the class."""
    spots = [(holder, key) for holder, key in _places(layer) if not str(key).startswith("_")]
    if spots and rng.random() < 0.6:
        holder, key = rng.choice(spots)
        holder[key] = _other(holder[key], key, rng)
        return
    cls = getattr(torch.nn, layer["_type_"].removeprefix("nn."), None)
    try:
        names = [
            name for name in inspect.signature(cls).parameters if name not in ("args", "kwargs", "device", "dtype")
        ]
    except (TypeError, ValueError):
        return
    if names[len(layer.get("_args_", ())) :]:
        name = rng.choice(names[len(layer.get("_args_", ())) :])
        layer[name] = _other(layer.get(name, 1), name, rng)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    for key, item in items:
        if key == "_type_":
            continue
        yield value, key
        if isinstance(item, list | dict):
            yield from _places(item)


def _other(value: Any, key: Any, rng: random.Random) -> Any:
    if key in REPEATS:
        return rng.choice([*range(MOST_REPEATS), -1])
    kind = rng.random()
    if kind < 0.1:
        return rng.choice(
            [None, True, "mean", [], [1, 1], [[2]], 0.5, {"a": 1}, spec("nn.Identity"), rng.choice(BEYOND)]
        )
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([*INTS, value + 1, value - 1, -value, value * 2, [rng.choice(INTS)] * rng.randrange(1, 4)])
    if isinstance(value, float):
        return _float(rng)
    if isinstance(value, str):
        return rng.choice(STRINGS)
    if isinstance(value, list):
        return rng.choice(
            [value[:-1], [*value, 1], [_other(item, key, rng) for item in value], value * 2, rng.choice(INTS)]
        )
    return rng.choice([*INTS, *STRINGS, True, None, _float(rng), [rng.choice(INTS) for _ in range(rng.randrange(4))]])


def _float(rng: random.Random) -> float:
    return rng.choice(FLOATS)


def _mutate(config: Document, rng: random.Random, *, hostile: bool) -> None:
    """Change any places of a document: also keys with a meaning in the language."""
    for _ in range(rng.randrange(1, 4)):
        spots = [(holder, key) for holder, key in _places(config) if key != "schema_version"]
        if not spots:
            return
        holder, key = rng.choice(spots)
        value = holder[key]
        if hostile and rng.random() < 0.3 and isinstance(holder, dict):
            del holder[key]
        elif not isinstance(value, dict) or rng.random() < 0.1:
            holder[key] = _other(value, key, rng)
