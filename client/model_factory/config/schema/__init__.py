"""A resolved tree is checked and becomes a typed model config."""
