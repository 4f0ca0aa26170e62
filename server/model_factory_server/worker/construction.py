"""Constructing a component within the operator's bounds: the size is known before the first tensor is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from model_factory.checkpoint.checkpoint import Checkpoint
from model_factory.config import ModelConfig, ResolvedConfig
from model_factory.config.schema.check import WEIGHTS_PATH
from model_factory.descriptor.stock import is_stock
from model_factory.descriptor.stock_checks import check_stock_module
from model_factory.errors import BuildError, ConfigError, FormatError, LimitError, StoreError, plain_text
from model_factory.limits import MIB
from model_factory.program.runtime.graph_model import GRAPH_MODULES
from model_factory.program.torch_names import torch_dtype
from model_factory_server.backends import Backend
from model_factory_server.backends.redaction import without_paths
from model_factory_server.export.example_inputs import materialise
from model_factory_server.export.out_of_memory import is_out_of_memory
from model_factory_server.settings.server_settings import LimitSettings
from model_factory_server.worker.files.file_guard import GUARD
from model_factory_server.worker.run_in_fork import run_in_fork
from model_factory_server.worker.sandbox import limit_memory
from model_factory_server.worker.weights_placement import AllocationLog, Placement

T = TypeVar("T")

_CONSTRUCTION_BYTES = 1024 * MIB  # for temporary objects of constructors


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The size of a model; shared tensors and modules count once."""

    weights_bytes: int
    """Bytes of parameters and buffers after the cast."""
    modules: int
    """Number of modules."""


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """Facts about a model before its tensors are made."""

    size: ModelSize
    placement: Placement | None
    """Where constructors can make tensors inside the weights file; ``None`` where unknown or not wanted."""


def construct(backend: Backend, config: ResolvedConfig, seed: int, device_kind: str) -> nn.Module:
    """Construct a component in this process; ``seed`` sets the process's random state.

    Lazy modules get their shapes if the config's ``signature`` gives examples.

    Raises:
        ConfigError: the config names or passes something wrong.
        BuildError: a constructor fails.

    Example:
        >>> from model_factory.config import parse_config
        >>> from model_factory_server.backends.builtin import BuiltinBackend
        >>> from model_factory_server.settings.server_settings import BackendSettings
        >>> config = parse_config(b'{"schema_version":1,"model":{"sequential":{"layers":[{"_type_":"nn.ReLU"}]}}}')
        >>> construct(BuiltinBackend(BackendSettings()), config, seed=0, device_kind="cpu").graph_modules.layer0
        ReLU()
    """
    torch.manual_seed(seed)
    with torch.device(device_kind):
        model = backend.construct(config)
        _check_stock_modules(model, config)  # before the first forward
        materialise(model, config.model)
    _check_stock_modules(model, config)
    return model


def _check_stock_modules(model: nn.Module, config: ResolvedConfig) -> None:
    """Check the attributes and tensors of every torch module that kernels trust.

    Raises:
        ConfigError: an attribute or tensor is wrong; the error has the place in the config, where known.
    """
    for name, module in model.named_modules():
        try:
            if is_stock(module):
                check_stock_module(module)
        except FormatError as error:
            _, _, below = name.partition(f"{GRAPH_MODULES}.")
            part, _, path = below.partition(".")
            raise ConfigError(
                f"{path and f'{path}: '}{error}", path=config.model.module_paths.get(part, ("model",))
            ) from error


def load_checkpoint(model: nn.Module, config: ModelConfig, path: Path | None) -> str:
    """Load the checkpoint of a config into a constructed model, with torch's ``load_state_dict``.

    ``path`` is the file or folder of the operator; ``None`` for a config without a checkpoint. A tied tensor needs one
    name only.

    Returns:
        Missing and unexpected tensors in words; empty if there are none.

    Raises:
        ConfigError: the checkpoint does not fit the model, or the file is not a state dict.
        BuildError: the file cannot be read.
    """
    weights = config.weights
    if path is None or weights is None:
        return ""
    checkpoint = Checkpoint(path, prefixes=weights.prefixes, strict=weights.strict, entry=weights.entry)
    label = f"checkpoint {weights.name!r}"

    def public(error: Exception) -> str:
        text = without_paths(plain_text(error).replace(str(path), label))
        return text if label in text else f"{label}: {text}"

    try:
        state = checkpoint.read(writable=False)
        result = model.load_state_dict(state, strict=False)
        named = model.state_dict(keep_vars=True)
        loaded = {id(named[name]) for name in state if name in named}
        missing = [name for name in result.missing_keys if name not in named or id(named[name]) not in loaded]
        checkpoint.compare(missing, result.unexpected_keys)
    except (FormatError, RuntimeError) as error:  # of load_state_dict: sizes differ
        if is_out_of_memory(error):
            raise
        raise ConfigError(public(error), path=WEIGHTS_PATH) from None
    except StoreError as error:
        raise BuildError(public(error), path=WEIGHTS_PATH) from error
    return f"{label}: {checkpoint.difference}" if checkpoint.difference else ""


def plan_model(
    limits: LimitSettings,
    device_kind: str,
    construct_on: Callable[[str], nn.Module],
    dtype: str,
    *,
    placed: bool,
) -> ModelPlan | None:
    """Return the size of a model, and with ``placed`` its placement; ``None`` where only a real construction can tell.

    ``construct_on`` constructs the model on a device.

    Raises:
        LimitError: planning took too long.
    """

    def plan() -> ModelPlan:
        with AllocationLog() as allocations:
            model = construct_on("meta")
        return ModelPlan(size_of(model, dtype), allocations.placement(model) if placed else None)

    return plan_in_fork(limits, device_kind, plan)


def plan_in_fork(limits: LimitSettings, device_kind: str, plan: Callable[[], T]) -> T | None:
    """Return the result of work on the meta device, done in a fork; ``None`` where the work failed.

    The work fails if a constructor needs real tensors, or if the config is wrong. The caller then constructs the model
    with real tensors; on the CPU the memory of this process is first limited to the needs of the largest allowed model.

    Raises:
        LimitError: the work took too long.
    """
    try:
        found = run_in_fork(lambda: (plan(), GUARD.observed()), limits.plan_timeout)
    except TimeoutError:
        raise LimitError(
            f"planning the model took longer than the {limits.plan_timeout:g} seconds, or the "
            f"{limits.build_cpu_timeout:g} seconds of processor time, that this server allows"
        ) from None
    if found is None:
        if device_kind == "cpu":
            limit_memory(2 * limits.max_weights_bytes + _CONSTRUCTION_BYTES)
        return None
    result, observed = found
    GUARD.add(observed)
    return result


def size_of(model: nn.Module, dtype: str) -> ModelSize:
    """Return the size of a model after a cast to ``dtype``; an empty ``dtype`` leaves tensors unchanged.

    Example:
        >>> size_of(nn.Linear(3, 4), "float64")
        ModelSize(weights_bytes=128, modules=1)
    """
    cast_bytes = torch_dtype(dtype).itemsize if dtype else 0
    tensors = {id(item): item for item in [*model.parameters(), *model.buffers()]}

    def itemsize(tensor: torch.Tensor) -> int:
        return cast_bytes if cast_bytes and (tensor.is_floating_point() or tensor.is_complex()) else tensor.itemsize

    known = [item for item in tensors.values() if not torch.nn.parameter.is_lazy(item)]
    return ModelSize(sum(item.numel() * itemsize(item) for item in known), sum(1 for _ in model.modules()))


def check_size(limits: LimitSettings, size: ModelSize) -> None:
    """Refuse a model over a bound.

    Raises:
        LimitError: the model has too many bytes of weights, or too many modules.

    Example:
        >>> check_size(LimitSettings(max_modules=2), ModelSize(weights_bytes=0, modules=3))
        Traceback (most recent call last):
        model_factory.errors.LimitError: the model has 3 modules; this server builds at most 2
    """
    if size.weights_bytes > limits.effective_max_weights_bytes:
        raise LimitError(
            f"the model has {size.weights_bytes} bytes of weights; this server builds at most "
            f"{limits.effective_max_weights_bytes}"
        )
    if size.modules > limits.max_modules:
        raise LimitError(f"the model has {size.modules} modules; this server builds at most {limits.max_modules}")
