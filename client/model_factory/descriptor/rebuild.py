"""From a descriptor and its tensors to real modules.

No constructor and no initialiser runs: each module is a bare instance of its class whose ``__dict__`` is filled in.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from model_factory.descriptor.codec import Programs
from model_factory.descriptor.describe import MODULE_INTERNALS
from model_factory.descriptor.stock import STOCK_CLASSES, STOCK_FUNCTIONS
from model_factory.descriptor.tree import GRAPH, STOCK, Descriptor, FunctionRef, ModuleNode, TensorNode
from model_factory.errors import FormatError
from model_factory.graph.call_form import Recorded
from model_factory.graph.modules import GRAPH_MODULES, GraphModel, ProgramModule, ProgramSource
from model_factory.graph.program import TorchConst
from model_factory.graph.runner import Runner, torch_const

_LAZY: Any = nn.parameter  # its declared types lack the arguments of the lazy tensors


def rebuild(
    descriptor: Descriptor,
    tensors: Mapping[str, torch.Tensor],
    programs: Programs = (),
    source: ProgramSource | None = None,
) -> nn.Module:
    """Build the module a descriptor describes, over ``tensors`` (by name; used as they are, not copied).

    ``programs`` are the recorded forwards by module path; ``source`` is asked for those that are missing.

    Raises:
        FormatError: the descriptor names a class, function or attribute outside the closed tables, or a tensor is
            missing or not as described.
    """
    paths = descriptor.paths()
    by_path: dict[str, list[Recorded]] = {}
    for path, recorded in programs:
        by_path.setdefault(path, []).append(recorded)
    values = [_tensor(node, tensors) for node in descriptor.tensors]
    modules = [
        _bare(node, paths.get(index, ""), by_path.get(paths.get(index, ""), ()), source)
        for index, node in enumerate(descriptor.modules)
    ]
    owners = _parameter_positions(descriptor)
    for position in owners:
        values[position] = _as_parameter(values[position], descriptor.tensors[position])
    for module, node in zip(modules, descriptor.modules, strict=True):
        _fill(module, node, modules, values)
    for module, node in zip(modules, descriptor.modules, strict=True):
        _finish(module, node)
    return modules[0]


def _parameter_positions(descriptor: Descriptor) -> set[int]:
    parameters = {item for node in descriptor.modules for _, item in node.parameters if item is not None}
    buffers = {item for node in descriptor.modules for _, item, _ in node.buffers if item is not None}
    if parameters & buffers:
        raise FormatError("a tensor of a descriptor is both a parameter and a buffer")
    return parameters


def _tensor(node: TensorNode, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    dtype = torch_const(node.dtype)
    if not isinstance(dtype, torch.dtype):
        raise FormatError(f"tensor {node.name!r} has {node.dtype!r} for a dtype")
    if node.shape is None:
        return _LAZY.UninitializedBuffer(dtype=dtype)  # type: ignore[no-any-return]
    tensor = tensors.get(node.name)
    if tensor is None:
        raise FormatError(f"the weights lack the tensor {node.name!r}")
    if tensor.dtype != dtype or tuple(tensor.shape) != node.shape:
        raise FormatError(
            f"the weights hold {node.name!r} as {tensor.dtype} {tuple(tensor.shape)}; described is {dtype} {node.shape}"
        )
    return tensor


def _as_parameter(tensor: torch.Tensor, node: TensorNode) -> nn.Parameter:
    if node.requires_grad and not (tensor.is_floating_point() or tensor.is_complex()):
        raise FormatError(f"parameter {node.name!r} of dtype {node.dtype} cannot require gradients")
    if node.shape is None:
        return _LAZY.UninitializedParameter(requires_grad=node.requires_grad, dtype=tensor.dtype)  # type: ignore[no-any-return]
    return nn.Parameter(tensor, requires_grad=node.requires_grad)


def _bare(node: ModuleNode, path: str, programs: Sequence[Recorded], source: ProgramSource | None) -> Any:
    if node.kind == STOCK:
        cls = STOCK_CLASSES.get(node.type)
        if cls is None:
            raise FormatError(f"{node.type!r} is not a stock module of this torch ({torch.__version__})")
        return _empty(cls)
    if node.kind == GRAPH:
        model = _empty(GraphModel)
        assert node.program is not None
        model.inputs = list(node.program.inputs)
        model.runner = Runner(node.program)
        return model
    module = _empty(ProgramModule)
    assert node.signature is not None
    module.become(node.type, node.signature, path, source, programs)
    return module


def _empty(cls: type[nn.Module]) -> Any:
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    return module


def _fill(module: nn.Module, node: ModuleNode, modules: list[nn.Module], values: list[torch.Tensor]) -> None:
    for name, value in node.attributes.items():
        if name in MODULE_INTERNALS or callable(getattr(type(module), name, None)) or name.startswith("__"):
            raise FormatError(f"{node.type} cannot have the attribute {name!r} set")
        module.__dict__[name] = _attribute(value)
    module.training = node.training
    for name, index in node.parameters:
        module._parameters[name] = None if index is None else values[index]
    for name, index, persistent in node.buffers:
        module._buffers[name] = None if index is None else values[index]
        if not persistent:
            module._non_persistent_buffers_set.add(name)
    for name, index in node.children:
        module._modules[name] = None if index is None else modules[index]


def _attribute(value: Any) -> Any:
    if isinstance(value, FunctionRef):
        function = STOCK_FUNCTIONS.get(value.name)
        if function is None:
            raise FormatError(f"{value.name!r} is not in the table of functions")
        return function
    if isinstance(value, TorchConst):
        return torch_const(value.name)
    return copy.copy(value) if isinstance(value, list | dict) else value


def _finish(module: nn.Module, node: ModuleNode) -> None:
    """Let torch derive what it keeps beside the attributes."""
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()  # type: ignore[no-untyped-call]
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        hooks: Any = module
        hooks._load_hook = hooks._register_load_state_dict_pre_hook(hooks._lazy_load_hook)
        hooks._initialize_hook = module.register_forward_pre_hook(hooks._infer_parameters, with_kwargs=True)
    if node.kind == GRAPH and not isinstance(module._modules.get(GRAPH_MODULES), nn.ModuleDict):
        raise FormatError(f"a graph module has a child {GRAPH_MODULES!r}, an nn.ModuleDict")
