"""Configs of models: from a YAML file or a mapping to a checked model, its wire form and its digests.

A trainer calls :func:`resolve_file` or :func:`resolve_mapping`; a server calls :func:`parse_config` on the result's
wire form. Data passes the stages in one direction: ``load`` and ``merge``, ``templates``, list directives,
``interpolate``, ``check``, ``canonical``. The language is described in ``docs/config-language.md``.
"""

from model_factory.config.bounds import MAX_CONFIG_BYTES, ConfigBounds
from model_factory.config.canonical import canonical_bytes, digest, parse_wire, wire_bytes
from model_factory.config.pipeline import ResolvedConfig, parse_config, resolve_file, resolve_mapping
from model_factory.config.schema.model_config import ModelConfig, Settings
from model_factory.config.schema.order_digest import order_digest
from model_factory.config.syntax.nodes import ConfigPath

__all__ = [
    "MAX_CONFIG_BYTES",
    "ConfigBounds",
    "ConfigPath",
    "ModelConfig",
    "ResolvedConfig",
    "Settings",
    "canonical_bytes",
    "digest",
    "order_digest",
    "parse_config",
    "parse_wire",
    "resolve_file",
    "resolve_mapping",
    "wire_bytes",
]
