"""Descriptors as canonical bytes, and back."""

from __future__ import annotations

import math
from collections import Counter
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
from model_factory.descriptor.walks import check_walks
from model_factory.digest import Blob, check_digest
from model_factory.documents import (
    FORMAT,
    decode_document,
    encode_document,
    expect_name,
    expect_str,
    expect_type,
    mapping,
)
from model_factory.errors import FormatError, safe_text
from model_factory.limits import MAX_ELEMENTS, MAX_INTEGER, MAX_MODULES, MAX_RANK, MAX_TENSORS
from model_factory.program.codec.json_fields import exact_fields, expect_paths
from model_factory.program.codec.programs import decode_program, decode_recorded, encode_program, encode_recorded
from model_factory.program.codec.signatures import decode_forward_signature, encode_forward_signature
from model_factory.program.recorded_program import RecordedProgram
from model_factory.wording import is_printable, quoted

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
    check_walks(descriptor.modules)
    return descriptor


def encode_programs(programs: Programs) -> bytes:
    """Return the canonical bytes of recorded programs; equal programs of several modules are written once.

    Example:
        >>> encode_programs(())
        b'{"format":5,"programs":[]}'
    """
    encoded: dict[int, Any] = {}  # by id of the program
    for _, recorded in programs:
        if id(recorded) not in encoded:
            encoded[id(recorded)] = encode_recorded(recorded)
    entries: dict[bytes, dict[str, Any]] = {}
    texts = {key: encode_document(item) for key, item in encoded.items()}
    for path, recorded in programs:
        entry = entries.setdefault(texts[id(recorded)], {"paths": [], "recorded": encoded[id(recorded)]})
        entry["paths"].append(path)
    return encode_document({"format": FORMAT, "programs": list(entries.values())})


def decode_programs(data: bytes) -> Programs:
    """Parse and check recorded programs. A program of several modules is one object in all of their entries.

    Raises:
        FormatError: a program breaks the format or a limit.
    """
    document = _document(data, "set of programs", {"format", "programs"})
    try:
        groups = [
            (expect_paths(entry["paths"]), decode_recorded(entry["recorded"]))
            for entry in (exact_fields(entry, "paths", "recorded") for entry in document["programs"])
        ]
        programs = tuple((path, recorded) for paths, recorded in groups for path in paths)
        _refuse_repeated(programs)
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise FormatError(f"malformed set of programs: {error!r}") from None
    return programs


def _refuse_repeated(programs: Programs) -> None:
    """Refuse equal programs of one module: written again, the two would be one entry with a path given twice."""
    paths = Counter(path for path, _ in programs)
    several = [(path, recorded) for path, recorded in programs if paths[path] > 1]
    texts = {id(recorded): encode_document(encode_recorded(recorded)) for _, recorded in several}
    if len({(path, texts[id(recorded)]) for path, recorded in several}) < len(several):
        raise FormatError("a module has the same program twice")


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
    _check_names(node)
    for value in node.attributes.values():
        if isinstance(value, TensorRef):
            _index(value.index, tensors)
        elif isinstance(value, str) and isinstance(node, StockNode):
            expect_name(value)  # torch shows the attribute in repr() unescaped
    return node


def _decode_common(data: Any, modules: int, tensors: int) -> dict[str, Any]:
    """Return the fields of ``ModuleNode``."""
    return {
        "type": expect_name(data["type"]),
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
    return mapping(((expect_name(name), decode_attribute(value)) for name, value in data), "an attribute")


def _encode_tensor(node: TensorNode) -> list[Any]:
    shape = None if node.shape is None else list(node.shape)
    attributes = _encode_attributes(node.attributes)
    return [node.name, node.dtype, shape, node.requires_grad, node.parameter, list(node.order), attributes]


def _decode_tensor(data: Any) -> TensorNode:
    name, dtype, shape, requires_grad, parameter, order, attributes = data
    if not is_printable(expect_str(name)):
        raise FormatError(f"{quoted(name)} is not the path of a tensor")
    if order and (shape is None or sorted(map(_size, order)) != list(range(len(shape)))):
        raise FormatError(f"{order!r} is not an order of the axes of {name!r}")
    return TensorNode(
        name=name,
        dtype=expect_str(dtype),
        shape=None if shape is None else _shape(shape, name),
        requires_grad=expect_type(requires_grad, bool),
        parameter=expect_type(parameter, bool),
        order=tuple(order),
        attributes=_decode_attributes(attributes),
    )


def _shape(data: Any, name: str) -> tuple[int, ...]:
    shape = tuple(map(_size, expect_type(data, list)))
    if len(shape) > MAX_RANK or max(shape, default=0) > MAX_INTEGER or math.prod(s or 1 for s in shape) > MAX_ELEMENTS:
        raise FormatError(
            f"tensor {quoted(name)} has the shape {shape}; allowed: {MAX_RANK} axes, sizes up to {MAX_INTEGER} and "
            f"{MAX_ELEMENTS} elements"
        )
    return shape


def _decode_source(data: Any) -> SourceClass:
    module, qualname, reason = data
    return SourceClass(module=expect_name(module), qualname=expect_name(qualname), reason=safe_text(expect_str(reason)))


def _decode_bundle(data: Any) -> Blob:
    digest, size = data
    return Blob(check_digest(expect_str(digest)), _size(size))


def _member(value: Any) -> str:
    if "." in (name := expect_name(value)):
        raise FormatError(f"{quoted(name)} cannot be the name of a child, parameter or buffer")
    return name


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise FormatError(f"{value!r} is not a size")
    return value


def _index(value: Any, count: int) -> int | None:
    if value is not None and (type(value) is not int or not 0 <= value < count):
        raise FormatError(f"{value!r} is not a position in the table of {count} entries")
    return value
