"""The JSON schemas of ``docs/formats``."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

FORMATS = Path(__file__).parents[2] / "docs" / "formats"
_SUFFIX = ".schema.json"


@cache
def schemas() -> dict[str, Any]:
    """Every schema by the name of its document."""
    paths = sorted(FORMATS.glob(f"*{_SUFFIX}"))
    return {path.name.removesuffix(_SUFFIX): json.loads(path.read_text(encoding="utf-8")) for path in paths}


@cache
def _registry() -> Registry[Any]:
    entries = [(f"{name}{_SUFFIX}", DRAFT202012.create_resource(schema)) for name, schema in schemas().items()]
    return Registry[Any]().with_resources(entries)


@cache
def validator(name: str) -> Draft202012Validator:
    """The validator of a document."""
    return Draft202012Validator({"$ref": f"{name}{_SUFFIX}"}, registry=_registry())


def faults(name: str, document: Any) -> list[str]:
    """Say where a document breaks its schema, and how."""
    return [f"{error.json_path}: {error.message[:300]}" for error in validator(name).iter_errors(document)]


def check(name: str, document: bytes | Any) -> None:
    """Check a document, given as bytes or as data."""
    data = json.loads(document) if isinstance(document, bytes) else document
    assert faults(name, data) == []
