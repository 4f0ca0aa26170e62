"""Modules that are not portable: a function that makes a module for each reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import prune

from matrix.blocks import WIDTH, Block

OUTSIDE = nn.Parameter(torch.ones(WIDTH))


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A refused module, and the required parts of the message."""

    make: Callable[[], nn.Module]
    names: tuple[str, ...]
    remedy: str


REFUSALS: dict[str, Refusal] = {}


def refused(what: str, *names: str, remedy: str) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    def keep(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        REFUSALS[what] = Refusal(make=make, names=names, remedy=remedy)
        return make

    return keep


class Holder(Block):
    """Holds a module or tensor at the path ``inner.part``."""

    def __init__(self, part: Any = None) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.part = nn.Linear(WIDTH, WIDTH) if part is None else part

    def forward(self, x: Tensor) -> Tensor:
        return self.inner.part(x)


def held(change: Callable[[nn.Linear], object]) -> nn.Module:
    holder = Holder()
    change(holder.inner.part)
    return holder


def quietly(call: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call()


HOOKS: dict[str, Callable[[nn.Module], object]] = {
    "a forward hook": lambda module: module.register_forward_hook(print),
    "a forward pre-hook": lambda module: module.register_forward_pre_hook(print),
    "a backward hook": lambda module: module.register_full_backward_hook(print),
    "a backward pre-hook": lambda module: module.register_full_backward_pre_hook(print),
    "a state-dict hook": lambda module: module.register_state_dict_post_hook(lambda *_: None),
    "a state-dict pre-hook": lambda module: module.register_state_dict_pre_hook(print),
    "a load pre-hook": lambda module: module.register_load_state_dict_pre_hook(
        lambda _module, state, *_: state.clear()
    ),
    "a load hook": lambda module: module.register_load_state_dict_post_hook(print),
}
for name, register in HOOKS.items():
    refused(name, "inner.part (Linear)", "hook", remedy="on the rebuilt module")(
        lambda register=register: held(register)
    )


@refused("a hook on a lazy module", "inner.part (LazyLinear)", "_forward_hooks", remedy="on the rebuilt module")
def lazy_hook() -> nn.Module:
    lazy = nn.LazyLinear(2)
    lazy.register_forward_hook(print)
    return Holder(lazy)


@refused("a hook on a tensor", "inner.part.weight", "hook", remedy="on the rebuilt tensor")
def tensor_hook() -> nn.Module:
    return held(lambda linear: linear.weight.register_hook(print))


@refused("a gradient hook on a tensor", "inner.part.weight", "hook", remedy="on the rebuilt tensor")
def gradient_hook() -> nn.Module:
    return held(lambda linear: linear.weight.register_post_accumulate_grad_hook(print))


@refused("the old weight_norm", "inner.part (Linear)", remedy="torch.nn.utils.parametrizations.weight_norm")
def old_weight_norm() -> nn.Module:
    return held(lambda linear: quietly(lambda: nn.utils.weight_norm(linear)))


@refused("the old spectral_norm", "inner.part (Linear)", remedy="torch.nn.utils.parametrizations.spectral_norm")
def old_spectral_norm() -> nn.Module:
    return held(lambda linear: quietly(lambda: nn.utils.spectral_norm(linear)))


@refused("pruning", "inner.part (Linear)", remedy="torch.nn.utils.prune.remove")
def pruned() -> nn.Module:
    return held(lambda linear: prune.l1_unstructured(linear, "weight", 2))


@refused("nn.DataParallel", "inner.part (DataParallel)", remedy="wrap the rebuilt module")
def data_parallel() -> nn.Module:
    return Holder(nn.DataParallel(nn.Linear(WIDTH, WIDTH)))


@refused("TorchScript", "inner.part (", remedy="the module that was scripted")
def script() -> nn.Module:
    return Holder(quietly(lambda: torch.jit.script(nn.Linear(WIDTH, WIDTH))))


class Extra(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


@refused("extra state", "inner.part (Extra)", "get_extra_state()", remedy="buffers")
def extra_state() -> nn.Module:
    return Holder(Extra(WIDTH, WIDTH))


class SavesMore(nn.Linear):
    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}scale"] = torch.ones(2)


@refused("a custom _save_to_state_dict()", "inner.part (SavesMore)", "_save_to_state_dict()", remedy="parameters")
def saves_more() -> nn.Module:
    return Holder(SavesMore(WIDTH, WIDTH))


class OwnState(nn.Linear):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002  as torch has it
        return {}


@refused("a custom state_dict()", "inner.part (OwnState)", "state_dict()", remedy="parameters and buffers")
def own_state() -> nn.Module:
    return Holder(OwnState(WIDTH, WIDTH))


class Fuses(nn.Linear):
    def train(self, mode: bool = True) -> Fuses:
        super().train(mode)
        self.fused = not mode
        return self


@refused("a train() with other effects", "inner.part (Fuses)", "train()", remedy="on the trainer")
def own_train() -> nn.Module:
    return Holder(Fuses(WIDTH, WIDTH))


class OwnLazy(LazyModuleMixin, nn.Module):
    cls_to_become = nn.Identity  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.UninitializedParameter()


@refused("a custom lazy module", "inner.part (OwnLazy)", "lazy", remedy="lazy modules of torch.nn")
def own_lazy() -> nn.Module:
    return Holder(quietly(OwnLazy))


@refused("a custom function in a torch module", "inner.part (Linear)", "'shape'", remedy="torch.nn.functional")
def own_function() -> nn.Module:
    return held(lambda linear: setattr(linear, "shape", lambda: 3))


@refused(
    "an attribute that hides a method of a torch module", "inner.part (Linear)", "'half'", remedy="delete the attribute"
)
def hides_method() -> nn.Module:
    return held(lambda linear: setattr(linear, "half", 0.5))


@refused("views of the same memory", "'inner.a'", "'inner.b'", remedy="clone()")
def views() -> nn.Module:
    holder = Holder()
    whole = torch.zeros(6)
    holder.inner.register_buffer("a", whole[:4])
    holder.inner.register_buffer("b", whole[3:])
    return holder


@refused("a parameter over another's memory", "inner.part.weight", "inner.twin", remedy="the same tensor object")
def twin() -> nn.Module:
    holder = Holder()
    holder.inner.twin = nn.Parameter(holder.inner.part.weight.data)
    return holder


class Marked(torch.Tensor):
    """A tensor subclass."""


@refused("a tensor subclass", "inner.part.weight", "Marked", remedy="torch.Tensor")
def subclass() -> nn.Module:
    weight = nn.Parameter(torch.zeros(WIDTH, WIDTH).as_subclass(Marked))
    return held(lambda linear: setattr(linear, "weight", weight))


@refused("a sparse tensor", "'inner.sparse'", "sparse_coo", remedy="to_dense()")
def sparse() -> nn.Module:
    return held_buffer("sparse", torch.eye(3).to_sparse())


@refused("a dtype without a name in safetensors", "'inner.wide'", "complex128", remedy="use another dtype")
def wide() -> nn.Module:
    return held_buffer("wide", torch.zeros(2, dtype=torch.complex128))


@refused("a quantised tensor", "'inner.quantised'", "qint8", remedy="use another dtype")
def quantised() -> nn.Module:
    return held_buffer("quantised", quietly(lambda: torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)))


@refused("a tensor with an autograd history", "'inner.computed'", "history", remedy="detach()")
def computed() -> nn.Module:
    return held_buffer("computed", torch.zeros(2, requires_grad=True) * 2)


@refused("a gradient", "inner.part.weight", "gradient", remedy="zero_grad()")
def gradient() -> nn.Module:
    return held(lambda linear: linear(torch.ones(1, WIDTH)).sum().backward())


@refused("a tensor without values", "inner.part.weight", "meta", remedy="values")
def meta() -> nn.Module:
    return held(lambda linear: linear.to("meta"))


@refused("an attribute of a tensor, other than plain data", "inner.part.weight", "'loader'", remedy="rebuilt tensor")
def loader() -> nn.Module:
    return held(lambda linear: setattr(linear.weight, "loader", print))


class Taken(Block):
    def __init__(self) -> None:
        super().__init__()
        self._signature = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * self._signature


@refused("a name that rebuilt modules have", "the model (Taken)", "'_signature'", remedy="rename it")
def taken() -> nn.Module:
    return Taken()


def held_buffer(name: str, tensor: Tensor) -> nn.Module:
    holder = Holder()
    holder.inner.register_buffer(name, tensor)
    return holder


# Refused where the forward is recorded


class ModulesInAList(Block):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(WIDTH, WIDTH)]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x)


@refused("modules in a plain list", "ModulesInAList", "Linear", "'layers'", remedy="nn.ModuleList")
def modules_in_a_list() -> nn.Module:
    return ModulesInAList()


class TensorsInADict(Block):
    def __init__(self) -> None:
        super().__init__()
        self.scales = {"a": nn.Parameter(torch.zeros(WIDTH))}

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scales["a"]


@refused("tensors in a plain dict or list", "TensorsInADict", "'scales'", remedy="nn.ParameterList")
def tensors_in_a_dict() -> nn.Module:
    return TensorsInADict()


class ReadsAGlobal(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x * OUTSIDE


@refused("a parameter outside all modules", "ReadsAGlobal", "OUTSIDE", remedy="register_buffer")
def reads_a_global() -> nn.Module:
    return ReadsAGlobal()


class RemembersForLater(Block):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.last = x.mean()
        return x * self.last if hasattr(self, "last") else x

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": torch.ones(2, WIDTH)}]


@refused(
    "a forward that keeps a value in an attribute for another call", "RemembersForLater.last", "reads", remedy="buffer"
)
def remembers() -> nn.Module:
    return RemembersForLater()
