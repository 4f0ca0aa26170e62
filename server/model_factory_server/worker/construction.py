"""Constructing a component within the operator's bounds: its size is known before its tensors are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from model_factory.config import ResolvedConfig
from model_factory.errors import LimitError
from model_factory.limits import MIB
from model_factory.program.torch_names import torch_dtype
from model_factory_server.backends import Backend
from model_factory_server.export.example_inputs import materialise
from model_factory_server.settings.server_settings import LimitSettings
from model_factory_server.worker.file_guard import GUARD
from model_factory_server.worker.run_in_fork import run_in_fork
from model_factory_server.worker.sandbox import limit_memory

T = TypeVar("T")

_ROOM_BYTES = 1024 * MIB  # for what constructors make on the way


def construct(backend: Backend, config: ResolvedConfig, seed: int, device_kind: str) -> nn.Module:
    """Build a component in this process; the process's random state is set by ``seed``.

    Lazy modules get their shapes if the config's ``signature`` gives examples.

    Raises:
        ConfigError: the config names or passes something wrong.
        BuildError: a constructor fails.
    """
    torch.manual_seed(seed)
    with torch.device(device_kind):
        model = backend.construct(config)
        materialise(model, config.model)
    return model


def planned(limits: LimitSettings, device_kind: str, plan: Callable[[], T]) -> T | None:
    """Return what a build without tensors comes to; None where a constructor needs real ones or something is wrong.

    Then they are made next, with the memory that the largest model allowed would take.

    Raises:
        LimitError: it took too long.
    """
    try:
        found = run_in_fork(lambda: (plan(), GUARD.seen()), limits.plan_timeout)
    except TimeoutError:
        raise LimitError(
            f"finding out the model's size took longer than the {limits.plan_timeout:g} seconds, or the "
            f"{limits.build_cpu_timeout:g} of processor time, that this server allows"
        ) from None
    if found is None:
        if device_kind == "cpu":
            limit_memory(2 * limits.max_weights_bytes + _ROOM_BYTES)
        return None
    result, seen = found
    GUARD.add(seen)
    return result


def size_of(model: nn.Module, dtype: str) -> tuple[int, int]:
    """Bytes of parameters and buffers once they are cast, and modules; what is used twice counts once."""
    cast = torch_dtype(dtype).itemsize if dtype else 0
    tensors = {id(item): item for item in [*model.parameters(), *model.buffers()]}

    def itemsize(tensor: torch.Tensor) -> int:
        return cast if cast and (tensor.is_floating_point() or tensor.is_complex()) else tensor.itemsize

    known = [item for item in tensors.values() if not torch.nn.parameter.is_lazy(item)]
    return sum(item.numel() * itemsize(item) for item in known), sum(1 for _ in model.modules())


def check_size(limits: LimitSettings, size: tuple[int, int]) -> None:
    """Refuse a model of so many bytes and modules if it is over a bound.

    Raises:
        LimitError: it is.
    """
    weights, modules = size
    if weights > limits.most_weights_bytes:
        raise LimitError(
            f"the model has {weights} bytes of weights; this server builds at most {limits.most_weights_bytes}"
        )
    if modules > limits.max_modules:
        raise LimitError(f"the model has {modules} modules; this server builds at most {limits.max_modules}")
