"""A resolved tree to the typed model: all checks without knowledge of types and ops."""

from __future__ import annotations

import re
from dataclasses import replace

from model_factory.config.schema.graph import read_graph
from model_factory.config.schema.model_config import ModelConfig, NamedCheckpoint, Settings
from model_factory.config.schema.sequential import read_sequential
from model_factory.config.schema.signature_examples import read_signature
from model_factory.config.syntax.cursor import Cursor
from model_factory.config.syntax.nodes import ConfigPath, MapNode, Node, Scalar
from model_factory.limits import MAX_INTEGER
from model_factory.wording import quoted

SCHEMA_VERSION = 1
"""The version of the language that this package reads."""

TOP_LEVEL_KEYS = ("schema_version", "model", "settings", "signature")
"""The top-level keys with a meaning in a resolved config. Other keys are allowed and ignored."""

MODEL_KINDS = {"sequential": read_sequential, "graph": read_graph}
"""The kinds of model by key, each with its reader."""

WEIGHTS = "weights"
"""The key of ``model`` for a checkpoint: a name, or a mapping with the keys of ``CHECKPOINT_KEYS``."""

WEIGHTS_PATH: ConfigPath = ("model", WEIGHTS)
"""The place of the checkpoint in a config."""

CHECKPOINT_KEYS = ("checkpoint", "prefixes", "strict", "entry")

CHECKPOINT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Names of checkpoints; matched against the whole string."""

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
    if signature is not None:
        model = replace(model, signature=read_signature(signature, model.inputs))
    _check_integers(config)
    return model


def _check_integers(config: Cursor) -> None:
    """Refuse integers that overflow in torch, which multiplies sizes. Free keys, like notes, may hold any integer."""
    for key in TOP_LEVEL_KEYS:
        value = config.get(key)
        path = None if value is None else _path_of_large(value.node)
        if path is not None:
            at = config.nearest((key, *path))
            raise at.error(
                f"the integer {at.scalar_value()} is too large; integers of a config lie between -{MAX_INTEGER} and "
                f"{MAX_INTEGER}, the bounds included. Remedy: a smaller number, or a float (1.0e+12)"
            )


def _path_of_large(node: Node) -> ConfigPath | None:
    """Return the path from a node to the first integer over the bound."""
    if isinstance(node, Scalar):
        is_large = type(node.value) is int and not -MAX_INTEGER <= node.value <= MAX_INTEGER
        return () if is_large else None
    children = node.entries.items() if isinstance(node, MapNode) else enumerate(node.items)
    found = ((key, _path_of_large(child)) for key, child in children)
    return next(((key, *path) for key, path in found if path is not None), None)


def _read_model(at: Cursor, settings: Settings) -> ModelConfig:
    entries = at.entries((*MODEL_KINDS, WEIGHTS))
    weights = entries.pop(WEIGHTS, None)
    if len(entries) != 1:
        what = "both" if entries else "neither"
        raise at.error(f"a model is exactly one of 'sequential' and 'graph', found {what}")
    ((kind, body),) = entries.items()
    model = MODEL_KINDS[kind](body, settings)
    return model if weights is None else replace(model, weights=_read_weights(weights))


def _read_weights(at: Cursor) -> NamedCheckpoint:
    if isinstance(at.node, Scalar):
        return NamedCheckpoint(name=_read_checkpoint_name(at))
    entries = at.entries(CHECKPOINT_KEYS)
    prefixes = entries.get("prefixes")
    return NamedCheckpoint(
        name=_read_checkpoint_name(at.entry("checkpoint")),
        prefixes=None if prefixes is None else {key: _read_prefix(item) for key, item in prefixes.entries().items()},
        strict=entries["strict"].boolean() if "strict" in entries else True,
        entry=entries["entry"].text() if "entry" in entries else None,
    )


def _read_checkpoint_name(at: Cursor) -> str:
    name = at.text()
    if not CHECKPOINT_NAME.fullmatch(name):
        raise at.error(
            f"{quoted(name)} is not the name of a checkpoint; names match ^{CHECKPOINT_NAME.pattern}$. Remedy: a name "
            "of `model-factory checkpoints`; a file of the trainer is an argument of build, weights=PATH"
        )
    return name


def _read_prefix(at: Cursor) -> str:
    prefix = at.scalar_value()
    if not isinstance(prefix, str):
        raise at.error(f"must be a string, the beginning of names in the model, found {at.found}")
    return prefix


def _read_settings(at: Cursor) -> Settings:
    given: dict[str, bool | tuple[str, ...]] = {}
    for key, value in at.entries(SETTINGS).items():
        if key == "allowed_import_prefixes":
            given[key] = tuple(item.text() for item in value.items("prefixes"))
        else:
            given[key] = value.boolean()
    return replace(Settings(), **given)  # type: ignore[arg-type]  # each key was read as its field's type
