"""Example inputs from a config's ``signature``: make the inputs, run the model, note the calls of its blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from model_factory.config import ModelConfig
from model_factory.descriptor.call_checks import call_check
from model_factory.descriptor.stock import stock_type
from model_factory.errors import CallSignatureError, ConfigError, GraphExecutionError, plain_text
from model_factory.program.call_signature import call_signature, rebuild_arguments
from model_factory.program.forward_signature import ForwardSignature
from model_factory.program.torch_names import torch_dtype
from model_factory_server.export.restored_after import restored_after

DEFAULT_DTYPE = "float32"

Call = tuple[str, dict[str, Any]]
"""Path of a module, and the arguments of its forward by name."""


def materialise(model: nn.Module, config: ModelConfig) -> None:
    """Give lazy parameters their shapes by a run on the config's example inputs, if the config has a signature.

    Raises:
        ConfigError: the model does not run on the example inputs.
    """
    if config.signature is not None and any(map(nn.parameter.is_lazy, [*model.parameters(), *model.buffers()])):
        with _evaluating(model):
            _run(model, config.signature)


def calls_of_blocks(
    model: nn.Module, blocks: Mapping[str, nn.Module], config: ModelConfig, *, source: bool = False
) -> list[Call]:
    """Run the model on the config's example inputs and return the calls of ``blocks`` (by path).

    Calls of one block that differ only in values are returned once. The model is restored. ``source`` is whether a
    block may be sent as source code; source code may write to parameters.

    Raises:
        ConfigError: the model does not run on the example inputs.
    """
    if config.signature is None:
        return []
    with noted_calls(blocks) as calls, restored_after(model, parameters=source), _evaluating(model):
        _run(model, config.signature)
    return calls


@contextmanager
def noted_calls(blocks: Mapping[str, nn.Module]) -> Iterator[list[Call]]:
    """Note the calls of ``blocks`` (by path); calls that differ only in values are noted once.

    Example:
        >>> layer = nn.ReLU()
        >>> with noted_calls({"0": layer}) as calls:
        ...     _ = layer(torch.ones(1)), layer(torch.zeros(1))
        >>> calls
        [('0', {'input': tensor([1.])})]
    """
    calls: list[Call] = []
    seen: list[Any] = []

    def note(path: str, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = ForwardSignature.of(block.forward).bind(args, kwargs)
        given, leaves = call_signature(bound)
        if (key := (path, given, [(leaf.shape, leaf.dtype) for leaf in leaves])) not in seen:
            seen.append(key)
            calls.append((path, rebuild_arguments(given, [leaf.detach().clone() for leaf in leaves], bound)))

    hooks = [
        block.register_forward_pre_hook(
            lambda module, args, kwargs, path=path: note(path, module, args, kwargs), with_kwargs=True
        )
        for path, block in blocks.items()
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _run(model: nn.Module, signature: Mapping[str, Any]) -> None:
    device = next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), torch.device("cpu"))
    inputs = {name: _example(value, device) for name, value in signature.items()}
    try:
        with torch.no_grad(), _checked_calls(model):
            model(**inputs)
    except CallSignatureError:
        raise
    except Exception as error:  # the operator's code may raise any error
        kind = "" if isinstance(error, GraphExecutionError) else f"{type(error).__name__}: "
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        text = f"{kind}{plain_text(error)}{notes}"
        raise ConfigError(f"the model does not run on these examples: {text}", path=("signature",)) from error


@contextmanager
def _checked_calls(model: nn.Module) -> Iterator[None]:
    """Check the arguments of torch modules whose kernels trust arguments, as a trainer does."""
    found = [(module, stock_type(module)) for module in model.modules()]
    checks = [(module, call_check(cls, module)) for module, cls in found if cls is not None]
    hooks = [module.register_forward_pre_hook(check, with_kwargs=True) for module, check in checks if check]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Set eval mode; restore flags and buffers afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers() if not nn.parameter.is_lazy(buffer)]
    try:
        model.eval()
        yield
    finally:
        for module, flag in flags:
            module.training = flag
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _example(value: Any, device: torch.device) -> Any:
    """Make the example input of a signature's entry, without the global random generator."""
    if isinstance(value, Mapping):
        if "shape" in value:
            return _tensor(value["shape"], value.get("dtype", DEFAULT_DTYPE), device)
        return {key: _example(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [_example(item, device) for item in value]
    return value


def _tensor(shape: list[int], dtype_name: str, device: torch.device) -> torch.Tensor:
    dtype = torch_dtype(dtype_name)
    if not (dtype.is_floating_point or dtype.is_complex):
        return torch.zeros(shape, dtype=dtype, device=device)  # a valid index of every embedding
    generator = torch.Generator(device="cpu").manual_seed(0)
    return torch.randn(shape, generator=generator, device="cpu").to(device, dtype)
