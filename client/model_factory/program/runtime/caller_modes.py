"""Modes of a program's caller: states of the process that a forward may ask for, as conditions of a program."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType

import torch

from model_factory.errors import FormatError
from model_factory.program.recorded_program import Mode
from model_factory.program.torch_names import torch_dtype, torch_name

GRAD = "grad"
"""Whether gradients are enabled."""

INFERENCE = "inference"
"""Whether the inference mode is on."""

IS_CUDA = "is_cuda"
"""Whether the tensors of the call are on a GPU of NVIDIA, and not on the CPU; other kinds of devices are neither."""

DISTRIBUTED = "distributed"
"""Whether the process is one of several processes of ``torch.distributed``."""

AUTOCAST = "autocast "
"""Prefix of a kind of device: whether autocast is on."""

AUTOCAST_DTYPE = "autocast_dtype "
"""Prefix of a kind of device: name of the dtype of autocast."""

REQUIRES_GRAD = "requires_grad "
"""Prefix of the name of an input: whether the tensor of the call requires gradients."""

_KINDS = ("cpu", "cuda", "mps", "xpu", "hpu")


def check_mode(name: str, value: bool | str) -> None:
    """Check a condition from an untrusted peer.

    Raises:
        FormatError: the mode is unknown, or the value has another type.

    Example:
        >>> check_mode(GRAD, True)
    """
    prefix, _, kind = name.rpartition(" ")
    is_flag = name in {GRAD, INFERENCE, IS_CUDA, DISTRIBUTED} or name.startswith(REQUIRES_GRAD)
    if is_flag or (f"{prefix} " == AUTOCAST and kind in _KINDS):
        if isinstance(value, bool):
            return
    elif f"{prefix} " == AUTOCAST_DTYPE and kind in _KINDS and isinstance(value, str):
        torch_dtype(value)
        return
    raise FormatError(f"a recorded program has the unknown condition {name!r} on its caller")


def mode_value(
    name: str, device: torch.device, inputs: Mapping[str, torch.Tensor] = MappingProxyType({})
) -> bool | str:
    """Return the present value of a mode, for a run on ``device`` with ``inputs``.

    Example:
        >>> with torch.no_grad():
        ...     mode_value(GRAD, torch.device("cpu"))
        False
    """
    if name == GRAD:
        return torch.is_grad_enabled()
    if name == INFERENCE:
        return torch.is_inference_mode_enabled()
    if name == DISTRIBUTED:
        return torch.distributed.is_available() and torch.distributed.is_initialized()
    if name == IS_CUDA:
        return {"cpu": False, "cuda": True}.get(device.type, device.type)  # no program is recorded for other kinds
    if name.startswith(REQUIRES_GRAD):
        tensor = inputs.get(name.removeprefix(REQUIRES_GRAD))
        return tensor is not None and tensor.requires_grad
    kind = name.rpartition(" ")[2]
    if name.startswith(AUTOCAST_DTYPE):
        return torch_name(torch.get_autocast_dtype(kind))
    return torch.is_autocast_enabled(kind)


@contextmanager
def modes_entered(modes: Iterable[Mode]) -> Iterator[None]:
    """Enter modes that every machine has: gradients, inference, and autocast of the CPU.

    Example:
        >>> with modes_entered([(GRAD, False)]):
        ...     torch.is_grad_enabled()
        False
    """
    wanted = dict(modes)
    with ExitStack() as stack:
        if wanted.get(INFERENCE):
            stack.enter_context(torch.inference_mode())
        elif GRAD in wanted:
            stack.enter_context(torch.set_grad_enabled(bool(wanted[GRAD])))
        if wanted.get(f"{AUTOCAST}cpu"):
            name = wanted.get(f"{AUTOCAST_DTYPE}cpu")
            stack.enter_context(torch.autocast("cpu", torch_dtype(name) if isinstance(name, str) else None))
        yield
