"""Descriptors as canonical bytes, and back."""

from __future__ import annotations

from typing import Any

from model_factory.descriptor.tree import GRAPH, PROGRAM, STOCK, Descriptor, FunctionRef, ModuleNode, TensorNode
from model_factory.documents import FORMAT, decode_document, encode_document
from model_factory.errors import FormatError
from model_factory.graph.call_form import Recorded
from model_factory.graph.codec import (
    decode_program,
    decode_recorded,
    decode_signature,
    decode_value,
    encode_program,
    encode_recorded,
    encode_signature,
    encode_value,
)
from model_factory.limits import MAX_MODULES, MAX_TENSORS

Programs = tuple[tuple[str, Recorded], ...]
"""Recorded programs by module path."""


def encode_descriptor(descriptor: Descriptor) -> bytes:
    """Return a descriptor's canonical bytes."""
    return encode_document(
        {
            "format": FORMAT,
            "modules": [_encode_module(node) for node in descriptor.modules],
            "tensors": [
                [node.name, node.dtype, None if node.shape is None else list(node.shape), node.requires_grad]
                for node in descriptor.tensors
            ],
        }
    )


def decode_descriptor(data: bytes) -> Descriptor:
    """Parse and check a descriptor.

    Raises:
        FormatError: it breaks the format, a limit, or refers to what is not there.
    """
    document = _document(data, "descriptor", {"format", "modules", "tensors"})
    modules, tensors = document["modules"], document["tensors"]
    if not isinstance(modules, list) or not 0 < len(modules) <= MAX_MODULES:
        raise FormatError(f"a descriptor has 1 to {MAX_MODULES} modules")
    if not isinstance(tensors, list) or len(tensors) > MAX_TENSORS:
        raise FormatError(f"a descriptor has at most {MAX_TENSORS} tensors")
    try:
        descriptor = Descriptor(
            modules=tuple(_decode_module(node, len(modules), len(tensors)) for node in modules),
            tensors=tuple(_decode_tensor(node) for node in tensors),
        )
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise FormatError(f"malformed descriptor: {error!r}") from None
    if len({node.name for node in descriptor.tensors}) != len(tensors):
        raise FormatError("two tensors of a descriptor have the same name")
    _check_acyclic(descriptor)
    return descriptor


def encode_programs(programs: Programs) -> bytes:
    """Return the canonical bytes of recorded programs."""
    entries = [{"path": path, "recorded": encode_recorded(recorded)} for path, recorded in programs]
    return encode_document({"format": FORMAT, "programs": entries})


def decode_programs(data: bytes) -> Programs:
    """Parse and check recorded programs.

    Raises:
        FormatError: they break the format or a limit.
    """
    document = _document(data, "set of programs", {"format", "programs"})
    try:
        return tuple((_text(entry["path"]), decode_recorded(entry["recorded"])) for entry in document["programs"])
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise FormatError(f"malformed set of programs: {error!r}") from None


def _document(data: bytes, what: str, keys: set[str]) -> dict[str, Any]:
    document = decode_document(data, f"the {what}")
    if not isinstance(document, dict) or document.keys() != keys:
        raise FormatError(f"a {what} has exactly the keys {', '.join(sorted(keys))}")
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
        "attributes": [[name, _encode_attribute(value)] for name, value in node.attributes.items()],
        "children": [list(entry) for entry in node.children],
        "parameters": [list(entry) for entry in node.parameters],
        "buffers": [list(entry) for entry in node.buffers],
    }
    if node.signature is not None:
        document["signature"] = encode_signature(node.signature)
    if node.program is not None:
        document["program"] = encode_program(node.program)
    return document


_MODULE_KEYS = {"kind", "type", "training", "attributes", "children", "parameters", "buffers"}
_KEYS_BY_KIND = {STOCK: _MODULE_KEYS, PROGRAM: _MODULE_KEYS | {"signature"}, GRAPH: _MODULE_KEYS | {"program"}}


def _decode_module(data: Any, modules: int, tensors: int) -> ModuleNode:
    kind = data["kind"]
    if kind not in _KEYS_BY_KIND:
        raise FormatError(f"unknown kind of module {kind!r}")
    if data.keys() != _KEYS_BY_KIND[kind]:
        raise FormatError(f"a {kind} module has exactly the keys {', '.join(sorted(_KEYS_BY_KIND[kind]))}")
    return ModuleNode(
        kind=kind,
        type=_text(data["type"]),
        training=_flag(data["training"]),
        attributes={_text(name): _decode_attribute(value) for name, value in data["attributes"]},
        children=tuple((_member(name), _index(child, modules)) for name, child in data["children"]),
        parameters=tuple((_member(name), _index(item, tensors)) for name, item in data["parameters"]),
        buffers=tuple((_member(name), _index(item, tensors), _flag(kept)) for name, item, kept in data["buffers"]),
        signature=decode_signature(data["signature"]) if kind == PROGRAM else None,
        program=decode_program(data["program"]) if kind == GRAPH else None,
    )


def _encode_attribute(value: Any) -> Any:
    return {"function": value.name} if isinstance(value, FunctionRef) else encode_value(value)


def _decode_attribute(data: Any) -> Any:
    if isinstance(data, dict) and data.keys() == {"function"}:
        return FunctionRef(_text(data["function"]))
    return decode_value(data)


def _decode_tensor(data: Any) -> TensorNode:
    name, dtype, shape, requires_grad = data
    return TensorNode(
        name=_text(name),
        dtype=_text(dtype),
        shape=None if shape is None else tuple(_size(size) for size in shape),
        requires_grad=_flag(requires_grad),
    )


def _check_acyclic(descriptor: Descriptor) -> None:
    """A module below itself would make every walk endless."""
    done: set[int] = set()
    open_: set[int] = set()
    stack: list[tuple[int, bool]] = [(0, False)]
    while stack:
        index, leaving = stack.pop()
        if leaving:
            open_.discard(index)
            done.add(index)
        elif index in open_:
            raise FormatError("a module of a descriptor is below itself")
        elif index not in done:
            open_.add(index)
            stack.append((index, True))
            stack.extend((child, False) for _, child in descriptor.modules[index].children if child is not None)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise FormatError(f"expected a string, got {type(value).__name__}")
    return value


def _member(value: Any) -> str:
    if not isinstance(value, str) or "." in value:
        raise FormatError(f"{value!r} cannot be the name of a child, parameter or buffer")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise FormatError(f"expected true or false, got {value!r}")
    return value


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise FormatError(f"{value!r} is not a size")
    return value


def _index(value: Any, count: int) -> int | None:
    if value is not None and (type(value) is not int or not 0 <= value < count):
        raise FormatError(f"{value!r} refers to nothing")
    return value
