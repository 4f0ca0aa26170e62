class ConfigError(Exception):
    """What a config gets wrong."""
