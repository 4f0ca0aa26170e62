"""Internals of torch's own modules beside attributes and tensors. A descriptor omits them; the rebuild restores them.

- RNNs: lists of weights.
- Lazy modules: two hooks that set the shapes.
- Parametrized modules: a class of their own, with a property for each parametrized tensor.
- Modules whose kernels trust their arguments: a hook that checks the arguments.
- Decoder layers with a module as activation: the activation as an attribute. Without the attribute, a copied or
  unpickled layer uses relu.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn.modules import conv
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrizations, parametrize

from model_factory.descriptor.call_checks import call_check, check_convolution
from model_factory.errors import FormatError, GraphExecutionError
from model_factory.program.runtime.lookup import PARAMETRIZATIONS
from model_factory.program.torch_private import WeightNorm, inject_new_class, inject_property

_WEIGHT_NORM_HOOK = f"{parametrizations.weight_norm.__qualname__}.<locals>._weight_norm_compat_hook"


def restored_names(cls: type[nn.Module]) -> frozenset[str]:
    """Return the attributes of the stock class ``cls`` that the rebuild restores."""
    if issubclass(cls, nn.RNNBase):
        return frozenset({"_flat_weights", "_flat_weight_refs"})
    if issubclass(cls, LazyModuleMixin):
        return frozenset({"_load_hook", "_initialize_hook"})
    return frozenset()


def restored_hooks(cls: type[nn.Module] | None, module: nn.Module) -> list[Any]:
    """Return the hooks of a module that the rebuild restores; ``cls`` is the module's stock class, if any."""
    hooks: Any = module
    found = [item for item in hooks._load_state_dict_pre_hooks.values() if _is_weight_norm_hook(item.hook)]
    if cls is not None and issubclass(cls, LazyModuleMixin) and "_load_hook" in module.__dict__:
        found.append(hooks._load_state_dict_pre_hooks.get(hooks._load_hook.id))
        found.append(hooks._forward_pre_hooks.get(hooks._initialize_hook.id))
    if cls is not None:
        found.append(call_check(cls, module))
        if issubclass(cls, conv._ConvNd):
            found.append(check_convolution)  # stays after the first call of a lazy convolution
    return found


def add_call_check(module: nn.Module) -> None:
    """Add the hook that checks the arguments of calls, if the kernels of the stock class trust arguments."""
    check = call_check(type(module), module)
    if check is not None:
        module.register_forward_pre_hook(check, with_kwargs=True)


def restore_torch_state(module: nn.Module) -> None:
    """Restore the attributes of :func:`restored_names`, the hooks of :func:`restored_hooks`, and parametrized classes.

    Raises:
        FormatError: the module's attributes or children are incomplete or wrong.
    """
    try:
        if is_parametrized(module):
            _parametrize(module)
        hooks: Any = module
        if isinstance(module, nn.RNNBase):
            _check_names(module)
            if is_parametrized(module):
                hooks.__class__.flatten_parameters = _flatten_checked  # a class of this module alone
            else:
                _check_shapes(module, [getattr(module, name, None) for name in hooks._flat_weights_names])
            hooks._init_flat_weights()
        elif isinstance(module, LazyModuleMixin):
            hooks._load_hook = hooks._register_load_state_dict_pre_hook(hooks._lazy_load_hook)
            hooks._initialize_hook = module.register_forward_pre_hook(hooks._infer_parameters, with_kwargs=True)
        elif isinstance(module, nn.TransformerDecoderLayer) and "activation" in hooks._modules:
            vars(module).setdefault("activation", hooks._modules["activation"])
    except (
        AssertionError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RuntimeError,
        GraphExecutionError,
    ) as error:
        raise FormatError(f"a described {type(module).__name__} is incomplete: {error}") from None


_GATES = MappingProxyType({"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1})
_RNN_MODES: Mapping[type[nn.RNNBase], Collection[str]] = MappingProxyType(
    {nn.LSTM: ["LSTM"], nn.GRU: ["GRU"], nn.RNN: ["RNN_TANH", "RNN_RELU"]}
)


def _check_names(rnn: nn.RNNBase) -> None:
    """Check the attributes of an RNN and the names of its weights: the kernels trust the attributes."""
    flags, counts = (rnn.bias, rnn.bidirectional), (rnn.input_size, rnn.hidden_size, rnn.num_layers, rnn.proj_size)
    if any(type(flag) is not bool for flag in flags) or any(type(count) is not int or count < 0 for count in counts):
        raise TypeError("a size must be an integer from 0, and a flag true or false")
    if any(isinstance(rnn, cls) and rnn.mode not in modes for cls, modes in _RNN_MODES.items()):
        raise ValueError(f"{rnn.mode!r} is not a mode of this class")
    if rnn.num_layers > len(rnn._flat_weights_names):
        raise ValueError("there are weights for fewer layers than num_layers")
    names = list(_weight_shapes(rnn, _GATES[rnn.mode]))
    if names != rnn._flat_weights_names:
        raise ValueError(f"the names of the weights are not {', '.join(names)}")


def _check_shapes(rnn: nn.RNNBase, weights: list[Any]) -> None:
    """Check the shapes of an RNN's weights: the kernels trust the shapes."""
    shapes = _weight_shapes(rnn, _GATES[rnn.mode])
    for (name, shape), weight in zip(shapes.items(), weights, strict=True):
        if weight is not None and not (isinstance(weight, torch.Tensor) and tuple(weight.shape) == shape):
            raise ValueError(f"{name} is not a tensor of the shape {shape}")


def _flatten_checked(rnn: Any) -> None:
    """Replacement of ``flatten_parameters`` for parametrized RNNs, which compute the weights anew for each call."""
    _check_shapes(rnn, rnn._flat_weights)
    nn.RNNBase.flatten_parameters(rnn)


def _weight_shapes(rnn: nn.RNNBase, gates: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of an RNN's weights, in the order of ``nn.RNNBase``'s constructor."""
    shapes: dict[str, tuple[int, ...]] = {}
    rows, result = gates * rnn.hidden_size, rnn.proj_size or rnn.hidden_size
    directions = ("", "_reverse") if rnn.bidirectional else ("",)
    for layer in range(rnn.num_layers):
        columns = result * len(directions) if layer else rnn.input_size
        for direction in directions:
            end = f"_l{layer}{direction}"
            shapes[f"weight_ih{end}"], shapes[f"weight_hh{end}"] = (rows, columns), (rows, result)
            if rnn.bias:
                shapes[f"bias_ih{end}"] = shapes[f"bias_hh{end}"] = (rows,)
            if rnn.proj_size:
                shapes[f"weight_hr{end}"] = (rnn.proj_size, rnn.hidden_size)
    return shapes


def is_parametrized(module: nn.Module) -> bool:
    """Whether a module is parametrized by ``torch.nn.utils.parametrize``."""
    if not isinstance(module._modules, dict):  # a TorchScript module
        return False
    lists = module._modules.get(PARAMETRIZATIONS)
    return isinstance(lists, nn.ModuleDict) and all(
        type(item) is parametrize.ParametrizationList for item in lists._modules.values()
    )


def _parametrize(module: nn.Module) -> None:
    lists: Any = module._modules[PARAMETRIZATIONS]
    cls = type(module)
    for name in lists:
        if hasattr(cls, name) or not name.isidentifier() or name.startswith("__") or name in module.__dict__:
            raise FormatError(f"{cls.__name__} cannot have the parametrized tensor {name!r}")
    inject_new_class(module)
    for name, parametrizations_of in lists.items():
        inject_property(module, name)
        if any(type(item) is WeightNorm for item in parametrizations_of):
            hooks: Any = module
            hooks._register_load_state_dict_pre_hook(WeightNormKeys(name))


class WeightNormKeys:
    """Hook of torch's ``weight_norm``: loads state dicts from before parametrizations."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        """Rename ``weight_g`` and ``weight_v``."""
        old = [f"{prefix}{self.name}_g", f"{prefix}{self.name}_v"]
        if all(key in state_dict for key in old):
            for index, key in enumerate(old):
                state_dict[f"{prefix}{PARAMETRIZATIONS}.{self.name}.original{index}"] = state_dict.pop(key)


def _is_weight_norm_hook(hook: Any) -> bool:
    return isinstance(hook, WeightNormKeys) or getattr(hook, "__qualname__", "") == _WEIGHT_NORM_HOOK
