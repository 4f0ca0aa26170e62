"""YAML text and JSON text become a tree of nodes, and a checked config becomes its canonical bytes."""
