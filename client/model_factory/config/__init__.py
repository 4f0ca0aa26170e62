"""Component configs: from a YAML file or a mapping to a checked model and its canonical bytes.

``resolve_file`` and ``resolve_mapping`` do it on the trainer; ``parse_config`` reads the result on a server. Data
goes one way: ``load`` and ``merge`` -> ``templates`` -> ``settle`` -> ``interpolate`` -> ``check`` -> ``canonical``.
"""

from model_factory.config.bounds import MAX_CONFIG_BYTES
from model_factory.config.canonical import canonical_bytes, digest, parse_wire, wire_bytes
from model_factory.config.pipeline import ResolvedConfig, parse_config, resolve_file, resolve_mapping
from model_factory.config.schema.key_order import order_digest
from model_factory.config.schema.model_config import ModelConfig, Settings
from model_factory.config.syntax.nodes import ConfigPath

__all__ = [
    "MAX_CONFIG_BYTES",
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
