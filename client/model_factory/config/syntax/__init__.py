"""YAML text, JSON text and plain data become a tree of nodes; a cursor reads the tree."""
