"""Checks of groups of ops; the table of all checks is ``program/checked_ops.py``."""
