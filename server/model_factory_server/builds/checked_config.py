"""A checked config, without its values: a parsed config takes up to 140 times the bytes of its text."""

from __future__ import annotations

from dataclasses import dataclass, field

from model_factory.config import ConfigBounds, parse_config


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedConfig:
    """The text and the identity of a checked config; the server keeps nothing else of a config.

    Example:
        >>> wire = b'{"schema_version":1,"model":{"sequential":{"layers":[{"_type_":"nn.ReLU"}]}}}'
        >>> CheckedConfig.parse(wire).wire == wire
        True
    """

    wire: bytes = field(repr=False)
    """The wire form."""
    digest: str
    """As in ``ResolvedConfig``."""
    order_digest: str
    """As in ``ResolvedConfig``."""
    checkpoint: str = ""
    """Name of the checkpoint with the first weights; empty without one."""

    @classmethod
    def parse(cls, data: bytes, bounds: ConfigBounds | None = None) -> CheckedConfig:
        """Parse and check a config from the wire.

        Raises:
            LimitError: the config is over ``bounds``.
            ConfigError: the config is wrong.
        """
        config = parse_config(data, bounds)
        weights = config.model.weights
        return cls(
            wire=config.wire,
            digest=config.digest,
            order_digest=config.order_digest,
            checkpoint="" if weights is None else weights.name,
        )
