"""The server's settings: declaration, reading from flags, environment and file."""
