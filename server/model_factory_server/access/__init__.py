"""Authentication: tokens, TLS, and the addresses where a server may listen without TLS."""
