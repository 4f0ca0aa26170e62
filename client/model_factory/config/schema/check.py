"""A resolved tree to the typed model: all checks without knowledge of types and ops."""

from __future__ import annotations

from dataclasses import replace

from model_factory.config.schema.graph import read_graph
from model_factory.config.schema.model_config import ModelConfig, Settings
from model_factory.config.schema.sequential import read_sequential
from model_factory.config.schema.signature_examples import read_signature
from model_factory.config.syntax.cursor import Cursor
from model_factory.config.syntax.nodes import MapNode

SCHEMA_VERSION = 1
"""The version of the language that this package reads."""

TOP_LEVEL_KEYS = ("schema_version", "model", "settings", "signature")
"""The top-level keys with a meaning in a resolved config. Other keys are allowed and ignored."""

MODEL_KINDS = {"sequential": read_sequential, "graph": read_graph}
"""The kinds of model by key, each with its reader."""

SETTINGS = ("strict", "allow_imports", "allowed_import_prefixes", "allow_target")
"""The keys of ``settings``."""


def check(tree: MapNode) -> ModelConfig:
    """Return the model of a resolved config.

    Raises ConfigError with the path and the place of the error.
    """
    config = Cursor(tree)
    version = config.entry("schema_version")
    if type(version.scalar_value()) is not int or version.scalar_value() != SCHEMA_VERSION:
        raise version.error(f"must be {SCHEMA_VERSION}, found {version.found}")
    settings_at = config.get("settings")
    settings = Settings() if settings_at is None else _read_settings(settings_at)
    model = _read_model(config.entry("model"), settings)
    signature = config.get("signature")
    return model if signature is None else replace(model, signature=read_signature(signature, model.inputs))


def _read_model(at: Cursor, settings: Settings) -> ModelConfig:
    entries = at.entries(MODEL_KINDS)
    if len(entries) != 1:
        what = "both" if entries else "neither"
        raise at.error(f"a model is exactly one of 'sequential' and 'graph', found {what}")
    ((kind, body),) = entries.items()
    return MODEL_KINDS[kind](body, settings)


def _read_settings(at: Cursor) -> Settings:
    given: dict[str, bool | tuple[str, ...]] = {}
    for key, value in at.entries(SETTINGS).items():
        if key == "allowed_import_prefixes":
            given[key] = tuple(item.text() for item in value.items("prefixes"))
        else:
            given[key] = value.boolean()
    return replace(Settings(), **given)  # type: ignore[arg-type]  # each key was read as its field's type
