"""Chooses the modules to be sent as source code, and verifies a rebuild of the modules."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from model_factory.describe.attributes import real_class
from model_factory.describe.describe import named_tensors
from model_factory.descriptor.codec import Programs, decode_descriptor, encode_descriptor
from model_factory.descriptor.rebuild import rebuild
from model_factory.descriptor.stock import is_stock
from model_factory.descriptor.tree import Descriptor, SourceClass
from model_factory.digest import Blob
from model_factory.errors import NotPortableError
from model_factory.program.runtime.lookup import get_module
from model_factory.source.loader import load_source
from model_factory_server.export.example_inputs import Call
from model_factory_server.export.source.bundling import Root, collect, find_file
from model_factory_server.export.verify.rebuilt import verify_rebuilt


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModules:
    """The modules of a model to be sent as source code."""

    classes: Mapping[nn.Module, SourceClass]
    """Class and reason of each module."""
    bundle: bytes
    """The source files of the classes and their imports."""

    @property
    def ref(self) -> Blob:
        """Digest and size of the bundle."""
        return Blob.of(self.bundle)


def is_shareable(module: nn.Module, roots: Sequence[Root]) -> bool:
    """Whether a module's class is the operator's and can be imported by name."""
    cls = real_class(module)
    found: Any = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is cls and find_file(cls.__module__, roots) is not None


def source_classes(model: nn.Module, refused: Mapping[str, str], roots: Sequence[Root]) -> dict[nn.Module, SourceClass]:
    """Choose the modules to be sent as source code: refused modules if shareable, and shareable modules below.

    Source code may use the modules below in any way, and not only by calls. So the modules below keep their classes,
    too. Torch's modules stay torch's, and a library's modules stay programs.
    """
    found: dict[nn.Module, SourceClass] = {}
    pending = [(get_module(model, path), reason) for path, reason in refused.items()]
    while pending:
        module, reason = pending.pop(0)
        if module in found or not (is_stock(module) or is_shareable(module, roots)):
            continue
        if not is_stock(module):
            cls = real_class(module)
            found[module] = SourceClass(module=cls.__module__, qualname=cls.__qualname__, reason=reason)
            reason = f"part of a {cls.__name__}, which is sent as source code"
        pending.extend((child, reason) for child in module.children())
    return found


def bundle_sources(classes: Mapping[nn.Module, SourceClass], roots: Sequence[Root]) -> SourceModules | None:
    """Bundle the source code of these classes; return ``None`` without classes.

    Raises:
        NotPortableError: the files do not fit in a bundle.
    """
    if not classes:
        return None
    return SourceModules(classes=classes, bundle=collect({item.module for item in classes.values()}, roots))


def verify_sources(
    model: nn.Module, sources: SourceModules, described: Descriptor, programs: Programs, calls: Sequence[Call]
) -> None:
    """Rebuild the model from its descriptor and the bundle, as a trainer does, and compare the source modules.

    Raises:
        NotPortableError: the bundle cannot be loaded, or a rebuilt module differs in one of ``calls``.
    """
    descriptor = decode_descriptor(encode_descriptor(described))
    loaded = load_source(sources.bundle, sources.ref.digest, "the model")
    rebuilt = rebuild(
        descriptor,
        named_tensors(model, described),
        programs,
        find_class=lambda item: loaded.find_class(item.module, item.qualname),
    )
    for path, arguments in calls:
        module = get_module(model, path)
        if module in sources.classes:
            try:
                verify_rebuilt(module, get_module(rebuilt, path), arguments)
            except NotPortableError as error:
                raise NotPortableError(f"{path or 'the model'} ({type(module).__name__}): {error}") from error
