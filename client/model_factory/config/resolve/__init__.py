"""Files, templates, list directives, references and environment variables are resolved in a tree of nodes."""
