"""What torch's own modules keep beside attributes and tensors: not in the descriptor, and made again by the rebuild.

RNNs have lists of their weights, lazy modules the two hooks that give them their shapes, and parametrised modules a
class of their own with a property for each parametrised tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrizations, parametrize

from model_factory.errors import FormatError

_PARAMETRIZE: Any = vars(parametrize)  # two functions of it that torch keeps to itself are needed
_WEIGHT_NORM: type[nn.Module] = vars(parametrizations)["_WeightNorm"]
_WEIGHT_NORM_HOOK = f"{parametrizations.weight_norm.__qualname__}.<locals>._weight_norm_compat_hook"
PARAMETRIZATIONS = "parametrizations"


def derived_names(cls: type[nn.Module]) -> frozenset[str]:
    """The attributes of torch's ``cls`` that the rebuild makes again."""
    if issubclass(cls, nn.RNNBase):
        return frozenset({"_flat_weights", "_flat_weight_refs"})
    if issubclass(cls, LazyModuleMixin):
        return frozenset({"_load_hook", "_initialize_hook"})
    return frozenset()


def derived_hooks(cls: type[nn.Module] | None, module: nn.Module) -> list[Any]:
    """The hooks of a module that the rebuild makes again; ``cls`` is the class of torch's own it travels as, if any."""
    hooks: Any = module
    found = [item for item in hooks._load_state_dict_pre_hooks.values() if _is_weight_norm_hook(item.hook)]
    if cls is not None and issubclass(cls, LazyModuleMixin) and "_load_hook" in module.__dict__:
        found.append(hooks._load_state_dict_pre_hooks.get(hooks._load_hook.id))
        found.append(hooks._forward_pre_hooks.get(hooks._initialize_hook.id))
    return found


def derive(module: nn.Module) -> None:
    """Make what :func:`derived_names` and :func:`derived_hooks` name, and the class of a parametrised module.

    Raises:
        FormatError: the attributes or children it is made from are not what they should be.
    """
    try:
        if is_parametrized(module):
            _parametrize(module)
        hooks: Any = module
        if isinstance(module, nn.RNNBase):
            _check_tensors([getattr(module, name, None) for name in hooks._flat_weights_names])
            hooks._init_flat_weights()
        elif isinstance(module, LazyModuleMixin):
            hooks._load_hook = hooks._register_load_state_dict_pre_hook(hooks._lazy_load_hook)
            hooks._initialize_hook = module.register_forward_pre_hook(hooks._infer_parameters, with_kwargs=True)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FormatError(f"a described {type(module).__name__} is incomplete: {error}") from None


def _check_tensors(items: list[Any]) -> None:
    if not all(item is None or isinstance(item, torch.Tensor) for item in items):
        raise TypeError("its weights are not all tensors")


def is_parametrized(module: nn.Module) -> bool:
    """Whether a module has the children that ``torch.nn.utils.parametrize`` gives it."""
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
            raise FormatError(f"{cls.__name__} cannot have the parametrised tensor {name!r}")
    _PARAMETRIZE["_inject_new_class"](module)
    for name, parametrizations_of in lists.items():
        _PARAMETRIZE["_inject_property"](module, name)
        if any(type(item) is _WEIGHT_NORM for item in parametrizations_of):
            hooks: Any = module
            hooks._register_load_state_dict_pre_hook(WeightNormKeys(name))


class WeightNormKeys:
    """The hook that torch's ``weight_norm`` leaves: lets state dicts from before parametrisations be loaded."""

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
