"""Rebuilds real modules from a descriptor and tensors.

No constructor and no initialiser runs: each module is a bare instance of a class, with a filled ``__dict__``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from model_factory.descriptor.attributes import live, settable
from model_factory.descriptor.codec import Programs
from model_factory.descriptor.stock import STOCK_CLASSES
from model_factory.descriptor.stock_checks import check_attributes, check_tensors
from model_factory.descriptor.torch_state import add_call_check, restore_torch_state
from model_factory.descriptor.tree import (
    Descriptor,
    GraphNode,
    ModuleNode,
    ProgramNode,
    SourceClass,
    SourceNode,
    StockNode,
    TensorNode,
    TensorRef,
)
from model_factory.errors import FormatError, SourceError
from model_factory.program.forward_signature import ForwardSignature
from model_factory.program.ir import ModuleCall
from model_factory.program.recorded_program import is_plain
from model_factory.program.runtime.compiled_program import CompiledProgram
from model_factory.program.runtime.graph_model import GRAPH_MODULES, GraphModel
from model_factory.program.runtime.interpreter import Runner
from model_factory.program.runtime.lookup import find_module, join_path, plain_read
from model_factory.program.runtime.program_module import ProgramModule, ProgramRecorder
from model_factory.program.torch_names import remedy, torch_dtype

_LAZY: Any = nn.parameter  # the declared types lack the arguments of the lazy tensors

_MISSING = object()

FindClass = Callable[[SourceClass], Any]
"""Returns the class of a source module with trusted source."""


class Blueprint:
    """A descriptor with compiled programs: builds modules over any tensors of the described names and shapes.

    Immutable. All built modules share the compiled programs.
    """

    def __init__(self, descriptor: Descriptor, programs: Programs = ()) -> None:
        """Compile the programs, given by module path.

        Raises:
            FormatError: a program is malformed, or the dtype of a tensor is unknown.
        """
        self.descriptor = descriptor
        self.tensor_bytes = sum(node.nbytes for node in descriptor.tensors)
        self._paths = descriptor.paths()
        self._constants = _constants_of_graphs(descriptor, self._paths)
        self._runners = {
            index: Runner(node.program) for index, node in enumerate(descriptor.modules) if isinstance(node, GraphNode)
        }
        self._programs: dict[str, list[CompiledProgram]] = {}
        compiled: dict[int, CompiledProgram] = {}  # by id of the program: equal blocks share a program
        for path, recorded in programs:
            if id(recorded) not in compiled:
                compiled[id(recorded)] = CompiledProgram(recorded)
            self._programs.setdefault(path, []).append(compiled[id(recorded)])

    def build(
        self,
        tensors: Mapping[str, torch.Tensor],
        recorder: ProgramRecorder | None = None,
        find_class: FindClass | None = None,
    ) -> nn.Module:
        """Build the module; see :func:`rebuild`."""
        nodes = self.descriptor.modules
        values = [_tensor(node, tensors) for node in self.descriptor.tensors]
        modules: list[nn.Module] = [self._bare(index, node, recorder, find_class) for index, node in enumerate(nodes)]
        for module, node in zip(modules, nodes, strict=True):
            _fill(module, node, modules, values)
        for module, node in zip(modules, nodes, strict=True):
            if isinstance(node, StockNode):
                check_attributes(type(module), node.attributes)
                check_tensors(module)
                add_call_check(module)
        for module, node in zip(modules, nodes, strict=True):
            _finish(module, node)
        return modules[0]

    def _bare(
        self, index: int, node: ModuleNode, recorder: ProgramRecorder | None, find_class: FindClass | None
    ) -> Any:
        """Make a module without tensors, children and attributes."""
        match node:
            case StockNode():
                return _bare_stock(node)
            case SourceNode():
                return _empty(_source_class(node, find_class))
            case GraphNode():
                model: GraphModel = _empty(GraphModel)
                model._initialise(self._runners[index])
                return model
        assert isinstance(node, ProgramNode)
        module = _empty(ProgramModule)
        path = self._paths.get(index, "")
        programs = self._programs.get(path, ())
        module._initialise(
            *(node.type, node.signature, path, recorder, programs, node.frozen, dict(node.declared_methods)),
            self._constants.get(index, {}),
        )
        return module


def _constants_of_graphs(descriptor: Descriptor, paths: Mapping[int, str]) -> dict[int, dict[str, Any]]:
    """Return the arguments that are constants of a config's graph, by position of the called module and by name."""
    positions = {path: index for index, path in paths.items()}
    found: dict[int, dict[str, Any]] = {}
    for index, graph in enumerate(descriptor.modules):
        for step in graph.program.steps if isinstance(graph, GraphNode) else ():
            called = positions.get(join_path(paths.get(index, ""), step.path)) if isinstance(step, ModuleCall) else None
            node = None if called is None else descriptor.modules[called]
            if called is None or not isinstance(step, ModuleCall) or not isinstance(node, ProgramNode):
                continue
            with suppress(TypeError):  # a call of a hostile graph; the call itself has the error
                given = node.signature.bind(step.args, step.kwargs)
                constants = {name: value for name, value in given.items() if _is_constant(value)}
                known = found.setdefault(called, constants)
                found[called] = {name: value for name, value in known.items() if constants.get(name) == value}
    return found


def _is_constant(value: Any) -> bool:
    if type(value) is dict:
        return all(map(_is_constant, value.values()))
    if type(value) in {list, tuple}:
        return all(map(_is_constant, value))
    return is_plain(value)


def rebuild(
    descriptor: Descriptor,
    tensors: Mapping[str, torch.Tensor],
    programs: Programs = (),
    recorder: ProgramRecorder | None = None,
    find_class: FindClass | None = None,
) -> nn.Module:
    """Build the module of a descriptor.

    Args:
        descriptor: Description of the model.
        tensors: Tensors by name; the module uses the tensors without a copy.
        programs: Recorded programs, by module path.
        recorder: Source of missing programs.
        find_class: Source of the classes of source modules; None trusts no source.

    Raises:
        SourceError: a module needs source, and ``find_class`` is None or fails.
        FormatError: the descriptor names a class, function or attribute outside of the closed tables, or a tensor is
            missing or differs from the description.

    Example:
        >>> from model_factory.descriptor.tree import StockNode
        >>> weight = TensorNode(name="weight", dtype="float32", shape=(2, 3), requires_grad=True, parameter=True)
        >>> layer = StockNode(
        ...     type="nn.Linear",
        ...     training=True,
        ...     attributes={"in_features": 3, "out_features": 2},
        ...     parameters=(("weight", 0), ("bias", None)),
        ... )
        >>> rebuild(Descriptor(modules=(layer,), tensors=(weight,)), {"weight": torch.ones(2, 3)})
        Linear(in_features=3, out_features=2, bias=False)
    """
    return Blueprint(descriptor, programs).build(tensors, recorder, find_class)


def _tensor(node: TensorNode, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    dtype = torch_dtype(node.dtype)
    if node.requires_grad and not (dtype.is_floating_point or dtype.is_complex):
        raise FormatError(f"tensor {node.name!r} of dtype {node.dtype} cannot require gradients")
    if node.shape is None:
        kind = _LAZY.UninitializedParameter if node.parameter else _LAZY.UninitializedBuffer
        tensor: torch.Tensor = kind(requires_grad=node.requires_grad, dtype=dtype)
    else:
        tensor = _stored(node, dtype, tensors)
        if node.parameter:
            tensor = nn.Parameter(tensor, requires_grad=node.requires_grad)
        elif node.requires_grad:
            tensor.requires_grad_()
    for name, value in node.attributes.items():
        if name.startswith("__") or hasattr(torch.Tensor, name):
            raise FormatError(f"tensor {node.name!r} cannot have the attribute {name!r} set")
        tensor.__dict__[name] = live(value)
    return tensor


def _stored(node: TensorNode, dtype: torch.dtype, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    tensor = tensors.get(node.name)
    if tensor is None:
        raise FormatError(f"the weights lack the tensor {node.name!r}")
    assert node.shape is not None
    shape = tuple([node.shape[axis] for axis in node.order]) or node.shape
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise FormatError(
            f"the weights hold {node.name!r} as {tensor.dtype} {tuple(tensor.shape)}; described: {dtype} {shape}"
        )
    return tensor.permute([node.order.index(axis) for axis in range(len(shape))]) if node.order else tensor


def in_memory_order(tensor: torch.Tensor, node: TensorNode) -> torch.Tensor:
    """Return a tensor of a described shape as a weights file has the tensor: contiguous, axes in the order of memory.

    Example:
        >>> node = TensorNode(
        ...     name="w", dtype="float32", shape=(2, 3), requires_grad=True, parameter=True, order=(1, 0)
        ... )
        >>> in_memory_order(torch.ones(2, 3), node).shape
        torch.Size([3, 2])
    """
    return (tensor.permute(node.order) if node.order else tensor).contiguous()


def _bare_stock(node: StockNode) -> Any:
    cls = STOCK_CLASSES.get(node.type)
    if cls is None:
        raise FormatError(f"{node.type!r} is not a stock module of this torch{remedy(node.type)}")
    return _empty(cls)


def _source_class(node: SourceNode, find_class: FindClass | None) -> type[nn.Module]:
    if find_class is None:
        raise SourceError(f"a {node.type} needs trusted source here, and no source is trusted: {node.source.reason}")
    cls = find_class(node.source)
    if not isinstance(cls, type) or not issubclass(cls, nn.Module):
        raise FormatError(f"{node.source.qualname!r} of {node.source.module!r} is not the class of a module")
    return cls


def give_source_classes(module: nn.Module, descriptor: Descriptor, find_class: FindClass) -> None:
    """Give program modules the classes of source nodes, in place: a call has shown that the modules need source code.

    Parameters, buffers, children, hooks, flags and attributes set by the trainer stay. A module that the trainer has
    replaced is left alone.

    Args:
        module: The module of the descriptor's first node.
        descriptor: The module and all below.
        find_class: Source of the classes.

    Raises:
        SourceError: a class cannot be found.
        FormatError: a node is no class of a module, or has an attribute that cannot be set.
    """
    changes = []
    for index, path in descriptor.paths().items():
        node, found = descriptor.modules[index], find_module(module, path)
        if isinstance(node, SourceNode) and isinstance(found, ProgramModule):
            cls = _source_class(node, find_class)
            own = {name: value for name, value in vars(found).items() if name not in _PROGRAM_ATTRIBUTES}
            changes.append((found, cls, {**_plain_attributes(cls, node, own), **own}))
    for found, cls, attributes in changes:  # all or none
        vars(found).clear()
        vars(found).update(attributes)
        found.__class__ = cls  # type: ignore[assignment]  # any class of modules


def _plain_attributes(cls: type[nn.Module], node: SourceNode, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the described attributes; a tensor has to be an attribute of the module already."""
    found = {}
    for name, value in node.attributes.items():
        if not settable(cls, _BARE, name):
            raise FormatError(f"{node.type} cannot have the attribute {name!r} set")
        if type(value) is not TensorRef:
            found[name] = live(value)
        elif name not in own:
            raise FormatError(f"{node.type} has a tensor {name!r} that the build does not have")
    return found


_BARE = vars(nn.Module())
_CONTAINERS = {name: type(value) for name, value in _BARE.items() if isinstance(value, dict | set)}


_PROGRAM_ATTRIBUTES = frozenset(vars(ProgramModule("", ForwardSignature(()), "", None, ())).keys() - _BARE.keys())


def _empty(cls: type[nn.Module]) -> Any:
    """Make an instance in the state after ``nn.Module.__init__``, in half the time, without ``__setattr__``."""
    module = object.__new__(cls)  # a deprecated class warns in its own __new__
    module.__dict__.update(_BARE)
    module.__dict__.update({name: kind() for name, kind in _CONTAINERS.items()})
    return module


def _fill(module: nn.Module, node: ModuleNode, modules: list[nn.Module], values: list[torch.Tensor]) -> None:
    cls, attributes = type(module), module.__dict__
    for name, value in node.attributes.items():
        if not settable(cls, attributes, name):
            raise FormatError(f"{node.type} cannot have the attribute {name!r} set")
        attributes[name] = values[value.index] if type(value) is TensorRef else live(value)
    attributes["training"] = node.training
    for name, index in node.parameters:
        module._parameters[name] = None if index is None else _parameter(values[index], node, name)
    for name, index, persistent in node.buffers:
        module._buffers[name] = None if index is None else values[index]
        if not persistent:
            module._non_persistent_buffers_set.add(name)
    for name, index in node.children:
        module._modules[name] = None if index is None else modules[index]


def _parameter(tensor: torch.Tensor, node: ModuleNode, name: str) -> nn.Parameter:
    if not isinstance(tensor, nn.Parameter):
        raise FormatError(f"the parameter {name!r} of {node.type} is a tensor without the flag of a parameter")
    return tensor


def _finish(module: nn.Module, node: ModuleNode) -> None:
    restore_torch_state(module)
    if isinstance(node, GraphNode) and not isinstance(module._modules.get(GRAPH_MODULES), nn.ModuleDict):
        raise FormatError(f"a graph module must have a child {GRAPH_MODULES!r}, an nn.ModuleDict")


class BuiltState:
    """What the server has described of a model: the server knows this, whatever the trainer has set since."""

    def __init__(self, descriptor: Descriptor) -> None:
        self._modules = descriptor.modules
        self.is_lazy = any(node.shape is None for node in descriptor.tensors)
        """Whether the first call of a layer gives a tensor its shape."""

    def has_read(self, path: str, name: str, value: Any) -> bool:
        """Whether the described attribute of the module at ``path`` has a value.

        Example:
            >>> from model_factory.descriptor.tree import StockNode
            >>> dropout = StockNode(type="nn.Dropout", training=True, attributes={"p": 0.5})
            >>> built = BuiltState(Descriptor(modules=(dropout,), tensors=()))
            >>> built.has_read("", "p", 0.5), built.has_read("", "p", 0.7), built.has_read("", "secret", 0.5)
            (True, False, False)
        """
        node = self._find(path)
        if node is None:
            return False
        if name == "_modules":
            found: Any = tuple(name for name, _ in node.children)
        elif name in node.attributes:
            found = plain_read(live(node.attributes[name]))
        else:
            found = getattr(STOCK_CLASSES.get(node.type), name, _MISSING)
        return type(found) is type(value) and is_plain(value) and bool(found == value)

    def _find(self, path: str) -> ModuleNode | None:
        node = self._modules[0]
        for part in path.split(".") if path else ():
            index = dict(node.children).get(part)
            if index is None:
                return None
            node = self._modules[index]
        return node
