class ConfigError(Exception):
    def __init__(self, message, *, config_path=None, suggestions=None):
        self.message = message
        self.config_path = config_path
        self.suggestions = suggestions or []
        super().__init__(f"{message} | path={config_path}")
