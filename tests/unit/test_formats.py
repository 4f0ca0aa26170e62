"""The documents of ``docs/formats``: real ones are valid, changed ones are not, and the pages show real ones."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from model_factory.config import resolve_file
from model_factory.describe.describe import describe
from model_factory.descriptor.codec import encode_descriptor, encode_programs
from model_factory.program.example_call import encode_call
from model_factory_server.backends.builtin import BuiltinBackend
from model_factory_server.export.exporter import record_model
from model_factory_server.settings.server_settings import BackendSettings
from model_factory_server.worker.construction import construct
from support.cases import CASES
from support.format_examples import PAGES, example_text, examples, pretty
from support.schemas import check, faults, schemas

NAMES = sorted(schemas())
UNKNOWN = "unknown field"

OPTIONAL = {
    "build-lock": {"checkpoint", "checkpoint_digest"},
    "model-file": {"checkpoint", "checkpoint_digest"},
    "description-record": {"programs"},
    "call": {"outcomes", "reads", "method", "range"},
    "config": {"width"},
}
"""Keys that a document may lack, beside keys that name something."""

NAMED = {
    "build-lock": {"models"},
    "lock-file": {"bundles", "files"},
    "source-bundle": {"files"},
    "weights-header": {""},
    "model-file": {"tensors"},
}
"""Mappings whose keys are names, by the key under which they lie; the root is under the empty one."""

OPEN = {("config", "spec"), ("config", "step"), ("config", "node"), ("config", "mappedNode"), ("config", "")}
"""Schemas with a part that may hold anything: the arguments of blocks and ops, and the example inputs."""


@cache
def real() -> dict[str, Any]:
    return examples()


def mappings(value: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping in a document, with the key under which it lies."""
    if isinstance(value, dict):
        yield key, value
        for name, item in value.items():
            yield from mappings(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from mappings(item, key)


def objects(schema: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of an object inside a schema, with the definition that it lies in."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield name, schema
        for key, item in schema.items():
            if key == "$defs":
                for definition, body in item.items():
                    yield from objects(body, definition)
            else:
                yield from objects(item, name)
    elif isinstance(schema, list):
        for item in schema:
            yield from objects(item, name)


@pytest.mark.parametrize("name", NAMES)
def test_schemas_are_schemas(name: str) -> None:
    Draft202012Validator.check_schema(schemas()[name])
    assert schemas()[name]["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("name", NAMES)
def test_schemas_are_closed(name: str) -> None:
    open_ = {where for where, item in objects(schemas()[name]) if item.get("additionalProperties", {}) == {}}
    assert {(name, where) for where in open_} <= OPEN


def test_every_document_has_a_schema_a_page_and_an_example() -> None:
    pages = {path.stem for path in PAGES.glob("*.md")} - {"index"}
    assert pages == set(NAMES) == set(real())


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_a_real_document(name: str) -> None:
    """Write the examples anew with ``python tests/support/format_examples.py``."""
    text = example_text((PAGES / f"{name}.md").read_text(encoding="utf-8"))
    check(name, text.encode())
    assert text == pretty(real()[name]) + "\n"


@pytest.mark.parametrize("name", NAMES)
def test_the_page_names_every_field(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    fields = {key for _, item in objects(schemas()[name]) for key in item.get("properties", {})}
    assert {field for field in fields if f"`{field}`" not in page} == set()


@pytest.mark.parametrize("name", [*NAMES, "index"])
def test_the_page_names_files_that_exist(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:client|server|tests|proto)/[\w./]+)`", page)
    assert [path for path in named if not (PAGES.parents[1] / path).exists()] == []


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_field_is_refused_everywhere(name: str) -> None:
    for index, (key, _) in enumerate(mappings(real()[name])):
        changed = copy.deepcopy(real()[name])
        where = list(mappings(changed))[index][1]
        if "_type_" in where:  # a keyword argument of a block
            continue
        where[UNKNOWN] = None
        assert faults(name, changed) != [], f"below {key!r}"


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_field_is_refused_everywhere(name: str) -> None:
    for index, (key, found) in enumerate(mappings(real()[name])):
        for field in found:
            changed = copy.deepcopy(real()[name])
            del list(mappings(changed))[index][1][field]
            if field not in OPTIONAL.get(name, ()) and key not in NAMED.get(name, ()):
                assert faults(name, changed) != [], f"{field!r} below {key!r}"


@pytest.mark.parametrize("name", NAMES)
def test_a_value_of_another_type_is_refused(name: str) -> None:
    assert faults(name, {"unknown": 1}) != []
    assert faults(name, "text") != []


@pytest.mark.parametrize("name", ["mlp", "conv_graph"])
def test_documents_of_the_small_models_are_valid(name: str) -> None:
    config = resolve_file(CASES[name].config, {})
    model = construct(BuiltinBackend(BackendSettings()), config, 0, "cpu")
    check("config", config.wire)
    check("descriptor", encode_descriptor(describe(model)))
    check("programs", encode_programs(record_model(model)))
    check("call", encode_call(CASES[name].inputs(2, 3)))
