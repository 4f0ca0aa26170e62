"""A tree of nodes loses its files, templates, references and environment variables."""
