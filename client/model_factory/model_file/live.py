"""The portable form of a live model: descriptor, programs and source, derived from the modules as they are now.

Nothing is kept beside the modules, so a model that a trainer has changed is written with the changes, or refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from model_factory.describe.attributes import real_class
from model_factory.describe.describe import describe, named_tensors
from model_factory.describe.programs import programs_of
from model_factory.describe.refusals import refuse_class
from model_factory.descriptor.codec import Programs
from model_factory.descriptor.stock import stock_type
from model_factory.descriptor.tree import Descriptor, SourceClass
from model_factory.digest import Blob
from model_factory.errors import NotPortableError
from model_factory.identity import BuildInfo
from model_factory.program.runtime.graph_model import GraphModel
from model_factory.program.runtime.program_module import ProgramModule
from model_factory.program.runtime.signed_class import is_signed
from model_factory.source.bundle import encode_bundle
from model_factory.source.loader import TrustedSource, source_of

_COMPILED_CALL = "_compiled_call_impl"
"""Attribute of a module after ``module.compile()``."""

_WRAPPERS = {
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
}
"""Wrappers that only change where or how a module runs, with the attribute of the module inside."""

_SHARDING = ("torch.distributed.fsdp", "torch.distributed._composable", "torch.distributed.tensor")
"""Packages whose classes split the parameters of a module over processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PortableModel:
    """The parts of a model in a file."""

    descriptor: Descriptor
    """The module tree."""
    programs: Programs
    """The recorded programs."""
    bundle: bytes | None
    """The source bundle, if a module needs source."""
    build_info: BuildInfo | None
    """The record of the build; None for a part of a model, or a trainer's own container."""
    tensors: dict[str, torch.Tensor]
    """Tensors by name in the descriptor, on any device."""


Recorder = Callable[[nn.Module], tuple[Descriptor, Programs]]
"""Records a model whose classes are in this process."""

_recorders: list[Recorder] = []


def use_recorder(recorder: Recorder) -> None:
    """Save models of classes in this process with the help of ``recorder``; without one, they are refused."""
    _recorders[:] = [recorder]


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside ``DistributedDataParallel``, ``DataParallel`` and ``torch.compile``.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> unwrapped(torch.compile(layer, backend="eager")) is layer
        True
    """
    while (inside := _WRAPPERS.get(f"{type(module).__module__}.{type(module).__qualname__}")) is not None:
        module = getattr(module, inside)
    return module


def undescribed(module: nn.Module) -> list[str]:
    """Return the attributes of a module that belong to the build or to this process: the build info, compiled code."""
    own = module.__dict__.items()
    return [name for name, value in own if isinstance(value, BuildInfo) or name == _COMPILED_CALL]


def portable_model(model: nn.Module) -> PortableModel:
    """Return the portable form of a model from any factory, or from a file.

    Raises:
        NotPortableError: a module has been replaced, wrapped or given hooks in a way that a file cannot hold; the
            message has the module and the remedy.

    Example:
        >>> portable_model(nn.Linear(2, 2)).descriptor.modules[0].type
        'nn.Linear'
    """
    model = unwrapped(model)
    _refuse_shards(model)
    for path, item in model.named_modules():
        refuse_class(item, f"{path or 'the model'} ({type(item).__name__})")
    custom = {path: item for path, item in model.named_modules() if not _is_portable(item)}
    if not custom:
        return _described(model)
    if not _recorders or any(map(_is_rebuilt, model.modules())):
        path, item = next(iter(custom.items()))
        raise NotPortableError(_refusal(path, item))
    descriptor, programs = _recorders[0](model)
    return PortableModel(
        descriptor=descriptor,
        programs=programs,
        bundle=None,
        build_info=_build_info(model),
        tensors=named_tensors(model, descriptor),
    )


def _described(model: nn.Module) -> PortableModel:
    sources, bundle = _sources(model)
    described = describe(
        *(model, sources, None if bundle is None else Blob.of(bundle)),
        left_out={(id(item.__dict__), name) for item in model.modules() for name in undescribed(item)},
        is_trained=True,
    )
    return PortableModel(
        descriptor=described,
        programs=programs_of(model),
        bundle=bundle,
        build_info=_build_info(model),
        tensors=named_tensors(model, described),
    )


def _build_info(model: nn.Module) -> BuildInfo | None:
    return next((value for value in model.__dict__.values() if isinstance(value, BuildInfo)), None)


def _is_rebuilt(module: nn.Module) -> bool:
    return isinstance(module, ProgramModule) or source_of(real_class(module)) is not None


def _is_portable(module: nn.Module) -> bool:
    """Whether the forward of a module is torch's own, a program, a graph, or trusted source."""
    if next(_replaced_methods(module), None) is not None:
        return False
    cls = real_class(module)
    if isinstance(module, ProgramModule | GraphModel):
        return cls is GraphModel or is_signed(cls)
    return stock_type(module) is not None or source_of(cls) is not None


def _replaced_methods(module: nn.Module) -> Iterator[str]:
    """Yield the methods of a module's class that are replaced on the module itself."""
    for name in module.__dict__:
        if name != _COMPILED_CALL and callable(getattr(type(module), name, None)):
            yield name


def _sources(model: nn.Module) -> tuple[dict[nn.Module, SourceClass], bytes | None]:
    """Return the classes of modules from trusted source, and the bundle."""
    found: dict[nn.Module, SourceClass] = {}
    bundles: dict[str, TrustedSource] = {}
    for module in model.modules():
        cls = real_class(module)
        known = source_of(cls)
        if known is not None:
            source, name = known
            bundles[source.digest] = source
            reason = source.reasons.get((name, cls.__qualname__), "")
            found[module] = SourceClass(module=name, qualname=cls.__qualname__, reason=reason)
    if len(bundles) > 1:
        raise NotPortableError(
            f"the model has blocks from {len(bundles)} bundles of source code, and a model of a file has one bundle. "
            "Remedy: save the models in a mapping, one entry for each built model"
        )
    return found, next((encode_bundle(source.bundle) for source in bundles.values()), None)


def _refusal(path: str, module: nn.Module) -> str:
    where = f"{path or 'the model'} ({type(module).__name__})"
    replaced = next(_replaced_methods(module), None)
    if replaced is not None:
        return (
            f"{where} has another {replaced}() than the module's class, and code of this process is not saved. Remedy: "
            f"delete the attribute {replaced!r}; after accelerate: accelerator.unwrap_model(model)"
        )
    if not _recorders:
        return (
            f"the class of {where} is neither torch's own nor from a build, and code of this process is not saved. "
            "Remedy: put a layer of torch.nn in its place (adapters: merge them into the layer, for example with "
            "peft's merge_and_unload()); or build the model with a factory of model-factory"
        )
    return (
        f"{where} was put into a built model, and code of this process is not saved. Remedy: put a layer of torch.nn "
        "in its place (adapters: merge them into the layer, for example with peft's merge_and_unload())"
    )


def _refuse_shards(model: nn.Module) -> None:
    for path, module in model.named_modules():
        tensors: list[Any] = [module, *module._parameters.values(), *module._buffers.values()]  # noqa: SLF001
        if any(cls.__module__.startswith(_SHARDING) for item in tensors for cls in type(item).__mro__):
            raise NotPortableError(
                f"{path or 'the model'} ({type(module).__name__}) is split over processes. Remedy: gather the full "
                "state dict (torch.distributed.checkpoint.state_dict.get_model_state_dict, full_state_dict=True), "
                "load the state dict into a model of the same build that is not split, and save that model"
            )
