"""A resolved tree -> the typed model: everything that can be checked without knowing a type or an op."""

from __future__ import annotations

from dataclasses import replace

from model_factory.config.schema.model_config import ModelConfig, Settings
from model_factory.config.schema.model_forms import read_graph, read_sequential
from model_factory.config.schema.signature import check_signature
from model_factory.config.syntax.expect import (
    require_bool,
    require_entry,
    require_keys,
    require_list,
    require_map,
    require_text,
)
from model_factory.config.syntax.nodes import ConfigPath, MapNode, Node, Scalar, error_at, found, lower

SCHEMA_VERSION = 1
"""The version of the language that this package reads."""

TOP_LEVEL_KEYS = ("schema_version", "model", "settings", "signature")
"""The top-level keys that mean something once a config is resolved. Others are allowed and mean nothing."""

_MODEL_FORMS = {"sequential": read_sequential, "graph": read_graph}
_SETTINGS = ("strict", "allow_imports", "allowed_import_prefixes", "allow_target")


def check(tree: MapNode) -> ModelConfig:
    """Return the model of a resolved config.

    Raises ConfigError, with the path and the place of what is wrong.
    """
    _check_schema_version(tree)
    settings = _read_settings(tree.entries["settings"], ("settings",)) if "settings" in tree.entries else Settings()
    model = _read_model(require_map(require_entry(tree, (), "model"), ("model",)), ("model",), settings)
    if "signature" not in tree.entries:
        return model
    signature = check_signature(tree.entries["signature"], ("signature",), model.inputs)
    return replace(model, signature=lower(signature))


def _check_schema_version(tree: MapNode) -> None:
    version = require_entry(tree, (), "schema_version")
    if not isinstance(version, Scalar) or type(version.value) is not int or version.value != SCHEMA_VERSION:
        raise error_at(version, ("schema_version",), f"must be {SCHEMA_VERSION}, found {found(version)}")


def _read_model(model: MapNode, path: ConfigPath, settings: Settings) -> ModelConfig:
    require_keys(model, path, _MODEL_FORMS)
    if len(model.entries) != 1:
        what = "both" if model.entries else "neither"
        raise error_at(model, path, f"a model is exactly one of 'sequential' and 'graph', found {what}")
    form, body = next(iter(model.entries.items()))
    return _MODEL_FORMS[form](require_map(body, (*path, form)), (*path, form), settings)


def _read_settings(node: Node, path: ConfigPath) -> Settings:
    settings = require_map(node, path)
    require_keys(settings, path, _SETTINGS)
    given: dict[str, bool | tuple[str, ...]] = {}
    for key, value in settings.entries.items():
        if key == "allowed_import_prefixes":
            prefixes = require_list(value, (*path, key), "prefixes").items
            given[key] = tuple(require_text(item, (*path, key, index)) for index, item in enumerate(prefixes))
        else:
            given[key] = require_bool(value, (*path, key))
    return replace(Settings(), **given)  # type: ignore[arg-type]  # each key was read as its field's type
