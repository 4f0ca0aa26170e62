"""The server's settings: their declaration, and reading from flags, environment and file."""
