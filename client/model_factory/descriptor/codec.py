"""Descriptors as canonical bytes, and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from model_factory.descriptor.attributes import decode_attribute, encode_attribute
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
from model_factory.digest import Blob, check_digest
from model_factory.documents import FORMAT, decode_document, encode_document, expect_str, expect_type, mapping
from model_factory.errors import FormatError
from model_factory.limits import MAX_MODULES, MAX_TENSORS
from model_factory.program.codec.programs import decode_program, decode_recorded, encode_program, encode_recorded
from model_factory.program.codec.signatures import decode_forward_signature, encode_forward_signature
from model_factory.program.recorded_program import RecordedProgram

MAX_DEPTH = 200
"""Maximum nesting of modules; torch's own walks are recursive."""

Programs = tuple[tuple[str, RecordedProgram], ...]
"""Recorded programs by module path."""


def encode_descriptor(descriptor: Descriptor) -> bytes:
    """Return a descriptor's canonical bytes."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "modules": [_encode_module(node) for node in descriptor.modules],
        "tensors": [_encode_tensor(node) for node in descriptor.tensors],
    }
    if descriptor.bundle is not None:
        document["bundle"] = [descriptor.bundle.digest, descriptor.bundle.size]
    return encode_document(document)


def decode_descriptor(data: bytes) -> Descriptor:
    """Parse and check a descriptor.

    Raises:
        FormatError: the descriptor breaks the format or a limit, or has a reference to a missing entry.
    """
    document = _document(data, "descriptor", {"format", "modules", "tensors"}, optional={"bundle"})
    modules, tensors = document["modules"], document["tensors"]
    if not isinstance(modules, list) or not 0 < len(modules) <= MAX_MODULES:
        raise FormatError(f"a descriptor must have 1 to {MAX_MODULES} modules")
    if not isinstance(tensors, list) or len(tensors) > MAX_TENSORS:
        raise FormatError(f"a descriptor must have at most {MAX_TENSORS} tensors")
    try:
        descriptor = Descriptor(
            modules=tuple(_decode_module(node, len(modules), len(tensors)) for node in modules),
            tensors=tuple(_decode_tensor(node) for node in tensors),
            bundle=_decode_bundle(document["bundle"]) if "bundle" in document else None,
        )
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise FormatError(f"malformed descriptor: {error!r}") from None
    if len({node.name for node in descriptor.tensors}) != len(tensors):
        raise FormatError("two tensors of a descriptor have the same name")
    if (descriptor.bundle is not None) != any(isinstance(node, SourceNode) for node in descriptor.modules):
        raise FormatError("a descriptor must have a bundle if a module needs source, and no bundle otherwise")
    _check_tree(descriptor)
    return descriptor


def encode_programs(programs: Programs) -> bytes:
    """Return the canonical bytes of recorded programs."""
    entries = [{"path": path, "recorded": encode_recorded(recorded)} for path, recorded in programs]
    return encode_document({"format": FORMAT, "programs": entries})


def decode_programs(data: bytes) -> Programs:
    """Parse and check recorded programs.

    Raises:
        FormatError: a program breaks the format or a limit.
    """
    document = _document(data, "set of programs", {"format", "programs"})
    try:
        return tuple((expect_str(entry["path"]), decode_recorded(entry["recorded"])) for entry in document["programs"])
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise FormatError(f"malformed set of programs: {error!r}") from None


def _document(data: bytes, what: str, keys: set[str], optional: Collection[str] = ()) -> dict[str, Any]:
    document = decode_document(data, f"the {what}")
    if not isinstance(document, dict) or document.keys() - set(optional) != keys:
        raise FormatError(f"a {what} must have exactly the keys {', '.join(sorted(keys))}")
    if document["format"] != FORMAT:
        raise FormatError(
            f"the {what} has format {document['format']!r}; this version of model-factory reads format {FORMAT}. "
            "Remedy: install the same version on the trainer and the server"
        )
    return document


def _encode_module(node: ModuleNode) -> dict[str, Any]:
    document: dict[str, Any] = {
        "kind": node.kind,
        "type": node.type,
        "training": node.training,
        "attributes": _encode_attributes(node.attributes),
        "children": [list(entry) for entry in node.children],
        "parameters": [list(entry) for entry in node.parameters],
        "buffers": [list(entry) for entry in node.buffers],
    }
    match node:
        case ProgramNode():
            document["signature"] = encode_forward_signature(node.signature)
            document["frozen"] = list(node.frozen)
            if node.declared_methods:
                document["methods"] = [[name, encode_forward_signature(item)] for name, item in node.declared_methods]
        case GraphNode():
            document["program"] = encode_program(node.program)
        case SourceNode():
            document["source"] = [node.source.module, node.source.qualname, node.source.reason]
    return document


_MODULE_KEYS = {"kind", "type", "training", "attributes", "children", "parameters", "buffers"}
_KEYS_BY_KIND = {
    StockNode.kind: _MODULE_KEYS,
    ProgramNode.kind: _MODULE_KEYS | {"signature", "frozen"},
    GraphNode.kind: _MODULE_KEYS | {"program"},
    SourceNode.kind: _MODULE_KEYS | {"source"},
}
_OPTIONAL_KEYS = {ProgramNode.kind: frozenset({"methods"})}


def _decode_module(data: Any, modules: int, tensors: int) -> ModuleNode:
    kind = data["kind"]
    if kind not in _KEYS_BY_KIND:
        raise FormatError(f"unknown kind of module {kind!r}")
    if data.keys() - _OPTIONAL_KEYS.get(kind, frozenset()) != _KEYS_BY_KIND[kind]:
        raise FormatError(f"a {kind} module must have exactly the keys {', '.join(sorted(_KEYS_BY_KIND[kind]))}")
    node = _decode_kind(data, _decode_common(data, modules, tensors))
    if not node.type.isprintable():
        raise FormatError(f"{node.type!r} is not the name of a class")
    _check_names(node)
    for value in node.attributes.values():
        if isinstance(value, TensorRef):
            _index(value.index, tensors)
    return node


def _decode_common(data: Any, modules: int, tensors: int) -> dict[str, Any]:
    """Return the fields of ``ModuleNode``."""
    return {
        "type": expect_str(data["type"]),
        "training": expect_type(data["training"], bool),
        "attributes": _decode_attributes(data["attributes"]),
        "children": tuple((_member(name), _index(child, modules)) for name, child in data["children"]),
        "parameters": tuple((_member(name), _index(item, tensors)) for name, item in data["parameters"]),
        "buffers": tuple(
            (_member(name), _index(item, tensors), expect_type(kept, bool)) for name, item, kept in data["buffers"]
        ),
    }


def _decode_kind(data: Any, common: dict[str, Any]) -> ModuleNode:
    if data["kind"] == StockNode.kind:
        return StockNode(**common)
    if data["kind"] == GraphNode.kind:
        return GraphNode(**common, program=decode_program(data["program"]))
    if data["kind"] == SourceNode.kind:
        return SourceNode(**common, source=_decode_source(data["source"]))
    return ProgramNode(
        **common,
        signature=decode_forward_signature(data["signature"]),
        frozen=tuple(expect_str(path) for path in data["frozen"]),
        declared_methods=tuple(
            (_member(name), decode_forward_signature(item)) for name, item in data.get("methods", ())
        ),
    )


def _check_names(node: ModuleNode) -> None:
    methods = node.declared_methods if isinstance(node, ProgramNode) else ()
    members = (node.children, node.parameters, node.buffers, methods)
    tables = (node.attributes, *({entry[0] for entry in table} for table in members))
    entries = len(node.attributes) + sum(map(len, members))
    if len(set().union(*tables)) != entries:
        raise FormatError(f"a {node.type} has two members of the same name")


def _encode_attributes(attributes: Mapping[str, Any]) -> list[Any]:
    return [[name, encode_attribute(value)] for name, value in attributes.items()]


def _decode_attributes(data: Any) -> dict[str, Any]:
    return mapping(((expect_str(name), decode_attribute(value)) for name, value in data), "an attribute")


def _encode_tensor(node: TensorNode) -> list[Any]:
    shape = None if node.shape is None else list(node.shape)
    attributes = _encode_attributes(node.attributes)
    return [node.name, node.dtype, shape, node.requires_grad, node.parameter, list(node.order), attributes]


def _decode_tensor(data: Any) -> TensorNode:
    name, dtype, shape, requires_grad, parameter, order, attributes = data
    if order and (shape is None or sorted(map(_size, order)) != list(range(len(shape)))):
        raise FormatError(f"{order!r} is not an order of the axes of {name!r}")
    return TensorNode(
        name=expect_str(name),
        dtype=expect_str(dtype),
        shape=None if shape is None else tuple(_size(size) for size in shape),
        requires_grad=expect_type(requires_grad, bool),
        parameter=expect_type(parameter, bool),
        order=tuple(order),
        attributes=_decode_attributes(attributes),
    )


def _decode_source(data: Any) -> SourceClass:
    module, qualname, reason = map(expect_str, data)
    return SourceClass(module=module, qualname=qualname, reason=reason)


def _decode_bundle(data: Any) -> Blob:
    digest, size = data
    return Blob(check_digest(expect_str(digest)), _size(size))


def _check_tree(descriptor: Descriptor) -> None:
    """Bound a walk over the modules: no module is below itself, and a walk visits shared modules not too often."""
    visits: dict[int, int] = {}  # of a walk like a state dict's, which enters shared modules each time
    open_: set[int] = set()
    stack: list[tuple[int, bool]] = [(0, False)]
    while stack:
        index, leaving = stack.pop()
        children = [child for _, child in descriptor.modules[index].children if child is not None]
        if leaving:
            open_.discard(index)
            visits[index] = 1 + sum(visits[child] for child in children)
        elif index in open_:
            raise FormatError("a module of a descriptor is below itself")
        elif index not in visits:
            if len(open_) >= MAX_DEPTH:
                raise FormatError(f"modules of a descriptor are nested more than {MAX_DEPTH} deep")
            open_.add(index)
            stack.append((index, True))
            stack.extend((child, False) for child in children)
    if len(visits) != len(descriptor.modules):
        raise FormatError("a descriptor has modules outside of the tree of module 0")
    if visits[0] > MAX_MODULES:
        raise FormatError(f"a walk over the modules of a descriptor takes more than {MAX_MODULES} visits")


def _member(value: Any) -> str:
    if not isinstance(value, str) or "." in value:
        raise FormatError(f"{value!r} cannot be the name of a child, parameter or buffer")
    return value


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise FormatError(f"{value!r} is not a size")
    return value


def _index(value: Any, count: int) -> int | None:
    if value is not None and (type(value) is not int or not 0 <= value < count):
        raise FormatError(f"{value!r} is not a position in the table of {count} entries")
    return value
